//! Whole verification passes on a guest's console: begun and ended where it was watched.

use std::collections::BTreeMap;

use crate::guest::{Report, Verdict};

/// Follows the passes of all vCPUs, line by line.
///
/// A pass counts if its begin and its end were both seen: then every page of the vCPU's share was
/// verified in between, in that process.
#[derive(Debug)]
pub struct Passes {
    vcpus: u64,
    rounds: u64,
    begun: BTreeMap<u64, u64>,
    done: BTreeMap<u64, Round>,
    corrupt_lines: u64,
    corrupt_counted: u64,
}

/// The latest whole pass of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    count: u64,
    verified: u64,
}

impl Passes {
    /// Wants `rounds` whole passes of each of the first `vcpus` vCPUs.
    pub fn new(vcpus: u64, rounds: u64) -> Passes {
        let (begun, done) = (BTreeMap::new(), BTreeMap::new());
        Passes { vcpus, rounds, begun, done, corrupt_lines: 0, corrupt_counted: 0 }
    }

    /// Takes in a line of the console; true once every vCPU has done what is wanted.
    ///
    /// # Panics
    /// If a report lacks what it should have.
    #[track_caller]
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(report) = Report::parse(line) {
            self.report(&report);
        }
        (0..self.vcpus).all(|vcpu| self.done.get(&vcpu).is_some_and(|r| r.count >= self.rounds))
    }

    #[track_caller]
    fn report(&mut self, report: &Report) {
        if report.kind == "corrupt" {
            self.corrupt_lines += 1;
        } else if report.ends_pass() {
            self.corrupt_counted += report.number("corrupt");
            let vcpu = report.number("vcpu");
            if self.begun.remove(&vcpu) == Some(report.number("n")) {
                let round = self.done.entry(vcpu).or_default();
                round.count += 1;
                round.verified = report.number("verified");
            }
        } else if report.kind == "pass" {
            self.begun.insert(report.number("vcpu"), report.number("n"));
        }
    }

    /// What was found: the pages that the latest whole pass of each vCPU verified, and everything
    /// that was corrupt since the watch began.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            passes: self.done.values().map(|round| round.count).sum(),
            verified: self.done.values().map(|round| round.verified).sum(),
            corrupt: self.corrupt_lines.max(self.corrupt_counted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(vcpu: u64, n: u64) -> String {
        format!("godwit-guest: pass vcpu={vcpu} n={n} begin tsc=1")
    }

    fn end(vcpu: u64, n: u64, corrupt: u64) -> String {
        format!("godwit-guest: pass vcpu={vcpu} n={n} end tsc=2 verified=7 corrupt={corrupt}")
    }

    #[test]
    fn a_pass_that_began_elsewhere_does_not_count() {
        let mut passes = Passes::new(1, 1);
        assert!(!passes.take(&end(0, 3, 0)));
        assert!(!passes.take(&begin(0, 4)));
        assert!(passes.take(&end(0, 4, 0)));
        assert_eq!(passes.verdict(), Verdict { passes: 1, verified: 7, corrupt: 0 });
    }

    #[test]
    fn every_vcpu_has_to_do_its_rounds() {
        let mut passes = Passes::new(2, 2);
        let lines =
            [begin(0, 1), begin(1, 1), end(0, 1, 0), begin(0, 2), end(0, 2, 0), end(1, 1, 0)];
        assert!(lines.iter().all(|line| !passes.take(line)));
        assert!(!passes.take(&begin(1, 2)));
        assert!(passes.take(&end(1, 2, 0)));
        assert_eq!(passes.verdict().verified, 14);
    }

    #[test]
    fn corrupt_pages_count_in_whatever_pass_they_were() {
        let mut passes = Passes::new(1, 1);
        passes.take(&end(0, 3, 5));
        passes.take("godwit-guest: corrupt vcpu=0 page=3 gpa=0x1");
        assert_eq!(passes.verdict().corrupt, 5);
    }
}
