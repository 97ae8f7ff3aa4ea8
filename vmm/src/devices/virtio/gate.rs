//! Where a device's thread learns whether it may work.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a device's thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Touch nothing.
    Parked = 0,
    /// Serve the queues.
    Running = 1,
    /// End.
    Gone = 2,
}

struct State {
    wanted: Wanted,
    /// The thread is between [`Gate::enter`] and [`Gate::leave`].
    busy: bool,
    /// There is no thread, or none any more.
    ended: bool,
}

/// The lock in it is held for a few instructions only. A thread that waits for a notification is
/// outside of the gate, so a pause does not have to wake it.
pub(super) struct Gate {
    state: Mutex<State>,
    /// `State::wanted`, for a look without the lock.
    wanted: AtomicU8,
    changed: Condvar,
}

impl Gate {
    /// A closed gate without a thread.
    pub(super) fn new() -> Gate {
        Gate {
            state: Mutex::new(State { wanted: Wanted::Parked, busy: false, ended: true }),
            wanted: AtomicU8::new(Wanted::Parked as u8),
            changed: Condvar::new(),
        }
    }

    /// There is a thread from now on, which will call [`Gate::end`].
    pub(super) fn begin(&self) {
        self.lock().ended = false;
    }

    /// What is wanted now. The thread asks this between two requests.
    pub(super) fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::SeqCst) {
            0 => Wanted::Parked,
            1 => Wanted::Running,
            _ => Wanted::Gone,
        }
    }

    /// Says what is wanted. Whoever was told to go goes. Returns without waiting for the thread.
    pub(super) fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted != Wanted::Gone {
            state.wanted = wanted;
            self.wanted.store(wanted as u8, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// The thread waits until it may work. Returns whether it may; if not, it has to end.
    pub(super) fn enter(&self) -> bool {
        let mut state = self.lock();
        while state.wanted == Wanted::Parked {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = state.wanted == Wanted::Running;
        state.busy
    }

    /// The thread has nothing of the guest in hand any more.
    pub(super) fn leave(&self) {
        self.lock().busy = false;
        self.changed.notify_all();
    }

    /// The thread rests for `limit`, or until something else is wanted.
    pub(super) fn rest(&self, limit: Duration) {
        let state = self.lock();
        let running = |state: &mut State| state.wanted == Wanted::Running;
        drop(self.changed.wait_timeout_while(state, limit, running));
    }

    /// The thread ends.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        (state.busy, state.ended) = (false, true);
        self.changed.notify_all();
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().busy
    }

    /// Waits until no request is under way. Returns whether that was so before the deadline.
    pub(super) fn wait_idle(&self, deadline: Instant) -> bool {
        self.wait_while(deadline, |state| state.busy)
    }

    /// Waits for the end of the thread. Returns whether that came before the deadline.
    pub(super) fn wait_ended(&self, deadline: Instant) -> bool {
        self.wait_while(deadline, |state| !state.ended)
    }

    fn wait_while(&self, deadline: Instant, condition: fn(&State) -> bool) -> bool {
        let limit = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| condition(state));
        !condition(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
