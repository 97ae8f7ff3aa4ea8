//! The latency of each fault, from the instant that its event was read to the page being in place
//! and its waiters awake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use godwit_uffd::page::PageIndex;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Faults that were served, and those that wait.
#[derive(Debug)]
pub struct FaultLedger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    waiting: HashMap<PageIndex, Instant>,
    served_ns: Histogram<u64>,
}

/// The figures of a [`FaultLedger`]; latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Pages that were asked for and came.
    pub count: u64,
    /// Pages that were asked for and have not come.
    pub outstanding: u64,
    /// How long the oldest of those waits.
    pub oldest_us: f64,
    /// The median latency.
    pub p50_us: f64,
    /// Nine of ten are faster.
    pub p90_us: f64,
    /// All but one of a hundred are faster.
    pub p99_us: f64,
    /// The slowest.
    pub max_us: f64,
}

impl Default for FaultLedger {
    fn default() -> FaultLedger {
        let served_ns = Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("constant bounds");
        FaultLedger { inner: Mutex::new(Inner { waiting: HashMap::new(), served_ns }) }
    }
}

impl FaultLedger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `page` was asked for at `now`. A page that is asked for again keeps its first instant.
    pub fn raised(&self, page: PageIndex, now: Instant) {
        self.inner().waiting.entry(page).or_insert(now);
    }

    /// `page` is in place and its waiters are awake at `now`.
    pub fn served(&self, page: PageIndex, now: Instant) {
        let mut inner = self.inner();
        if let Some(raised) = inner.waiting.remove(&page) {
            let ns = u64::try_from((now - raised).as_nanos()).unwrap_or(LATENCY_NS_MAX);
            inner.served_ns.saturating_record(ns.max(1));
        }
    }

    /// The figures so far.
    pub fn report(&self, now: Instant) -> FaultReport {
        let inner = self.inner();
        let us = |ns: u64| std::time::Duration::from_nanos(ns).as_secs_f64() * 1e6;
        let at = |quantile| us(inner.served_ns.value_at_quantile(quantile));
        let oldest = inner.waiting.values().map(|raised| now - *raised).max().unwrap_or_default();
        FaultReport {
            count: inner.served_ns.len(),
            outstanding: inner.waiting.len() as u64,
            oldest_us: oldest.as_secs_f64() * 1e6,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: us(inner.served_ns.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fault_raised_twice_counts_once_from_its_first_instant() {
        let ledger = FaultLedger::default();
        let start = Instant::now();
        let later = |us| start + Duration::from_micros(us);
        ledger.raised(PageIndex(1), start);
        ledger.raised(PageIndex(1), later(50));
        ledger.raised(PageIndex(2), later(60));
        ledger.served(PageIndex(1), later(100));
        ledger.served(PageIndex(1), later(900));
        ledger.served(PageIndex(3), later(900));
        let report = ledger.report(later(160));
        assert_eq!((report.count, report.outstanding), (1, 1));
        assert!((report.max_us - 100.0).abs() < 1.0, "{report:?}");
        assert!((report.oldest_us - 100.0).abs() < 1.0, "{report:?}");
    }
}
