//! How long a peer is waited for, and when it hears from us.

use std::time::{Duration, Instant};

use crate::limits::{ALIVE_INTERVAL, PEER_TIMEOUT};

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
}
