//! When rounds of pre-copy go on, and when they end.

use std::time::{Duration, Instant};

use crate::wire::Mode;

/// A round pays while fewer than this share of the pages that it sent are dirty again at its end.
const DIRTY_SHARE_MAX: f64 = 0.5;
/// In hybrid mode what is left is sent while the guest runs at the destination, so a little need
/// not become less: this much of it takes about as long as the switchover.
const HYBRID_REST_BYTES: u64 = 4 << 20;

/// What to do when pre-copy takes longer than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The guest stays where it is.
    Cancel,
    /// Rounds go on until what is left fits the downtime.
    Ignore,
    /// The guest changes hands, and what is left follows.
    Switch,
}

/// What the operator wants of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundLimits {
    /// How long the guest may stand still for what is left at the end of pre-copy.
    pub downtime: Duration,
    /// How long the rounds may take.
    pub timeout: Duration,
    /// What happens then, in pre-copy. Hybrid switches.
    pub on_timeout: OnTimeout,
}

/// A round that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundResult {
    /// Pages that it sent.
    pub sent: u32,
    /// Pages to be sent again, or not sent yet, at its end.
    pub left: u32,
    /// Those of them that were sent and written since: the destination discards them.
    pub old: u32,
    /// How long it took.
    pub took: Duration,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRound {
    /// Another round.
    Again,
    /// The guest is paused; what is left goes before it changes hands.
    Finish,
    /// The guest changes hands; what is left follows.
    Switch,
    /// The guest stays.
    Cancel,
}

/// The decisions of one migration.
#[derive(Debug)]
pub struct Rounds {
    mode: Mode,
    limits: RoundLimits,
    page_bytes: u64,
    began: Instant,
    switch_wanted: bool,
    /// The round before the switchover has been wanted.
    last_wanted: bool,
}

impl Rounds {
    /// Begins at `now`. `mode` is not post-copy, which has no rounds.
    pub fn new(mode: Mode, limits: RoundLimits, page_bytes: u32, now: Instant) -> Rounds {
        let page_bytes = u64::from(page_bytes);
        let (switch_wanted, last_wanted) = (false, false);
        Rounds { mode, limits, page_bytes, began: now, switch_wanted, last_wanted }
    }

    /// The operator wants the guest to change hands now.
    pub fn switch_now(&mut self) {
        self.switch_wanted = true;
    }

    /// Whether the guest changes hands behind the next round, which ends as soon as it can.
    pub fn switch_wanted(&self) -> bool {
        self.switch_wanted
    }

    /// When the rounds have taken as long as they may; `None` if they may for ever.
    pub fn deadline(&self) -> Option<Instant> {
        (self.on_timeout() != OnTimeout::Ignore).then(|| self.began + self.limits.timeout)
    }

    /// What happens then.
    pub fn on_timeout(&self) -> OnTimeout {
        match self.mode {
            Mode::Hybrid => OnTimeout::Switch,
            _ => self.limits.on_timeout,
        }
    }

    /// What follows the round of `result`, which ended at `now`. Before a switchover, if the
    /// destination has much to discard, comes a round that ends as soon as it begins: the guest
    /// still runs meanwhile, and otherwise would stand still for it.
    pub fn after(&mut self, result: RoundResult, now: Instant) -> NextRound {
        let next = self.decide(result, now);
        let prepared = !self.is_much(result.old) || self.last_wanted;
        if next != NextRound::Switch || prepared {
            return next;
        }
        (self.switch_wanted, self.last_wanted) = (true, true);
        NextRound::Again
    }

    fn decide(&self, result: RoundResult, now: Instant) -> NextRound {
        if self.switch_wanted {
            return NextRound::Switch;
        }
        let late = now >= self.began + self.limits.timeout;
        match self.mode {
            Mode::Precopy if self.fits(result) => NextRound::Finish,
            Mode::Precopy if late => match self.on_timeout() {
                OnTimeout::Cancel => NextRound::Cancel,
                OnTimeout::Ignore => NextRound::Again,
                OnTimeout::Switch => NextRound::Switch,
            },
            Mode::Precopy => NextRound::Again,
            _ if late || !self.pays(result) => NextRound::Switch,
            _ => NextRound::Again,
        }
    }

    /// Whether what is left takes no longer than the downtime, at the speed of the last round.
    fn fits(&self, result: RoundResult) -> bool {
        if result.left == 0 {
            return true;
        }
        if result.sent == 0 {
            return false;
        }
        let took = result.took.as_secs_f64() * f64::from(result.left) / f64::from(result.sent);
        took <= self.limits.downtime.as_secs_f64()
    }

    fn is_much(&self, pages: u32) -> bool {
        u64::from(pages) * self.page_bytes > HYBRID_REST_BYTES
    }

    fn pays(&self, result: RoundResult) -> bool {
        self.is_much(result.left)
            && f64::from(result.left) < f64::from(result.sent) * DIRTY_SHARE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rounds(mode: Mode, on_timeout: OnTimeout) -> (Rounds, Instant) {
        let now = Instant::now();
        let limits = RoundLimits { downtime: SECOND / 10, timeout: 10 * SECOND, on_timeout };
        (Rounds::new(mode, limits, 4096, now), now)
    }

    fn result(sent: u32, left: u32) -> RoundResult {
        RoundResult { sent, left, old: left, took: SECOND }
    }

    #[test]
    fn precopy_goes_on_until_the_rest_fits_the_downtime() {
        let (mut rounds, now) = rounds(Mode::Precopy, OnTimeout::Cancel);
        assert_eq!(rounds.after(result(1000, 101), now), NextRound::Again);
        assert_eq!(rounds.after(result(1000, 100), now), NextRound::Finish);
        assert_eq!(rounds.after(result(0, 100), now), NextRound::Again);
        assert_eq!(rounds.after(result(0, 0), now), NextRound::Finish);
    }

    #[test]
    fn precopy_that_takes_too_long_does_as_it_was_told() {
        let after = |on_timeout| {
            let (mut rounds, now) = rounds(Mode::Precopy, on_timeout);
            rounds.after(result(1000, 900), now + 11 * SECOND)
        };
        assert_eq!(after(OnTimeout::Cancel), NextRound::Cancel);
        assert_eq!(after(OnTimeout::Ignore), NextRound::Again);
        assert_eq!(after(OnTimeout::Switch), NextRound::Switch);
    }

    #[test]
    fn hybrid_switches_when_rounds_stop_to_pay_or_on_command() {
        // What follows, and what follows the round that comes before the switchover.
        let after = |sent, left, seconds, on_command| {
            let (mut rounds, now) = rounds(Mode::Hybrid, OnTimeout::Cancel);
            if on_command {
                rounds.switch_now();
            }
            let result = result(sent, left);
            let first = rounds.after(result, now + seconds * SECOND);
            (first, rounds.switch_wanted(), rounds.after(result, now + seconds * SECOND))
        };
        let (again, switch) = (NextRound::Again, NextRound::Switch);
        assert_eq!(after(100_000, 40_000, 0, false), (again, false, again));
        assert_eq!(after(100_000, 60_000, 0, false), (again, true, switch));
        assert_eq!(after(100_000, 1_000, 0, false), (switch, false, switch));
        assert_eq!(after(100_000, 40_000, 10, false), (again, true, switch));
        assert_eq!(after(100_000, 40_000, 0, true), (again, true, switch));
        assert_eq!(after(100_000, 1_000, 0, true), (switch, true, switch));
        // Nothing to discard: what is left was not sent.
        let (mut rounds, now) = rounds(Mode::Hybrid, OnTimeout::Cancel);
        rounds.switch_now();
        let result = RoundResult { old: 1_000, ..result(10, 100_000) };
        assert_eq!(rounds.after(result, now), switch);
    }
}
