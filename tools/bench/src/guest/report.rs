//! From the guest's lines to its figures: fault latencies while pages were missing, and gaps.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::guest::latency::{Histogram, Latencies};
use crate::guest::line::Line;

/// When things happened, in TSC cycles.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// The guest had stopped, or was just stopping, at its old host.
    pub stopped: u64,
    /// The guest ran, or was just starting, at its new host, with pages missing.
    pub resumed: u64,
    /// The last page had come.
    pub complete: u64,
    /// TSC cycles in a millisecond.
    pub tsc_khz: u64,
}

impl Moments {
    /// The same moments by the guest's counter, which is `offset` when the host's is 0.
    #[must_use]
    pub fn shifted(self, offset: i64) -> Moments {
        let shift = |moment: u64| moment.wrapping_add_signed(offset);
        Moments {
            stopped: shift(self.stopped),
            resumed: shift(self.resumed),
            complete: shift(self.complete),
            tsc_khz: self.tsc_khz,
        }
    }
}

/// What the guest saw of its move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestFigures {
    /// Touches of at least 40 us in windows that began while pages were missing.
    pub faults: Latencies,
    /// The largest gap in any vCPU's TSC across the switchover. `None` if so many others were
    /// longer that the guest does not remember it.
    pub gap_us: Option<f64>,
    /// The largest gap in the second after it.
    pub gap_first_second_us: f64,
}

impl GuestFigures {
    /// The figures of the guest that printed `lines`.
    ///
    /// # Errors
    ///
    /// [`Error::GuestCorrupt`] if the guest found wrong bytes.
    pub fn of(lines: &[Line], moments: &Moments) -> Result<GuestFigures, Error> {
        GuestFigures::check(lines)?;
        let (gap_us, gap_first_second_us) = gaps(lines, moments);
        Ok(GuestFigures { faults: faults(lines, moments), gap_us, gap_first_second_us })
    }

    /// Whether the guest that printed `lines` may be believed.
    ///
    /// # Errors
    ///
    /// [`Error::GuestCorrupt`] if it found wrong bytes.
    pub fn check(lines: &[Line]) -> Result<(), Error> {
        match lines.iter().filter(|line| line.kind == "corrupt").count() {
            0 => Ok(()),
            pages => Err(Error::GuestCorrupt { pages }),
        }
    }
}

/// Every one of `vcpus` has printed what it has recorded up to `moment`: windows that reach beyond
/// it, or, as windows in which nothing took long are not printed, the end of a pass behind it.
pub fn windows_reach(lines: &[Line], vcpus: u64, moment: u64) -> bool {
    let reaches = |line: &Line| {
        let window = window(line).is_some_and(|(_, end)| end > moment);
        // The line that ends a pass comes after the windows of the pass, and only it has this.
        let pass_ended = line.kind == "pass" && line.number("verified").is_some();
        window || pass_ended && line.number("tsc").is_some_and(|tsc| tsc > moment)
    };
    (0..vcpus)
        .all(|vcpu| lines.iter().any(|line| line.number("vcpu") == Some(vcpu) && reaches(line)))
}

/// Every one of `vcpus` has printed its gaps up to `moment`.
pub fn gaps_reach(lines: &[Line], vcpus: u64, moment: u64) -> bool {
    (0..vcpus).all(|vcpu| {
        lines.iter().any(|line| {
            line.kind == "gaps"
                && line.number("vcpu") == Some(vcpu)
                && line.number("at").is_some_and(|at| at > moment)
        })
    })
}

/// Windows that begin between the resumption and the last page. The one that the switchover cuts in
/// two has the blackout in it and does not count; the last one does, because a touch that waited
/// for the last page ends it.
fn faults(lines: &[Line], moments: &Moments) -> Latencies {
    let mut all = Histogram::default();
    for line in lines {
        let Some((start, _)) = window(line) else { continue };
        if (moments.resumed..moments.complete).contains(&start) {
            for (bucket, count) in line.pairs("h") {
                all.add(bucket, count);
            }
        }
    }
    all.latencies(FAULT_US_MIN, moments.tsc_khz)
}

fn window(line: &Line) -> Option<(u64, u64)> {
    if line.kind != "window" {
        return None;
    }
    let start = line.number("start")?;
    Some((start, start.saturating_add(line.number("cycles")?)))
}

/// The largest gap across the switchover, and the largest other one in the second after it.
///
/// The gap across the switchover is the one that holds the moment when the guest was seen to have
/// stopped; if that was seen late, the one behind it that starts before the resumption.
fn gaps(lines: &[Line], moments: &Moments) -> (Option<f64>, f64) {
    let second = moments.tsc_khz * 1000;
    let (mut across, mut after) = (0, 0);
    for line in lines.iter().filter(|line| line.kind == "gaps") {
        for (start, length) in line.pairs("list") {
            let end = start.saturating_add(length);
            if start <= moments.resumed && end >= moments.stopped {
                across = across.max(length);
            } else if start > moments.resumed && start <= moments.resumed + second {
                after = after.max(length);
            }
        }
    }
    let micros = |cycles: u64| cycles as f64 * 1000.0 / moments.tsc_khz as f64;
    ((across > 0).then(|| micros(across)), micros(after))
}

/// A touch that takes at least this long met a missing page. A page that is there costs less, also
/// where KVM has to enter it in its own tables first (about 20 us with shadow paging).
const FAULT_US_MIN: f64 = 40.0;

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENTS: Moments =
        Moments { stopped: 1_000_000, resumed: 1_500_000, complete: 9_000_000, tsc_khz: 1_000_000 };

    fn lines(texts: &[&str]) -> Vec<Line> {
        texts.iter().map(|text| Line::parse(&format!("godwit-guest: {text}")).unwrap()).collect()
    }

    #[test]
    fn only_windows_with_pages_missing_count() {
        let lines = lines(&[
            "window vcpu=0 start=900000 cycles=700000 n=1 h=80:5",
            "window vcpu=0 start=1600000 cycles=700000 n=1 h=0:100,80:7",
            "window vcpu=1 start=2000000 cycles=700000 n=1 h=80:2",
            "window vcpu=0 start=8900000 cycles=700000 n=1 h=80:11",
            "window vcpu=1 start=9000000 cycles=700000 n=1 h=80:40",
        ]);
        let figures = GuestFigures::of(&lines, &MOMENTS).unwrap();
        assert_eq!(figures.faults.count, 20);
        assert!(windows_reach(&lines, 2, 9_000_000));
        assert!(!windows_reach(&lines, 3, 9_000_000));
        assert!(!windows_reach(&lines, 1, 9_600_000));
    }

    #[test]
    fn a_pass_that_ended_had_no_other_windows_worth_printing() {
        let lines = lines(&[
            "pass vcpu=0 n=7 begin tsc=9500000",
            "pass vcpu=0 n=7 end tsc=9700000 verified=0 zero=0 corrupt=0 generations=0",
        ]);
        assert!(!windows_reach(&lines[..1], 1, 9_000_000));
        assert!(windows_reach(&lines, 1, 9_600_000));
        assert!(!windows_reach(&lines, 1, 9_700_000));
    }

    #[test]
    fn the_gap_across_the_switchover_is_told_from_those_after() {
        let lines = lines(&[
            "gaps vcpu=0 at=800000 list=100:700000",
            "gaps vcpu=0 at=5000000 list=950000:800000,2000000:90000",
            "gaps vcpu=1 at=5000000 list=940000:600000,2000000000:999999",
        ]);
        let figures = GuestFigures::of(&lines, &MOMENTS).unwrap();
        assert!((figures.gap_us.unwrap() - 800.0).abs() < 1e-9);
        assert!((figures.gap_first_second_us - 90.0).abs() < 1e-9);
        assert!(gaps_reach(&lines, 2, 4_999_999));
        assert!(!gaps_reach(&lines, 2, 5_000_000));
    }

    #[test]
    fn a_gap_that_the_guest_does_not_remember_is_not_zero() {
        let lines = lines(&["gaps vcpu=0 at=5000000 list=2000000:90000"]);
        assert_eq!(GuestFigures::of(&lines, &MOMENTS).unwrap().gap_us, None);
    }

    #[test]
    fn a_corrupt_guest_has_no_figures() {
        let lines = lines(&["corrupt vcpu=0 page=3 gpa=0x3000"]);
        let error = GuestFigures::of(&lines, &MOMENTS).unwrap_err();
        assert!(matches!(error, Error::GuestCorrupt { pages: 1 }));
    }
}
