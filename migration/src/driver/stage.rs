//! Staging at the destination: pages that exist before the guest stops, to receive the push in.
//!
//! Allocating and accounting a page costs more than receiving it, and on a host that gets its
//! memory from another hypervisor much more. A thread does it ahead, beginning while the guest
//! still runs at its source; the bulk thread receives into these pages and moves them into the
//! guest, where they stay.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_uffd::kernel::{Populator, Staging};

use super::text::in_full;
use crate::limits::{STAGED_AHEAD_BYTES_MAX, STAGING_STEP_BYTES, STAGING_TIMEOUT};
use crate::page::{Claims, Paging};

/// Pages to receive in, with the thread that makes them.
pub(super) struct Stage {
    staging: Staging,
    shared: Arc<Shared>,
    populating: Option<JoinHandle<()>>,
}

/// What the bulk thread and the populating thread tell each other.
struct Shared {
    /// Most bytes that are populated and not taken.
    ahead_max: usize,
    /// Bytes of pages that have not come yet: more are not needed.
    missing: Box<dyn Fn() -> usize + Send + Sync>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Pages are made when fewer than may be are ahead.
    Populating,
    /// As many are ahead as may be.
    Full,
    /// No more are made: all are, or the host has no more memory, or nobody wants them.
    Ended,
}

impl Stage {
    /// Begins to populate pages for `bytes` bytes, never more than `ahead_max` ahead of their use,
    /// nor more than `missing` says are to come.
    ///
    /// # Errors
    /// No address space or thread to be had.
    pub fn begin(
        bytes: usize,
        ahead_max: usize,
        missing: impl Fn() -> usize + Send + Sync + 'static,
    ) -> std::io::Result<Stage> {
        let (staging, populator) = Staging::new(bytes)?;
        let (state, changed) = (Mutex::new(State::Populating), Condvar::new());
        let shared = Arc::new(Shared { ahead_max, missing: Box::new(missing), state, changed });
        let populate = {
            let shared = Arc::clone(&shared);
            move || shared.populate(populator)
        };
        let populating = std::thread::Builder::new().name("godwit-stage".into()).spawn(populate)?;
        Ok(Stage { staging, shared, populating: Some(populating) })
    }

    /// Waits until as much is populated as may be ahead, or for `patience`.
    pub fn wait(&self, patience: Duration) {
        let populating = |state: &mut State| *state == State::Populating;
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, patience, populating);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The next `bytes` of populated pages, if there are.
    pub fn take(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let taken = self.staging.take(bytes)?;
        let mut state = self.shared.state();
        if *state == State::Full {
            *state = State::Populating;
            self.shared.changed.notify_all();
        }
        drop(state);
        Some(taken)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shared.set(State::Ended);
        if let Some(populating) = self.populating.take() {
            populating.join().expect("populating does not panic");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    fn populate(&self, mut populator: Populator) {
        while self.wait_for_room(&populator) {
            match populator.populate(STAGING_STEP_BYTES) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let error = in_full(&error);
                    tracing::warn!(error, "pages are not allocated ahead: the drain is slower");
                    break;
                }
            }
        }
        self.set(State::Ended);
    }

    /// False if nobody wants more pages.
    fn wait_for_room(&self, populator: &Populator) -> bool {
        let mut state = self.state();
        if *state == State::Populating && populator.ahead() >= self.ahead_max.min((self.missing)())
        {
            *state = State::Full;
            self.changed.notify_all();
        }
        let full = |state: &mut State| *state == State::Full;
        let state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        *state != State::Ended
    }
}

/// Pages for the push, allocated before the guest stops, in equal parts for all bulk channels.
/// Without them the guest comes as well.
pub(super) fn stages(
    claims: &Arc<Claims>,
    paging: Paging,
    bytes_max: usize,
    connections: u8,
) -> Vec<Stage> {
    let ahead_max = bytes_max.min(STAGED_AHEAD_BYTES_MAX) / usize::from(connections);
    if ahead_max < STAGING_STEP_BYTES {
        return Vec::new();
    }
    let bytes = paging.size.length_of(paging.count);
    let begin = |_| {
        let claims = Arc::clone(claims);
        let share = usize::from(connections);
        let missing = move || paging.size.length_of(claims.remaining()).div_ceil(share);
        Stage::begin(bytes, ahead_max, missing)
    };
    let stages: Vec<Stage> = match (0..connections).map(begin).collect() {
        Ok(stages) => stages,
        Err(error) => {
            let error: std::io::Error = error;
            tracing::warn!(%error, "pages cannot be allocated ahead: the drain is slower");
            Vec::new()
        }
    };
    let until = Instant::now() + STAGING_TIMEOUT;
    for stage in &stages {
        stage.wait(until.saturating_duration_since(Instant::now()));
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn pages_are_made_ahead_up_to_the_limit_and_on_as_they_are_used() {
        let (all, ahead) = (6 * STAGING_STEP_BYTES, 4 * STAGING_STEP_BYTES);
        let mut stage = Stage::begin(all, ahead, move || all).unwrap();
        stage.wait(PATIENCE);
        assert_eq!(*stage.shared.state(), State::Full);
        assert!(stage.take(ahead + STAGING_STEP_BYTES).is_none());
        let mut left = all;
        while left > 0 {
            stage.wait(PATIENCE);
            left -= stage.take(STAGING_STEP_BYTES).unwrap().len();
        }
        assert!(stage.take(1).is_none());
    }

    #[test]
    fn a_stage_that_nobody_wants_ends_at_once() {
        drop(Stage::begin(1 << 40, 1 << 30, || 1 << 40).unwrap());
    }

    #[test]
    fn no_more_pages_are_made_than_are_missing() {
        let all = 6 * STAGING_STEP_BYTES;
        let mut stage = Stage::begin(all, all, || STAGING_STEP_BYTES).unwrap();
        stage.wait(PATIENCE);
        assert_eq!(*stage.shared.state(), State::Full);
        assert!(stage.take(2 * STAGING_STEP_BYTES).is_none());
        assert!(stage.take(STAGING_STEP_BYTES).is_some());
    }
}
