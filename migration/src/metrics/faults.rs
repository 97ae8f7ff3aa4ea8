//! The latency of each fault, split into stages, and how long each thread was kept waiting.
//!
//! A fault is counted from the instant that its event was read. What lies before (the trap, the
//! queue of the userfaultfd) and behind (the woken thread getting a processor) is not seen from
//! here: only the guest can measure it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_uffd::page::PageIndex;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// The part of a fault's latency that one party is answerable for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// From reading the event to the request being handed to the kernel.
    Queue,
    /// To the source and back, without the time that the source took.
    Wire,
    /// From the source reading the request to it queueing the answer.
    Service,
    /// From reading the answer to the page being in place and its waiters woken.
    Install,
}

impl Stage {
    /// All of them, in the order in which they happen.
    pub const ALL: [Stage; 4] = [Stage::Queue, Stage::Wire, Stage::Service, Stage::Install];
}

/// Faults that were served, and those that wait.
#[derive(Debug)]
pub struct FaultLedger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    waiting: HashMap<PageIndex, Waiting>,
    /// Requests that are queued and not handed to the kernel.
    queued: Vec<PageIndex>,
    served: Latencies,
    stages: [Latencies; Stage::ALL.len()],
    blocked: BTreeMap<u32, Duration>,
}

/// A fault that is not served.
#[derive(Debug)]
struct Waiting {
    raised: Instant,
    asked: Option<Instant>,
    answered: Option<(Instant, Duration)>,
    threads: Vec<(u32, Instant)>,
}

/// Latencies of many faults.
#[derive(Debug)]
struct Latencies(Histogram<u64>);

/// How latencies are distributed, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50_us: f64,
    /// Nine of ten are faster.
    pub p90_us: f64,
    /// All but one of a hundred are faster.
    pub p99_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// All of them together.
    pub sum_us: f64,
}

/// The figures of a [`FaultLedger`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Pages that were asked for and came.
    pub count: u64,
    /// Pages that were asked for and have not come.
    pub outstanding: u64,
    /// How long the oldest of those waits, in microseconds.
    pub oldest_us: f64,
    /// From reading the event to the waiters being awake.
    pub latency: Quantiles,
    /// The same by stage, of the faults whose page came because it was asked for.
    pub stages: BTreeMap<Stage, Quantiles>,
    /// How long each thread was kept waiting, in microseconds, by its kernel thread id.
    pub blocked_us: BTreeMap<u32, u64>,
}

impl Latencies {
    fn new() -> Latencies {
        Latencies(Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("constant bounds"))
    }

    fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.0.saturating_record(ns.max(1));
    }

    fn quantiles(&self) -> Quantiles {
        let us = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let sum_us = self.0.mean() * self.0.len() as f64 / 1e3;
        let (p50_us, p90_us, p99_us) = (at(0.5), at(0.9), at(0.99));
        Quantiles { p50_us, p90_us, p99_us, max_us: us(self.0.max()), sum_us }
    }
}

impl Default for FaultLedger {
    fn default() -> FaultLedger {
        FaultLedger {
            inner: Mutex::new(Inner {
                waiting: HashMap::new(),
                queued: Vec::new(),
                served: Latencies::new(),
                stages: Stage::ALL.map(|_| Latencies::new()),
                blocked: BTreeMap::new(),
            }),
        }
    }
}

impl FaultLedger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `thread` waits for `page` since `now`. A page that is waited for keeps its first instant.
    pub fn raised(&self, page: PageIndex, thread: Option<u32>, now: Instant) {
        let mut inner = self.inner();
        let new = || Waiting { raised: now, asked: None, answered: None, threads: Vec::new() };
        let waiting = inner.waiting.entry(page).or_insert_with(new);
        if let Some(thread) = thread
            && !waiting.threads.iter().any(|&(known, _)| known == thread)
        {
            waiting.threads.push((thread, now));
        }
    }

    /// A request for `page` is queued.
    pub fn asked(&self, page: PageIndex) {
        self.inner().queued.push(page);
    }

    /// All requests that were queued are with the kernel at `now`.
    pub fn flushed(&self, now: Instant) {
        let inner = &mut *self.inner();
        for page in inner.queued.drain(..) {
            if let Some(waiting) = inner.waiting.get_mut(&page) {
                waiting.asked = Some(now);
            }
        }
    }

    /// The source has answered the request for `page`, which took it `service`.
    pub fn answered(&self, page: PageIndex, service: Duration, now: Instant) {
        if let Some(waiting) = self.inner().waiting.get_mut(&page) {
            waiting.answered = Some((now, service));
        }
    }

    /// `page` is in place and its waiters are awake at `now`.
    pub fn served(&self, page: PageIndex, now: Instant) {
        let inner = &mut *self.inner();
        let Some(waiting) = inner.waiting.remove(&page) else { return };
        inner.served.record(now - waiting.raised);
        for (thread, since) in waiting.threads {
            *inner.blocked.entry(thread).or_default() += now - since;
        }
        if let (Some(asked), Some((answered, service))) = (waiting.asked, waiting.answered) {
            let stages = [
                asked.saturating_duration_since(waiting.raised),
                answered.saturating_duration_since(asked).saturating_sub(service),
                service,
                now.saturating_duration_since(answered),
            ];
            for (latencies, stage) in inner.stages.iter_mut().zip(stages) {
                latencies.record(stage);
            }
        }
    }

    /// The figures so far.
    pub fn report(&self, now: Instant) -> FaultReport {
        let inner = self.inner();
        let oldest = inner.waiting.values().map(|waiting| now - waiting.raised).max();
        let mut blocked = inner.blocked.clone();
        for &(thread, since) in inner.waiting.values().flat_map(|waiting| &waiting.threads) {
            *blocked.entry(thread).or_default() += now - since;
        }
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let stages = Stage::ALL.into_iter().zip(&inner.stages);
        FaultReport {
            count: inner.served.0.len(),
            outstanding: inner.waiting.len() as u64,
            oldest_us: oldest.unwrap_or_default().as_secs_f64() * 1e6,
            latency: inner.served.quantiles(),
            stages: stages.map(|(stage, latencies)| (stage, latencies.quantiles())).collect(),
            blocked_us: blocked.into_iter().map(|(thread, time)| (thread, us(time))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, wanted: f64) -> bool {
        (got - wanted).abs() < 1.0
    }

    #[test]
    fn a_fault_raised_twice_counts_once_from_its_first_instant() {
        let ledger = FaultLedger::default();
        let start = Instant::now();
        let later = |us| start + Duration::from_micros(us);
        ledger.raised(PageIndex(1), Some(7), start);
        ledger.raised(PageIndex(1), Some(8), later(50));
        ledger.raised(PageIndex(1), Some(7), later(55));
        ledger.raised(PageIndex(2), Some(7), later(60));
        ledger.served(PageIndex(1), later(100));
        ledger.served(PageIndex(1), later(900));
        ledger.served(PageIndex(3), later(900));
        let report = ledger.report(later(160));
        assert_eq!((report.count, report.outstanding), (1, 1));
        assert!(close(report.latency.max_us, 100.0), "{report:?}");
        assert!(close(report.oldest_us, 100.0), "{report:?}");
        assert_eq!(report.blocked_us, BTreeMap::from([(7, 200), (8, 50)]));
    }

    #[test]
    fn a_fault_is_split_into_its_stages() {
        let ledger = FaultLedger::default();
        let start = Instant::now();
        let later = |us| start + Duration::from_micros(us);
        ledger.raised(PageIndex(1), None, start);
        ledger.asked(PageIndex(1));
        ledger.flushed(later(10));
        ledger.answered(PageIndex(1), Duration::from_micros(5), later(60));
        ledger.served(PageIndex(1), later(80));
        // Came with the push: nobody answered.
        ledger.raised(PageIndex(2), None, start);
        ledger.served(PageIndex(2), later(80));
        let report = ledger.report(later(100));
        let of = |stage| report.stages[&stage].max_us;
        assert!(close(of(Stage::Queue), 10.0) && close(of(Stage::Wire), 45.0), "{report:?}");
        assert!(close(of(Stage::Service), 5.0) && close(of(Stage::Install), 20.0), "{report:?}");
        assert_eq!(report.count, 2);
    }
}
