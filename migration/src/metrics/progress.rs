//! The progress of one migration, written by its threads and read by whoever asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use godwit_uffd::page::{Gpa, PageIndex, PageRun, PageSize};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::classes::{ClassCounters, Classes};
use super::{FaultLedger, FaultReport};
use crate::limits::LOST_RUNS_NAMED_MAX;
use crate::page::{Claims, Class, Sent};
use crate::proto::{MigrationState, Outcome, Phase};
use crate::wire::{Encoding, Mode, Offer, RunHead};

/// Pages of the guest, by what has become of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// The size of each, in bytes; 0 until the guest is known.
    pub bytes: u32,
    /// All pages of the guest.
    pub total: u32,
    /// Not sent (source), not installed (destination).
    pub remaining: u32,
    /// Sent or installed as zero.
    pub zero: u32,
    /// Sent or installed with contents.
    pub data: u32,
    /// Pages that the source could not read: lost.
    pub poisoned: u32,
    /// Of all these, sent because they were asked for.
    pub urgent: u32,
}

/// Writes that waited until they were allowed, while memory was sent in rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritesHeld {
    /// All of them: the first to each page in a round, by each writer.
    pub writes: u64,
    /// Pages that were pushed before all others because a write waited for that.
    pub pushed_first: u64,
}

/// What is known about a migration at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How the guest is moved, once that is known.
    pub mode: Option<Mode>,
    /// Which guest, once that is known.
    pub guest: Option<Uuid>,
    /// Which transfer of it; 0 while that is unknown.
    pub transfer: u64,
    /// Its state, in the words of QMP.
    pub state: MigrationState,
    /// How often the peer was lost after the switchover.
    pub interruptions: u32,
    /// The other side.
    pub peer: String,
    /// When each phase was reached, in microseconds of CLOCK_MONOTONIC of this host.
    pub reached_us: BTreeMap<Phase, u64>,
    /// Pages by class.
    pub pages: Pages,
    /// Pages and bytes by how they travelled.
    pub classes: Classes,
    /// Bytes of page frames, sent or received.
    pub bytes: u64,
    /// Writes of the guest that were held up, at a source that notes writes so.
    pub writes_held: WritesHeld,
    /// Pages that travelled with contents since the guest runs at the destination.
    pub drained: u64,
    /// Faults, at the destination.
    pub faults: Option<FaultReport>,
    /// Why it failed or stands still.
    pub error: Option<String>,
}

/// CLOCK_MONOTONIC in microseconds: comparable between processes of one host.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// What the counts of a side are read from.
#[derive(Debug, Clone)]
enum Counts {
    None,
    Source(Arc<Sent>, PageSize),
    Destination(Arc<Claims>, PageSize),
}

/// Something in a migration that whoever watches it is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It stands here now.
    State(MigrationState),
    /// This instant is reached, perhaps again.
    Phase(Phase),
    /// This round of pre-copy begins.
    Round(u32),
}

/// What is called with each change, and with everything as of then.
type Watcher = Box<dyn Fn(Change, &Report) + Send + Sync>;

/// Who is told of changes.
struct Watch(Watcher);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// The progress of one migration.
#[derive(Debug)]
pub struct Progress {
    peer: String,
    inner: Mutex<Inner>,
    classes: ClassCounters,
    urgent: AtomicU64,
    bytes: AtomicU64,
    lost_runs: AtomicU32,
    writes_held: AtomicU64,
    held_pages_pushed: AtomicU64,
    faults: FaultLedger,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Inner {
    mode: Option<Mode>,
    guest: Option<(Uuid, u64)>,
    state: MigrationState,
    /// The last state, which is not shown yet.
    end: Option<MigrationState>,
    interruptions: u32,
    reached_us: BTreeMap<Phase, u64>,
    counts: Counts,
    /// Pages that had travelled with contents when the guest changed hands.
    data_before: Option<u64>,
    error: Option<String>,
}

impl Progress {
    /// Nothing has happened yet with `peer`.
    pub fn new(peer: String) -> Progress {
        let inner = Inner {
            mode: None,
            guest: None,
            state: MigrationState::Setup,
            end: None,
            interruptions: 0,
            reached_us: BTreeMap::new(),
            counts: Counts::None,
            data_before: None,
            error: None,
        };
        Progress {
            peer,
            inner: Mutex::new(inner),
            classes: ClassCounters::default(),
            urgent: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost_runs: AtomicU32::new(0),
            writes_held: AtomicU64::new(0),
            held_pages_pushed: AtomicU64::new(0),
            faults: FaultLedger::default(),
            watch: None,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `phase` is reached now.
    pub fn reached(&self, phase: Phase) {
        tracing::info!(peer = self.peer, ?phase, "migration");
        let now = monotonic_us();
        let mut inner = self.inner();
        inner.reached_us.entry(phase).or_insert(now);
        match phase {
            Phase::Running => inner.data_before = Some(self.classes.read().data_pages()),
            Phase::Resumed => inner.error = None,
            _ => {}
        }
        drop(inner);
        self.changed(Change::Phase(phase));
    }

    /// Tells `watch` of every change from now on. It is called by the threads that serve the guest,
    /// so it must not wait.
    pub fn watched_by(self, watch: impl Fn(Change, &Report) + Send + Sync + 'static) -> Progress {
        Progress { watch: Some(Watch(Box::new(watch))), ..self }
    }

    fn changed(&self, change: Change) {
        if let Some(Watch(watch)) = &self.watch {
            watch(change, &self.report());
        }
    }

    /// Which guest is moved, and how.
    pub fn is_of(&self, offer: &Offer) {
        let mut inner = self.inner();
        inner.mode = Some(offer.mode);
        inner.guest = Some((offer.guest, offer.transfer));
        let state = inner.state;
        drop(inner);
        self.changed(Change::State(state));
    }

    /// Where the migration stands now.
    pub fn stands(&self, state: MigrationState) {
        let before = std::mem::replace(&mut self.inner().state, state);
        if before != state {
            self.changed(Change::State(state));
        }
    }

    /// A round of pre-copy begins; they count from 1.
    pub fn round(&self, number: u32) {
        self.changed(Change::Round(number));
    }

    /// The peer is lost for now, and why.
    pub fn interrupted(&self, reason: &str) {
        tracing::warn!(
            peer = self.peer,
            reason,
            "the peer is lost; the guest is kept safe on both sides until it is back"
        );
        let mut inner = self.inner();
        inner.interruptions += 1;
        inner.error = Some(reason.to_owned());
    }

    /// When `phase` was reached, in microseconds of CLOCK_MONOTONIC.
    pub fn reached_at(&self, phase: Phase) -> Option<u64> {
        self.inner().reached_us.get(&phase).copied()
    }

    /// The migration ends now. Its state stays what it was until [`Progress::show_end`]: whoever
    /// reads that it has ended relies on all that follows from it.
    pub fn ended(&self, outcome: &Outcome) {
        let phase = outcome.phase();
        tracing::info!(peer = self.peer, ?phase, "migration");
        let now = monotonic_us();
        let mut inner = self.inner();
        inner.reached_us.entry(phase).or_insert(now);
        inner.error = outcome.reason().map(str::to_owned);
        inner.end = Some(outcome.migration_state());
        drop(inner);
        self.changed(Change::Phase(phase));
    }

    /// Whether it has ended, shown or not.
    pub fn has_ended(&self) -> bool {
        self.inner().end.is_some()
    }

    /// The end becomes the state.
    pub fn show_end(&self) {
        let end = self.inner().end;
        if let Some(end) = end {
            self.stands(end);
        }
    }

    /// The source counts what it sends, in pages of this size.
    pub fn count_sent(&self, sent: Arc<Sent>, size: PageSize) {
        self.inner().counts = Counts::Source(sent, size);
    }

    /// The destination counts what it installs, in pages of this size.
    pub fn count_claims(&self, claims: Arc<Claims>, size: PageSize) {
        self.inner().counts = Counts::Destination(claims, size);
    }

    /// A run of pages was sent, or has come. Lost pages are named in the log by the address that
    /// `gpa_of` gives for them: the first runs, then no more.
    pub fn run(&self, head: &RunHead, gpa_of: impl FnOnce(PageIndex) -> Option<Gpa>) {
        self.classes.add(head);
        if head.encoding == Encoding::Poison {
            self.warn_of_lost(head.run, gpa_of(head.run.first));
        }
    }

    fn warn_of_lost(&self, run: PageRun, gpa: Option<Gpa>) {
        let (peer, pages) = (&self.peer, run.count);
        let at = gpa.map_or_else(|| run.to_string(), |gpa| format!("{:#x}", gpa.0));
        match self.lost_runs.fetch_add(1, Ordering::Relaxed) {
            0..LOST_RUNS_NAMED_MAX => {
                tracing::warn!(peer, pages, at, "memory of the guest cannot be read at the source");
            }
            LOST_RUNS_NAMED_MAX => tracing::warn!(peer, "more of it cannot; see the status"),
            _ => {}
        }
    }

    /// Pages went or came because they were asked for.
    pub fn pages_urgent(&self, pages: u32) {
        self.urgent.fetch_add(pages.into(), Ordering::Relaxed);
    }

    /// Bytes of page frames went or came.
    pub fn bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Writes of the guest are held up.
    pub fn writes_held(&self, writes: usize) {
        self.writes_held.fetch_add(writes as u64, Ordering::Relaxed);
    }

    /// A page goes before all others because a write waits for that.
    pub fn held_page_pushed(&self) {
        self.held_pages_pushed.fetch_add(1, Ordering::Relaxed);
    }

    /// The faults of this migration.
    pub fn faults(&self) -> &FaultLedger {
        &self.faults
    }

    /// Everything, as of now.
    pub fn report(&self) -> Report {
        let inner = self.inner();
        let classes = self.classes.read();
        let count = |pages: u64| u32::try_from(pages).unwrap_or(u32::MAX);
        let in_bytes = |size: PageSize| count(size.bytes() as u64);
        let urgent = count(self.urgent.load(Ordering::Relaxed));
        let (pages, faults) = match &inner.counts {
            Counts::None => (Pages::default(), None),
            Counts::Source(sent, size) => {
                let (total, remaining) = (sent.page_count(), sent.remaining());
                let bytes = in_bytes(*size);
                let (zero, data) = (count(classes.zero.pages), count(classes.data_pages()));
                let poisoned = count(classes.poisoned.pages);
                (Pages { bytes, total, remaining, zero, data, poisoned, urgent }, None)
            }
            Counts::Destination(claims, size) => {
                let (total, remaining) = (claims.page_count(), claims.remaining());
                let bytes = in_bytes(*size);
                let [zero, data, poisoned] =
                    [Class::Zero, Class::Data, Class::Poisoned].map(|c| claims.installed(c));
                let pages = Pages { bytes, total, remaining, zero, data, poisoned, urgent };
                (pages, Some(self.faults.report(Instant::now())))
            }
        };
        Report {
            mode: inner.mode,
            guest: inner.guest.map(|(guest, _)| guest),
            transfer: inner.guest.map_or(0, |(_, transfer)| transfer),
            state: inner.state,
            interruptions: inner.interruptions,
            peer: self.peer.clone(),
            reached_us: inner.reached_us.clone(),
            pages,
            classes,
            bytes: self.bytes.load(Ordering::Relaxed),
            writes_held: WritesHeld {
                writes: self.writes_held.load(Ordering::Relaxed),
                pushed_first: self.held_pages_pushed.load(Ordering::Relaxed),
            },
            drained: inner.data_before.map_or(0, |before| classes.data_pages() - before),
            faults,
            error: inner.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use godwit_uffd::page::{PageIndex, PageRun};

    use super::*;
    use crate::wire::Encoding;

    #[test]
    fn pages_of_rounds_are_not_part_of_the_drain() {
        let progress = Progress::new("peer".into());
        let two = PageRun { first: PageIndex(0), count: 2 };
        let word = RunHead::new(PageSize::BASE, two, Encoding::Word, &[1; 8]);
        let zero = RunHead::new(PageSize::BASE, two, Encoding::Zero, &[]);
        progress.run(&word, |_| None);
        assert_eq!(progress.report().drained, 0);
        progress.reached(Phase::Running);
        assert_eq!(progress.report().drained, 0);
        progress.run(&word, |_| None);
        progress.run(&zero, |_| None);
        // A lost peer that is back does not begin the drain anew.
        progress.reached(Phase::Resumed);
        progress.run(&word, |_| None);
        assert_eq!(progress.report().drained, 4);
    }

    #[test]
    fn a_watcher_is_told_of_each_change_once() {
        let (told, changes) = mpsc::channel();
        let progress = Progress::new("peer".into())
            .watched_by(move |change, report| told.send((change, report.state)).expect("a test"));
        progress.stands(MigrationState::Setup);
        progress.round(1);
        progress.stands(MigrationState::Active);
        progress.stands(MigrationState::Active);
        progress.ended(&Outcome::Cancelled);
        progress.show_end();
        let (active, cancelled) = (MigrationState::Active, MigrationState::Cancelled);
        let told: Vec<_> = changes.try_iter().collect();
        let expected = [
            (Change::Round(1), MigrationState::Setup),
            (Change::State(active), active),
            (Change::Phase(Phase::Failed), active),
            (Change::State(cancelled), cancelled),
        ];
        assert_eq!(told, expected);
    }
}
