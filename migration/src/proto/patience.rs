//! How long a peer is waited for, and when it hears from us.

use std::time::{Duration, Instant};

use crate::limits::{ALIVE_INTERVAL, PEER_TIMEOUT, STALL_TIMEOUT};

/// The timers of one side.
#[derive(Debug)]
pub(super) struct Patience {
    heard: Instant,
    spoken: Instant,
    limit: Duration,
    alive: bool,
}

/// What a timer that fired asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// The peer should hear from us.
    SayAlive,
    /// The peer was silent for this long.
    PeerSilent(Duration),
}

impl Patience {
    /// Waits `limit` for the next message of the peer.
    pub fn step(now: Instant, limit: Duration) -> Patience {
        Patience { heard: now, spoken: now, limit, alive: false }
    }

    /// Waits `limit` for the next message of the peer, which hears from us meanwhile.
    pub fn audible(now: Instant, limit: Duration) -> Patience {
        Patience { heard: now, spoken: now, limit, alive: true }
    }

    /// Both sides say that they are alive, and a silent peer is lost.
    pub fn serving(now: Instant) -> Patience {
        Patience::audible(now, PEER_TIMEOUT)
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub fn due(&mut self, now: Instant) -> Due {
        if now >= self.heard + self.limit {
            return Due::PeerSilent(now - self.heard);
        }
        if self.alive && now >= self.spoken + ALIVE_INTERVAL {
            self.spoken = now;
            return Due::SayAlive;
        }
        Due::Nothing
    }

    /// The next instant at which something may be due.
    pub fn next(&self) -> Instant {
        let silent = self.heard + self.limit;
        if self.alive { silent.min(self.spoken + ALIVE_INTERVAL) } else { silent }
    }
}

/// Whether pages come while some are due. A peer that says that it is alive says so on another
/// channel than that on which most pages come, and something between the hosts may swallow those.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// Pages that were missing and bulk channels that had ended, at the last look.
    seen: (u32, u8),
    since: Instant,
    limit: Duration,
}

impl Arrivals {
    /// Waits from `now` on for the pages that are missing, on so many bulk channels, which share
    /// what the link carries.
    pub fn over(connections: u8, missing: u32, now: Instant) -> Arrivals {
        let limit = STALL_TIMEOUT * u32::from(connections.max(1));
        Arrivals { seen: (missing, 0), since: now, limit }
    }

    /// For how long nothing has come, if that is too long.
    pub fn stalled(&mut self, missing: u32, ended: u8, now: Instant) -> Option<Duration> {
        if std::mem::replace(&mut self.seen, (missing, ended)) != (missing, ended) {
            self.since = now;
        }
        (now >= self.next()).then(|| now - self.since)
    }

    /// The next instant at which to look.
    pub fn next(&self) -> Instant {
        self.since + self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_noticed_and_a_talking_one_is_not() {
        let start = Instant::now();
        let mut patience = Patience::serving(start);
        assert_eq!(patience.due(start), Due::Nothing);
        assert_eq!(patience.due(start + ALIVE_INTERVAL), Due::SayAlive);
        patience.heard(start + PEER_TIMEOUT / 2);
        assert_ne!(patience.due(start + PEER_TIMEOUT), Due::PeerSilent(PEER_TIMEOUT));
        let silent = Due::PeerSilent(PEER_TIMEOUT);
        assert_eq!(patience.due(start + PEER_TIMEOUT / 2 + PEER_TIMEOUT), silent);
    }

    #[test]
    fn pages_that_come_one_by_one_are_no_stall_and_channels_share_a_link() {
        let start = Instant::now();
        let mut arrivals = Arrivals::over(2, 9, start);
        assert_eq!(arrivals.next(), start + STALL_TIMEOUT * 2);
        assert_eq!(arrivals.stalled(8, 0, start), None);
        assert_eq!(arrivals.stalled(7, 0, start + STALL_TIMEOUT * 2), None);
        assert_eq!(arrivals.stalled(7, 1, start + STALL_TIMEOUT * 3), None);
        assert_eq!(arrivals.stalled(7, 1, start + STALL_TIMEOUT * 4), None);
        let stalled = Some(STALL_TIMEOUT * 2);
        assert_eq!(arrivals.stalled(7, 1, start + STALL_TIMEOUT * 5), stalled);
    }
}
