//! Time as a vCPU sees it: the largest gaps between two looks at the TSC.

use core::cmp::Reverse;

/// Gaps that are remembered. The gap of a switchover is to be among them on a busy host, too; each
/// costs about a millisecond of every second to print.
pub const GAPS: usize = 8;

/// Cycles that passed between two ticks, of which the guest saw nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The TSC at the tick before the gap.
    pub start: u64,
    /// Cycles to the next tick.
    pub length: u64,
}

/// The last tick of one vCPU and its largest gaps since they were last taken.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    last: u64,
    gaps: [Gap; GAPS],
}

impl Clock {
    /// A clock that first ticked at `now`.
    pub fn new(now: u64) -> Clock {
        Clock { last: now, gaps: [Gap::default(); GAPS] }
    }

    /// Sees the TSC at `now`. TSCs that are not quite in step (a vCPU that moved to another CPU)
    /// make no gap.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        let length = now.saturating_sub(self.last);
        if length > self.gaps[GAPS - 1].length {
            self.insert(Gap { start: self.last, length });
        }
        self.last = now;
    }

    /// The TSC at the last tick.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The largest gaps, largest first, and forgets them. Unused places have length 0.
    pub fn take_gaps(&mut self) -> [Gap; GAPS] {
        core::mem::take(&mut self.gaps)
    }

    #[cold]
    fn insert(&mut self, gap: Gap) {
        self.gaps[GAPS - 1] = gap;
        self.gaps.sort_unstable_by_key(|gap| Reverse(gap.length));
    }
}

/// Lets through a set number of events per second of TSC time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    cycles: u64,
    next: u64,
}

impl Pace {
    /// One event each `cycles`; 0 lets everything through.
    pub fn new(cycles: u64, now: u64) -> Pace {
        Pace { cycles, next: now }
    }

    /// Whether an event may happen at `now`. What was missed during a stall is made up for, but
    /// never more than `BURST` events.
    #[inline]
    pub fn allows(&mut self, now: u64) -> bool {
        if now < self.next {
            return false;
        }
        let oldest = now.saturating_sub(self.cycles * BURST);
        self.next = (self.next + self.cycles).max(oldest);
        true
    }
}

const BURST: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gaps_are_kept_in_order() {
        let mut clock = Clock::new(100);
        let mut now = 100;
        for length in [5, 1, 9, 3, 7, 2, 8, 4, 6, 10] {
            now += length;
            clock.tick(now);
        }
        let lengths = clock.take_gaps().map(|gap| gap.length);
        assert_eq!(lengths, [10, 9, 8, 7, 6, 5, 4, 3]);
        assert_eq!(clock.take_gaps(), [Gap::default(); GAPS]);
    }

    #[test]
    fn a_gap_starts_at_the_tick_before_it() {
        let mut clock = Clock::new(10);
        clock.tick(11);
        clock.tick(500);
        assert_eq!(clock.take_gaps()[0], Gap { start: 11, length: 489 });
    }

    #[test]
    fn time_that_goes_back_is_no_gap() {
        let mut clock = Clock::new(1000);
        clock.tick(990);
        assert_eq!(clock.take_gaps(), [Gap::default(); GAPS]);
        assert_eq!(clock.last(), 990);
    }

    #[test]
    fn pace_keeps_the_rate_and_limits_the_burst() {
        let mut pace = Pace::new(10, 0);
        assert_eq!((0..1000).filter(|now| pace.allows(*now)).count(), 100);
        let late = (0..1000).filter(|_| pace.allows(1_000_000)).count();
        assert!((BURST..=BURST + 2).contains(&(late as u64)), "{late}");
        let mut open = Pace::new(0, 5);
        assert!(open.allows(5) && open.allows(5));
    }
}
