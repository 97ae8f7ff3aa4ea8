//! What the guest says about its own memory, and when that is enough.

use std::collections::BTreeSet;

use super::gaps::VcpuGaps;
use super::lines::{Report, parse};
use super::workload::{Arena, Workload};

/// Which process a line was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that the guest leaves.
    Source,
    /// The one that it comes to.
    Destination,
}

/// All that the guest has reported so far, on both sides.
#[derive(Debug)]
pub struct Witness {
    workload: Workload,
    vcpus: Vec<VcpuRecord>,
    arena: Option<Arena>,
    filled: bool,
    passes_at_source: u64,
    corrupt_pages: BTreeSet<u64>,
    complaints: Vec<String>,
    error: Option<String>,
}

/// What one vCPU has reported.
#[derive(Debug, Default)]
struct VcpuRecord {
    gaps: VcpuGaps,
    /// The most corrupt pages of one pass.
    corrupt_max: u64,
    /// Begun at the destination, and not ended.
    open: Option<OpenPass>,
    /// Begun and ended there, in the order in which they ended.
    whole: Vec<WholePass>,
}

#[derive(Debug, Clone, Copy)]
struct OpenPass {
    number: u64,
    begin_tsc: u64,
}

#[derive(Debug, Clone, Copy)]
struct WholePass {
    begin_tsc: u64,
    verified: u64,
}

/// Complaints of the guest that are kept, whole.
const COMPLAINTS_MAX: usize = 8;

impl Witness {
    /// Nothing was reported yet by a guest of `vcpus` vCPUs.
    pub fn new(workload: Workload, vcpus: usize) -> Witness {
        Witness {
            workload,
            vcpus: (0..vcpus).map(|_| VcpuRecord::default()).collect(),
            arena: None,
            filled: false,
            passes_at_source: 0,
            corrupt_pages: BTreeSet::new(),
            complaints: Vec::new(),
            error: None,
        }
    }

    /// A line of the guest's console; one that began on the other side only joined.
    pub fn see(&mut self, side: Side, line: &str) {
        match parse(line) {
            Some(Report::Start { arena_pages, owned_pages }) if owned_pages <= arena_pages => {
                self.arena = Some(Arena { pages: arena_pages, owned: owned_pages });
            }
            Some(Report::Filled) => self.filled = true,
            Some(Report::PassBegin { vcpu, number, tsc }) => {
                if let (Some(vcpu), Side::Destination) = (self.vcpus.get_mut(vcpu), side) {
                    vcpu.open = Some(OpenPass { number, begin_tsc: tsc });
                }
            }
            Some(Report::PassEnd { vcpu, number, verified, corrupt }) => {
                self.passes_at_source += u64::from(side == Side::Source);
                let Some(vcpu) = self.vcpus.get_mut(vcpu) else { return };
                vcpu.corrupt_max = vcpu.corrupt_max.max(corrupt);
                if side == Side::Destination {
                    vcpu.end(number, verified);
                }
            }
            Some(Report::Corrupt { page }) => {
                self.corrupt_pages.insert(page);
                self.complain(line);
            }
            Some(Report::Gaps { vcpu, at, list }) => {
                if let Some(vcpu) = self.vcpus.get_mut(vcpu) {
                    vcpu.gaps.add(at, list);
                }
            }
            Some(Report::Error) => self.error = Some(line.to_owned()),
            Some(Report::Start { .. }) | None => {}
        }
    }

    fn complain(&mut self, line: &str) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(line.to_owned());
        }
    }

    /// The guest owns its memory: it has written it all, and verified it once at the source.
    pub fn is_warm(&self) -> bool {
        self.filled && self.passes_at_source > 0
    }

    /// Whether the guest has written all its pages once.
    pub fn is_filled(&self) -> bool {
        self.filled
    }

    /// Its memory, once it has started.
    pub fn arena(&self) -> Option<Arena> {
        self.arena
    }

    /// The line with which it gave up, if it did.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Its first complaints about pages, as it printed them.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Pages that it found corrupt, on either side. It names only the first so many of them, and
    /// may find the same ones in each pass.
    pub fn pages_corrupt(&self) -> u64 {
        let counted = self.vcpus.iter().map(|vcpu| vcpu.corrupt_max).sum();
        u64::max(counted, self.corrupt_pages.len() as u64)
    }

    /// For each vCPU the pages of its first whole pass at the destination that began after the TSC
    /// `paused`: what it verified there, whatever it had done before.
    pub fn verified(&self, paused: &[u64]) -> Vec<Option<u64>> {
        let first = |(vcpu, paused): (&VcpuRecord, &u64)| {
            let pass = vcpu.whole.iter().find(|pass| pass.begin_tsc > *paused)?;
            Some(pass.verified)
        };
        self.vcpus.iter().zip(paused).map(first).collect()
    }

    /// Pages that were verified at the destination, each counted once.
    pub fn pages_verified(&self, paused: &[u64]) -> u64 {
        let passes: Vec<u64> = self.verified(paused).into_iter().flatten().collect();
        let all = passes.iter().sum();
        match (self.workload, self.arena) {
            // Every vCPU verifies all pages that are written.
            (Workload::Smp, Some(arena)) => {
                let again = (passes.len() as u64).saturating_sub(1) * arena.owned;
                u64::saturating_sub(all, again)
            }
            _ => all,
        }
    }

    /// Whether every vCPU that verifies has verified all that is its own at the destination.
    pub fn all_verified(&self, paused: &[u64]) -> bool {
        let Some(arena) = self.arena else { return false };
        let (verified, vcpus) = (self.verified(paused), self.vcpus.len());
        let at_work = self.workload.vcpus_at_work(vcpus);
        verified.len() == vcpus
            && verified.iter().enumerate().take(at_work).all(|(vcpu, pages)| {
                let wanted = self.workload.pages_of_a_pass(arena, vcpu, vcpus);
                pages.is_some_and(|pages| pages >= wanted)
            })
    }

    /// The gaps of each vCPU that is at work.
    pub fn gaps(&self) -> impl Iterator<Item = &VcpuGaps> {
        let at_work = self.workload.vcpus_at_work(self.vcpus.len());
        self.vcpus.iter().take(at_work).map(|vcpu| &vcpu.gaps)
    }
}

impl VcpuRecord {
    /// A pass ended at the destination; it counts if it began there.
    fn end(&mut self, number: u64, verified: u64) {
        if let Some(open) = self.open.take_if(|open| open.number == number) {
            self.whole.push(WholePass { begin_tsc: open.begin_tsc, verified });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSED: [u64; 2] = [1000, 1000];

    fn witness(workload: Workload, source: &str, destination: &str) -> Witness {
        let mut witness = Witness::new(workload, 2);
        let start = "start workload=w vcpus=2 arena_pages=10 owned_pages=8 tsc=1;filled pages=8";
        for (side, text) in
            [(Side::Source, start), (Side::Source, source), (Side::Destination, destination)]
        {
            for line in text.split(';') {
                witness.see(side, &format!("godwit-guest: {}", line.trim()));
            }
        }
        witness
    }

    fn end(vcpu: u64, number: u64, verified: u64, corrupt: u64) -> String {
        format!("pass vcpu={vcpu} n={number} end tsc=9 verified={verified} corrupt={corrupt};")
    }

    #[test]
    fn a_guest_is_warm_when_it_has_verified_what_it_wrote() {
        assert!(!witness(Workload::Dirty, "", "").is_warm());
        assert!(witness(Workload::Dirty, &end(0, 1, 5, 0), "").is_warm());
    }

    #[test]
    fn only_passes_that_began_at_the_destination_after_the_switchover_count() {
        let begun_before = "pass vcpu=0 n=3 begin tsc=900; pass vcpu=1 n=3 begin tsc=990";
        let ended = end(0, 3, 5, 0) + &end(1, 3, 5, 0);
        assert!(!witness(Workload::Dirty, begun_before, &ended).all_verified(&PAUSED));
        let printed_there = format!("{begun_before};{ended}");
        assert!(!witness(Workload::Dirty, "", &printed_there).all_verified(&PAUSED));
        let whole = "pass vcpu=0 n=5 begin tsc=1900; pass vcpu=1 n=4 begin tsc=1990;".to_owned();
        let one = whole.clone() + &end(0, 5, 5, 0);
        let witness_of_one = witness(Workload::Dirty, begun_before, &one);
        assert!(!witness_of_one.all_verified(&PAUSED));
        assert_eq!(witness_of_one.verified(&PAUSED), [Some(5), None]);
        let both = witness(Workload::Dirty, begun_before, &(one + &end(1, 4, 5, 0)));
        assert!(both.all_verified(&PAUSED));
        assert_eq!((both.pages_verified(&PAUSED), both.pages_corrupt()), (10, 0));
        assert!(!both.all_verified(&[]), "the instant of the switchover is needed");
    }

    #[test]
    fn a_pass_over_too_few_pages_does_not_count() {
        let begin = "pass vcpu=0 n=5 begin tsc=1900; pass vcpu=1 n=4 begin tsc=1990;";
        let short = begin.to_owned() + &end(0, 5, 5, 0) + &end(1, 4, 4, 0);
        assert!(!witness(Workload::Dirty, "", &short).all_verified(&PAUSED));
    }

    #[test]
    fn a_page_that_all_vcpus_verify_counts_once() {
        let begin = "pass vcpu=0 n=5 begin tsc=1900; pass vcpu=1 n=4 begin tsc=1990;";
        let all = begin.to_owned() + &end(0, 5, 9, 0) + &end(1, 4, 9, 0);
        let witness = witness(Workload::Smp, "", &all);
        assert!(witness.all_verified(&PAUSED));
        assert_eq!(witness.pages_verified(&PAUSED), 10);
    }

    #[test]
    fn one_vcpu_is_enough_when_the_others_sleep() {
        let begin = "pass vcpu=0 n=5 begin tsc=1900;".to_owned();
        let witness = witness(Workload::Halt, "", &(begin + &end(0, 5, 10, 0)));
        assert!(witness.all_verified(&PAUSED));
        assert_eq!((witness.pages_verified(&PAUSED), witness.gaps().count()), (10, 1));
    }

    #[test]
    fn complaints_outlive_later_good_passes() {
        let text = "corrupt vcpu=1 page=7 gpa=0x7000; corrupt vcpu=1 page=7 gpa=0x7000;";
        let same = end(1, 4, 5, 1) + &end(1, 7, 5, 1);
        let witness = witness(Workload::Dirty, "", &(text.to_owned() + &same + &end(1, 9, 5, 0)));
        assert_eq!(witness.pages_corrupt(), 1);
        assert_eq!(witness.complaints()[0], "godwit-guest: corrupt vcpu=1 page=7 gpa=0x7000");
    }
}
