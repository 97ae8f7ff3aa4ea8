//! The progress of one restore, written by its threads and read by whoever asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{FaultLedger, FaultReport, Pages, monotonic_us};
use crate::page::{Claims, Class};

/// Snapshots have base pages.
const PAGE_BYTES: u32 = 4096;

/// Where a restore stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreState {
    /// The guest has not run yet.
    Loading,
    /// It runs, and pages that it has not got are served to it.
    Serving,
    /// It runs on the file of the snapshot, which the kernel pages in.
    Mapped,
    /// It has all of its pages.
    Resident,
    /// It cannot go on, or not be trusted.
    Failed,
}

/// The instants of a restore. They are different: each says something that the others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The snapshot was found to be whole, but for the contents of its memory.
    Opened,
    /// The guest runs.
    Restored,
    /// What the guest touched first was recorded.
    Recorded,
    /// The recorded working set is in place.
    WorkingSet,
    /// Every page is in place.
    Resident,
    /// The checksum of every page that has contents was found right, where nothing else says so.
    Checked,
}

/// What is known about a restore at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreReport {
    /// Where it stands.
    pub state: RestoreState,
    /// When each mark was reached, in microseconds of CLOCK_MONOTONIC.
    pub reached_us: BTreeMap<Mark, u64>,
    /// Pages by class; none while nobody counts them.
    pub pages: Option<Pages>,
    /// Pages whose contents were not those that were saved.
    pub damaged: u32,
    /// Faults that were served.
    pub faults: Option<FaultReport>,
    /// Why it failed, or what was found.
    pub error: Option<String>,
}

/// The progress of one restore.
#[derive(Debug)]
pub struct RestoreProgress {
    inner: Mutex<Inner>,
    requested: AtomicU32,
    damaged: AtomicU32,
    faults: FaultLedger,
}

#[derive(Debug)]
struct Inner {
    state: RestoreState,
    reached_us: BTreeMap<Mark, u64>,
    claims: Option<Arc<Claims>>,
    error: Option<String>,
}

impl Default for RestoreProgress {
    fn default() -> RestoreProgress {
        let inner = Inner {
            state: RestoreState::Loading,
            reached_us: BTreeMap::new(),
            claims: None,
            error: None,
        };
        RestoreProgress {
            inner: Mutex::new(inner),
            requested: AtomicU32::new(0),
            damaged: AtomicU32::new(0),
            faults: FaultLedger::default(),
        }
    }
}

impl RestoreProgress {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `mark` is reached now.
    pub fn reached(&self, mark: Mark) {
        let now = monotonic_us();
        self.inner().reached_us.entry(mark).or_insert(now);
    }

    /// When `mark` was reached, in microseconds of CLOCK_MONOTONIC.
    pub fn reached_at(&self, mark: Mark) -> Option<u64> {
        self.inner().reached_us.get(&mark).copied()
    }

    /// Where the restore stands now. One that has failed stays so.
    pub fn stands(&self, state: RestoreState) {
        let mut inner = self.inner();
        if inner.state != RestoreState::Failed {
            inner.state = state;
        }
    }

    /// Where it stands.
    pub fn state(&self) -> RestoreState {
        self.inner().state
    }

    /// The restore has failed.
    pub fn failed(&self, why: String) {
        let mut inner = self.inner();
        (inner.state, inner.error) = (RestoreState::Failed, Some(why));
    }

    /// Pages are counted by these claims.
    pub fn count_claims(&self, claims: Arc<Claims>) {
        self.inner().claims = Some(claims);
    }

    /// A page was installed because a fault asked for it.
    pub fn page_requested(&self) {
        self.requested.fetch_add(1, Ordering::Relaxed);
    }

    /// A page is not what was saved. Returns how many were so before it.
    pub fn page_damaged(&self, what: &str) -> u32 {
        self.inner().error.get_or_insert_with(|| what.to_owned());
        self.damaged.fetch_add(1, Ordering::Relaxed)
    }

    /// The faults of the guest.
    pub fn faults(&self) -> &FaultLedger {
        &self.faults
    }

    /// Everything, as of now.
    pub fn report(&self) -> RestoreReport {
        let inner = self.inner();
        let pages = inner.claims.as_ref().map(|claims| {
            let [zero, data, poisoned] =
                [Class::Zero, Class::Data, Class::Poisoned].map(|c| claims.installed(c));
            let (total, remaining) = (claims.page_count(), claims.remaining());
            let urgent = self.requested.load(Ordering::Relaxed);
            Pages { bytes: PAGE_BYTES, total, remaining, zero, data, poisoned, urgent }
        });
        RestoreReport {
            state: inner.state,
            reached_us: inner.reached_us.clone(),
            faults: pages.map(|_| self.faults.report(Instant::now())),
            pages,
            damaged: self.damaged.load(Ordering::Relaxed),
            error: inner.error.clone(),
        }
    }
}
