//! Latencies as the guest counts them: buckets of an eighth of an octave.

use serde::{Deserialize, Serialize};

/// A histogram of TSC cycles; bucket numbers are the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
}

/// Percentiles in microseconds. The latencies of a bucket are taken as spread evenly over it,
/// because a bucket is an eighth wide and two medians that are compared may be closer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// How many there were.
    pub count: u64,
    /// Half of them took at most this long.
    pub p50_us: f64,
    /// 90 % of them took at most this long.
    pub p90_us: f64,
    /// 99 % of them took at most this long.
    pub p99_us: f64,
    /// All of them took at most this long.
    pub max_us: f64,
}

impl Histogram {
    /// Adds `count` latencies of a bucket.
    pub fn add(&mut self, bucket: u64, count: u64) {
        let Ok(bucket) = usize::try_from(bucket.min(BUCKET_MAX)) else { return };
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += count;
    }

    /// The percentiles of those latencies that are in buckets whose middle is at least `least_us`.
    pub fn latencies(&self, least_us: f64, tsc_khz: u64) -> Latencies {
        let micros = |cycles: f64| cycles * 1000.0 / tsc_khz as f64;
        let slow: Vec<(usize, u64)> = self
            .counts
            .iter()
            .copied()
            .enumerate()
            .filter(|(bucket, count)| *count > 0 && micros(middle(*bucket)) >= least_us)
            .collect();
        let count: u64 = slow.iter().map(|(_, count)| count).sum();
        let at = |percent: u64| micros(percentile(&slow, (count * percent).div_ceil(100)));
        Latencies { count, p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us: at(100) }
    }
}

/// The cycles of the latency that is number `rank`, from 1, in sorted buckets; 0 without any.
fn percentile(sorted: &[(usize, u64)], rank: u64) -> f64 {
    let mut before = 0;
    for (bucket, count) in sorted {
        if before + count >= rank {
            let part = ((rank - before) as f64 - 0.5) / *count as f64;
            return start(*bucket) + part * (start(bucket + 1) - start(*bucket));
        }
        before += count;
    }
    0.0
}

/// The cycles at which a bucket starts: bucket 0 at 64, and 8 make an octave.
fn start(bucket: usize) -> f64 {
    let step = f64::from(2_u32).powf((bucket / 8) as f64 + 3.0);
    (8 + bucket % 8) as f64 * step
}

fn middle(bucket: usize) -> f64 {
    f64::midpoint(start(bucket), start(bucket + 1))
}

/// The guest's last bucket, for what takes seconds.
const BUCKET_MAX: u64 = 223;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_the_guests() {
        assert!((middle(0) - 68.0).abs() < 1e-9, "64 to 72 cycles");
        assert!((middle(8) - 136.0).abs() < 1e-9, "128 to 144 cycles");
        assert!((middle(80) - 69_632.0).abs() < 1e-9, "65536 to 73728 cycles");
    }

    #[test]
    fn percentiles_are_of_the_slow_ones_only() {
        let mut histogram = Histogram::default();
        histogram.add(0, 1_000_000);
        histogram.add(80, 90);
        histogram.add(96, 9);
        histogram.add(104, 1);
        let found = histogram.latencies(40.0, 1_000_000);
        assert_eq!(found.count, 100);
        assert!((found.p50_us - (65.536 + 8.192 * 49.5 / 90.0)).abs() < 1e-6, "inside its bucket");
        assert!((found.p90_us - (65.536 + 8.192 * 89.5 / 90.0)).abs() < 1e-6);
        assert!((found.p99_us - (262.144 + 32.768 * 8.5 / 9.0)).abs() < 1e-6);
        assert!((found.max_us - 557.056).abs() < 1e-6, "the middle of a bucket that holds one");
    }

    #[test]
    fn no_latencies_have_no_percentiles() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.latencies(40.0, 2_300_000), Latencies::default());
        histogram.add(u64::MAX, 1);
        assert_eq!(histogram.latencies(40.0, 2_300_000).count, 1);
    }
}
