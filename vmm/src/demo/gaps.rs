//! The gaps in the guest's time: which one was the switchover, and what came right after it.
//!
//! The guest prints for each vCPU, about once a second of TSC time, its few largest gaps since the
//! last such line. A gap that is not listed is not longer than any that is.

/// Cycles of which a vCPU saw nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The TSC before the gap.
    pub start: u64,
    /// Cycles to the next look at the TSC.
    pub length: u64,
}

impl Gap {
    fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// What is known of the length of a gap, in cycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// The guest named it.
    Exactly(u64),
    /// It is among those that were too short to be named.
    AtMost(u64),
}

impl Length {
    /// The cycles, or their upper bound.
    pub fn cycles(self) -> u64 {
        match self {
            Length::Exactly(cycles) | Length::AtMost(cycles) => cycles,
        }
    }

    /// The larger one; of two of the same size the one that is certain.
    fn or_larger(self, other: Length) -> Length {
        let certain = |length: Length| matches!(length, Length::Exactly(_));
        let key = |length: Length| (length.cycles(), certain(length));
        if key(other) > key(self) { other } else { self }
    }
}

/// The gaps of one vCPU, as the guest reported them.
#[derive(Debug, Clone, Default)]
pub struct VcpuGaps {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    at: u64,
    gaps: Vec<Gap>,
}

/// What a vCPU saw of the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switchover {
    /// The gap that has the switchover in it.
    pub across: Length,
    /// The largest of those that began in the second after it; `None` while its lines have not
    /// come.
    pub first_second: Option<Length>,
}

impl VcpuGaps {
    /// Adds a line that was printed at the TSC `at`.
    pub fn add(&mut self, at: u64, gaps: Vec<Gap>) {
        let place = self.lines.partition_point(|line| line.at <= at);
        self.lines.insert(place, Line { at, gaps });
    }

    /// The switchover at the TSC `paused`, with `second` cycles in a second. `None` while the line
    /// that covers it has not come.
    pub fn switchover(&self, paused: u64, second: u64) -> Option<Switchover> {
        let covering = self.lines.iter().find(|line| line.at >= paused)?;
        let found = covering.gaps.iter().find(|gap| gap.start <= paused && paused <= gap.end());
        let (across, end) = match found {
            Some(gap) => (Length::Exactly(gap.length), gap.end()),
            None => (Length::AtMost(covering.unlisted()), paused),
        };
        let first_second = self.largest_between(end, end.saturating_add(second));
        Some(Switchover { across, first_second })
    }

    /// The largest gap that starts from `start` on and before `end`; `None` while there is no line
    /// from after `end`.
    fn largest_between(&self, start: u64, end: u64) -> Option<Length> {
        let last = self.lines.iter().position(|line| line.at >= end)?;
        let mut largest = Length::Exactly(0);
        for line in self.lines[..=last].iter().filter(|line| line.at >= start) {
            largest = largest.or_larger(line.largest_between(start, end));
        }
        Some(largest)
    }
}

impl Line {
    /// No gap that is not listed is longer. A list that is not full lists all, and then this is
    /// more than the truth; but every look at the TSC is the end of a gap, so lists are full.
    fn unlisted(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.length).min().unwrap_or(0)
    }

    fn largest_between(&self, start: u64, end: u64) -> Length {
        let inside = self.gaps.iter().filter(|gap| (start..end).contains(&gap.start));
        match inside.map(|gap| gap.length).max() {
            Some(length) => Length::Exactly(length),
            None => Length::AtMost(self.unlisted()),
        }
    }
}

/// The largest of some lengths.
pub fn largest(lengths: impl IntoIterator<Item = Length>) -> Option<Length> {
    lengths.into_iter().reduce(Length::or_larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    fn gaps(lines: &[(u64, &[(u64, u64)])]) -> VcpuGaps {
        let mut gaps = VcpuGaps::default();
        for (at, list) in lines {
            gaps.add(*at, list.iter().copied().map(gap).collect());
        }
        gaps
    }

    fn gap((start, length): (u64, u64)) -> Gap {
        Gap { start, length }
    }

    fn switchover(across: Length, first_second: Option<Length>) -> Option<Switchover> {
        Some(Switchover { across, first_second })
    }

    #[test]
    fn the_gap_around_the_pause_is_the_switchover_and_no_larger_one_is() {
        let gaps = gaps(&[
            (2000, &[(1100, 300)]),
            (3000, &[(2100, 500), (2650, 90), (2800, 40)]),
            (4000, &[(3700, 70), (3900, 60)]),
        ]);
        let wanted = switchover(Length::Exactly(90), Some(Length::Exactly(70)));
        assert_eq!(gaps.switchover(2700, SECOND), wanted);
    }

    #[test]
    fn lines_that_have_not_come_are_waited_for() {
        let mut gaps = gaps(&[(2000, &[(1100, 300)])]);
        assert_eq!(gaps.switchover(2700, SECOND), None);
        gaps.add(3000, [(2690, 20), (2900, 1)].map(gap).to_vec());
        assert_eq!(gaps.switchover(2700, SECOND), switchover(Length::Exactly(20), None));
        gaps.add(4000, vec![gap((3200, 7))]);
        let wanted = switchover(Length::Exactly(20), Some(Length::Exactly(7)));
        assert_eq!(gaps.switchover(2700, SECOND), wanted);
    }

    #[test]
    fn a_gap_that_is_not_listed_is_bounded_by_those_that_are() {
        let full: &[(u64, u64)] = &[(2100, 500), (2750, 30), (2800, 40), (2900, 20)];
        let only_full = gaps(&[(3000, full), (4000, &[])]);
        let bounded = only_full.switchover(2700, SECOND).unwrap();
        assert_eq!(bounded.across, Length::AtMost(20));
        assert_eq!(bounded.first_second, Some(Length::Exactly(40)));
        let none = gaps(&[(3000, &[]), (4000, full)]).switchover(2950, 500);
        let wanted = switchover(Length::AtMost(0), Some(Length::AtMost(20)));
        assert_eq!(none, wanted);
    }

    #[test]
    fn lines_may_come_in_any_order() {
        let late = gaps(&[(4000, &[]), (3000, &[(2690, 20)]), (2000, &[])]);
        let wanted = switchover(Length::Exactly(20), Some(Length::AtMost(20)));
        assert_eq!(late.switchover(2700, SECOND), wanted);
    }

    #[test]
    fn the_largest_is_found_and_certainty_wins_a_tie() {
        let lengths = [Length::AtMost(5), Length::Exactly(5), Length::Exactly(3)];
        assert_eq!(largest(lengths), Some(Length::Exactly(5)));
        assert_eq!(largest([Length::AtMost(7), Length::Exactly(5)]), Some(Length::AtMost(7)));
        assert_eq!(largest([]), None);
    }
}
