//! The outcome of a demo: what `--json` prints, and what the text is made from.

use serde::Serialize;
use serde::ser::SerializeMap;

use super::gaps::{Length, Switchover, largest};
use super::link::Link;
use super::story::Findings;
use crate::api::types::{FaultReport, MigrationStatus, Timeline};
use crate::cli::Demo;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest verified all its memory at the destination, and every byte was right.
    Verified,
    /// The guest found wrong bytes.
    Corrupt,
    /// A byte was changed on the way, and the guest did not notice.
    Unnoticed,
    /// There is no verdict of the guest; `error` says why.
    None,
}

/// Everything that a demo has to tell. Times are microseconds; what was not found out is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How it went.
    pub verdict: Verdict,
    /// Why there is no verdict.
    pub error: Option<String>,
    /// What the guest did.
    pub workload: &'static str,
    /// The guest's vCPUs.
    pub vcpus: u8,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// What it was made of.
    pub memory_backing: &'static str,
    /// The link between the two processes, if it was limited.
    pub link: Option<LinkReport>,
    /// The page that was changed on the way.
    pub page_changed: Option<u32>,
    /// Pages that the guest verifies: all but its image, its tables and its stacks.
    pub pages_to_verify: Option<u64>,
    /// Pages that it verified at the destination, after the switchover.
    pub pages_verified: u64,
    /// Pages that it found corrupt.
    pub pages_corrupt: u64,
    /// Its first complaints, as it printed them.
    pub complaints: Vec<String>,
    /// No vCPU ran anywhere, as the source measured it.
    pub blackout_us: Option<u64>,
    /// The largest gap of any vCPU across the switchover, as the guest measured it.
    pub guest_gap_us: Option<u64>,
    /// The largest gap of any vCPU that began in the second after that.
    pub guest_gap_first_second_us: Option<u64>,
    /// Whether the guest named the gap across the switchover; else the figure is an upper bound.
    pub guest_gap_exact: bool,
    /// The same for the second after it.
    pub guest_gap_first_second_exact: bool,
    /// The same for each vCPU at work.
    pub vcpu_gaps: Vec<VcpuGaps>,
    /// Faults that were served at the destination.
    pub faults: Faults,
    /// Pages by class.
    pub pages: Pages,
    /// Bytes of page contents per second, from the switchover to the last page.
    pub drain_bytes_per_s: Option<u64>,
    /// From the start to the source being free to end.
    pub total_us: Option<u64>,
    /// When it passed each of its marks.
    pub timeline: Marks,
    /// The frequency of the guest's time stamp counter.
    pub tsc_khz: Option<u32>,
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// In each direction.
    pub rate_bits_per_s: u64,
    /// There and back.
    pub round_trip_us: u64,
}

/// What a vCPU saw of the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VcpuGaps {
    /// The vCPU.
    pub vcpu: usize,
    /// The gap across the switchover.
    pub gap_us: u64,
    /// The largest that began in the second after it.
    pub first_second_us: Option<u64>,
}

/// Faults; latencies from reading the fault to waking the vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Faults served.
    pub count: u64,
    /// The median.
    pub p50_us: u64,
    /// Nine of ten were faster.
    pub p90_us: u64,
    /// Ninety-nine of a hundred were.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// Pages by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// All pages of the guest.
    pub total: u64,
    /// Moved as zero, without their bytes.
    pub zero: u64,
    /// Moved with their bytes.
    pub data: u64,
    /// Of both, those that were moved because a fault asked for them.
    pub requested: u64,
}

/// A mark of the migration: its name, when the source passed it, when the destination did, both in
/// microseconds since the source began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its name in JSON.
    pub name: &'static str,
    /// What happened.
    pub what: &'static str,
    /// When.
    pub at_us: Option<u64>,
}

/// The marks in the order in which they are passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks(pub Vec<Mark>);

impl Serialize for Marks {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for mark in &self.0 {
            map.serialize_entry(mark.name, &mark.at_us)?;
        }
        map.end()
    }
}

impl Report {
    /// The outcome of a demo of `args`, which ended with `error` if that is given.
    pub fn new(args: &Demo, findings: &Findings, error: Option<String>) -> Report {
        let (source, destination) = (source(findings), destination(findings));
        let paused = findings.paused();
        let witness = &findings.witness;
        let gaps = switchovers(findings);
        let lengths = |of: fn(&Switchover) -> Option<Length>| {
            gaps.as_deref().and_then(|gaps| largest(gaps.iter().filter_map(of)))
        };
        let across = lengths(|gap| Some(gap.across));
        let first_second = lengths(|gap| gap.first_second);
        let khz = findings.tsc_khz();
        let us = |length: Option<Length>| Some(microseconds(length?, khz?));
        let exact = |length| matches!(length, Some(Length::Exactly(_)));
        Report {
            verdict: verdict(args, findings, error.is_some()),
            error,
            workload: args.workload.name(),
            vcpus: args.cpus,
            memory_bytes: args.memory,
            memory_backing: args.memory_backing.name(),
            link: args.link.map(LinkReport::from),
            page_changed: findings.corrupted.page().map(|page| page.0),
            pages_to_verify: witness.arena().map(|arena| arena.pages),
            pages_verified: witness.pages_verified(paused),
            pages_corrupt: witness.pages_corrupt(),
            complaints: witness.complaints().to_vec(),
            blackout_us: source.and_then(|source| source.blackout_us),
            guest_gap_us: us(across),
            guest_gap_first_second_us: us(first_second),
            guest_gap_exact: exact(across),
            guest_gap_first_second_exact: exact(first_second),
            vcpu_gaps: vcpu_gaps(gaps.as_deref().unwrap_or(&[]), khz),
            faults: destination.and_then(|d| d.faults).map(Faults::from).unwrap_or_default(),
            pages: destination.map(|d| Pages::from(d.pages)).unwrap_or_default(),
            drain_bytes_per_s: destination.and_then(|d| d.drain_bytes_per_s),
            total_us: source.and_then(|source| source.timeline.released_us),
            timeline: marks(source, destination),
            tsc_khz: khz,
        }
    }
}

/// Whether the guest has told what it saw of the switchover.
pub fn gaps_are_known(findings: &Findings) -> bool {
    let known = |gaps: Vec<Switchover>| gaps.iter().all(|gap| gap.first_second.is_some());
    switchovers(findings).is_some_and(known)
}

/// What each vCPU at work saw of the switchover; `None` while one has not told.
fn switchovers(findings: &Findings) -> Option<Vec<Switchover>> {
    let (paused, khz) = (findings.paused(), findings.tsc_khz()?);
    let gaps = findings.witness.gaps().enumerate();
    gaps.map(|(vcpu, gaps)| gaps.switchover(*paused.get(vcpu)?, u64::from(khz) * 1000)).collect()
}

fn verdict(args: &Demo, findings: &Findings, failed: bool) -> Verdict {
    let witness = &findings.witness;
    match () {
        () if witness.pages_corrupt() > 0 => Verdict::Corrupt,
        () if failed || !witness.all_verified(findings.paused()) => Verdict::None,
        () if args.corrupt_page => Verdict::Unnoticed,
        () => Verdict::Verified,
    }
}

fn microseconds(length: Length, khz: u32) -> u64 {
    length.cycles().saturating_mul(1000) / u64::from(khz.max(1))
}

fn vcpu_gaps(gaps: &[Switchover], khz: Option<u32>) -> Vec<VcpuGaps> {
    let Some(khz) = khz else { return Vec::new() };
    let one = |(vcpu, gap): (usize, &Switchover)| VcpuGaps {
        vcpu,
        gap_us: microseconds(gap.across, khz),
        first_second_us: gap.first_second.map(|length| microseconds(length, khz)),
    };
    gaps.iter().enumerate().map(one).collect()
}

fn source(findings: &Findings) -> Option<&MigrationStatus> {
    findings.source.as_ref()?.migration.as_ref()
}

fn destination(findings: &Findings) -> Option<&MigrationStatus> {
    findings.destination.as_ref()?.migration.as_ref()
}

/// The timelines of both ends on one clock: they are on one host.
fn marks(source: Option<&MigrationStatus>, destination: Option<&MigrationStatus>) -> Marks {
    let here = source.map(|source| source.timeline).unwrap_or_default();
    let there = destination.map(|destination| destination.timeline).unwrap_or_default();
    let at_destination = |of: fn(&Timeline) -> Option<u64>| {
        let at = there.began_monotonic_us? + of(&there)?;
        Some(at.saturating_sub(here.began_monotonic_us?))
    };
    let mark = |name, what, at_us| Mark { name, what, at_us };
    let arrived = |name, what, of| mark(name, what, at_destination(of));
    Marks(vec![
        mark("prepared_us", "the destination is ready for the guest", here.prepared_us),
        mark("paused_us", "the source stops the vCPUs: the blackout begins", here.paused_us),
        mark("package_us", "vCPUs and devices are saved", here.package_us),
        arrived("loaded_us", "the destination has loaded them", |there| there.loaded_us),
        mark("granted_us", "the grant is on disk: the switchover", here.granted_us),
        arrived("first_instruction_us", "first instruction at the destination", |there| {
            there.first_instruction_us
        }),
        mark("pushed_us", "the source has pushed what nobody asked for", here.pushed_us),
        arrived("last_page_us", "the last page is in place", |there| there.last_page_us),
        mark("released_us", "the source is released", here.released_us),
    ])
}

impl From<Link> for LinkReport {
    fn from(link: Link) -> LinkReport {
        let round_trip_us = u64::try_from(link.round_trip.as_micros()).unwrap_or(u64::MAX);
        LinkReport { rate_bits_per_s: link.rate_bits_per_s, round_trip_us }
    }
}

impl From<FaultReport> for Faults {
    fn from(report: FaultReport) -> Faults {
        let FaultReport { count, p50_us, p90_us, p99_us, max_us, .. } = report;
        Faults { count, p50_us, p90_us, p99_us, max_us }
    }
}

impl From<crate::api::types::Pages> for Pages {
    fn from(pages: crate::api::types::Pages) -> Pages {
        let crate::api::types::Pages { total, zero, data, requested, .. } = pages;
        Pages { total, zero, data, requested }
    }
}
