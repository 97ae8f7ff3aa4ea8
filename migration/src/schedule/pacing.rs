//! A cap on bandwidth: when the next bytes may be sent.

use std::time::{Duration, Instant};

/// What was not used may be made up for as long as this: threads wake late, and pages take a while
/// to be read. At a gigabit a second it is 2.5 MB.
const BURST: Duration = Duration::from_millis(20);

/// A token bucket that may be overdrawn: whoever finds it filled may send one run of whatever
/// length, and the next waits for as long as that has cost. So pages are taken only when they can
/// be sent at once, and nobody who asks for one of them waits for tokens.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s: u64,
    /// What was sent is paid for by then.
    paid_at: Option<Instant>,
}

impl Pacer {
    /// A cap of `bytes_per_s`, at least 1.
    pub fn new(bytes_per_s: u64) -> Pacer {
        assert!(bytes_per_s > 0, "nothing would ever be sent");
        Pacer { bytes_per_s, paid_at: None }
    }

    /// How long to wait at `now` before sending.
    pub fn wait(&self, now: Instant) -> Duration {
        self.paid_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// `bytes` are sent at `now`.
    pub fn sent(&mut self, bytes: usize, now: Instant) {
        let cost_ns = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost = Duration::from_nanos(u64::try_from(cost_ns).unwrap_or(u64::MAX));
        // Time that passed unused counts up to the burst. A clock that is younger has none to give.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let begin = self.paid_at.map_or(earliest, |at| at.max(earliest));
        self.paid_at = Some(begin + cost);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_was_sent_is_waited_for_less_a_burst() {
        let (mut pacer, now) = (Pacer::new(1_000_000), Instant::now() + 1000 * MS);
        assert_eq!(pacer.wait(now), Duration::ZERO);
        pacer.sent(100_000, now);
        assert_eq!(pacer.wait(now), 80 * MS);
        assert_eq!(pacer.wait(now + 30 * MS), 50 * MS);
        pacer.sent(10_000, now + 30 * MS);
        assert_eq!(pacer.wait(now + 90 * MS), Duration::ZERO);
    }

    #[test]
    fn a_long_rest_is_not_made_up_for() {
        let (mut pacer, now) = (Pacer::new(1_000_000), Instant::now());
        pacer.sent(100_000, now);
        let later = now + 5000 * MS;
        pacer.sent(100_000, later);
        assert_eq!(pacer.wait(later), 80 * MS);
    }

    proptest! {
        /// Whoever waits as told never gets above the cap, but for a burst and the last run, nor
        /// falls behind it while there is something to send.
        #[test]
        fn the_rate_is_the_cap(
            late in 0u32..10,
            runs in prop::collection::vec(500_000usize..2_000_000, 1..50),
        ) {
            let (mut pacer, begin) = (Pacer::new(50_000_000), Instant::now());
            let (mut now, mut sent) = (begin, 0u128);
            for &bytes in &runs {
                now += pacer.wait(now) + late * MS;
                pacer.sent(bytes, now);
                let earned = (now - begin + BURST).as_micros() * 50;
                prop_assert!(sent <= earned + 50, "{sent} of {earned}");
                sent += bytes as u128;
            }
            now += pacer.wait(now);
            prop_assert!((now - begin).as_micros() * 50 <= sent + u128::from(late) * 50_000 + 5000);
        }
    }
}
