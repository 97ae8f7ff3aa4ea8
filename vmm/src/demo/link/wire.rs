//! When bytes leave and when they arrive: the arithmetic of one direction of a link.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Link;

/// One direction of a link, shared by all connections.
#[derive(Debug)]
pub(super) struct Wire {
    link: Option<Link>,
    /// The bytes before have left by then.
    free_at: Mutex<Instant>,
}

/// The last of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passage {
    /// When it has left the sender.
    pub left: Instant,
    /// When it is at the receiver.
    pub arrives: Instant,
}

/// Bytes that are moved at once at most: a page frame of the bulk channel fits four times.
const CHUNK_BYTES_MAX: usize = 64 << 10;
/// And at least: a packet.
const CHUNK_BYTES_MIN: usize = 1460;
/// How long a chunk occupies the link. Another connection's bytes wait that long at most.
const CHUNK_TIME: Duration = Duration::from_micros(500);
/// What one direction of a connection may have under way at most, whatever the link.
const UNDER_WAY_MAX: usize = 64 << 20;

impl Wire {
    /// One direction of `link`; without one, bytes pass at once.
    pub fn new(link: Option<Link>) -> Wire {
        Wire { link, free_at: Mutex::new(Instant::now()) }
    }

    /// Bytes to move at once.
    pub fn chunk_bytes(&self) -> usize {
        let limit = self.link.map_or(CHUNK_BYTES_MAX, |link| bytes_in(link, CHUNK_TIME));
        limit.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    }

    /// Bytes that one direction of a connection may have under way: those that the link holds,
    /// and some more so that it need not stop.
    pub fn under_way_bytes(&self) -> usize {
        let held = self.link.map_or(0, |link| bytes_in(link, link.round_trip));
        (held + 8 * self.chunk_bytes()).min(UNDER_WAY_MAX)
    }

    /// Puts `bytes` on the wire at `now`, behind all those before them.
    pub fn send(&self, bytes: usize, now: Instant) -> Passage {
        let Some(link) = self.link else { return Passage { left: now, arrives: now } };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = now.max(*free_at) + time_of(link, bytes);
        Passage { left: *free_at, arrives: *free_at + link.round_trip / 2 }
    }
}

fn bytes_in(link: Link, time: Duration) -> usize {
    let bytes = u128::from(link.rate_bits_per_s) * time.as_micros() / 8_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX).min(UNDER_WAY_MAX)
}

fn time_of(link: Link, bytes: usize) -> Duration {
    let ns = bytes as u128 * 8_000_000_000 / u128::from(link.rate_bits_per_s);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(link: &str) -> Wire {
        Wire::new(Some(link.parse().unwrap()))
    }

    #[test]
    fn bytes_queue_behind_each_other_and_then_take_half_a_round_trip() {
        let wire = wire("8M,10ms");
        let now = Instant::now() + Duration::from_secs(1);
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(wire.send(1000, now), Passage { left: at(1), arrives: at(6) });
        assert_eq!(wire.send(2000, now), Passage { left: at(3), arrives: at(8) });
        assert_eq!(wire.send(1000, at(20)), Passage { left: at(21), arrives: at(26) });
    }

    #[test]
    fn without_a_link_nothing_waits() {
        let now = Instant::now();
        assert_eq!(Wire::new(None).send(1 << 30, now), Passage { left: now, arrives: now });
    }

    #[test]
    fn pieces_are_small_on_a_slow_link_and_what_is_under_way_is_bounded() {
        assert_eq!(wire("1M,1ms").chunk_bytes(), CHUNK_BYTES_MIN);
        assert_eq!(wire("100G,1ms").chunk_bytes(), CHUNK_BYTES_MAX);
        assert_eq!(wire("1000G,2s").under_way_bytes(), UNDER_WAY_MAX);
        assert!(wire("1G,2ms").under_way_bytes() > 250_000);
    }
}
