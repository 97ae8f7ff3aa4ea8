//! The gate between urgent and bulk work at the source.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Holds the bulk threads back while requests wait for an answer.
///
/// The urgent thread enters and leaves; a bulk thread passes between two runs. Passing an open gate
/// costs one load. The thread that leaves last pays for a lock only if somebody waits.
#[derive(Debug, Default)]
pub struct Gate {
    urgent: AtomicU32,
    waiting: AtomicU32,
    closed: AtomicBool,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    /// Urgent work exists until [`Gate::leave`].
    pub fn enter(&self) {
        self.urgent.fetch_add(1, Ordering::SeqCst);
    }

    /// One piece of urgent work is done.
    pub fn leave(&self) {
        let before = self.urgent.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "left more often than entered");
        if before == 1 && self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify();
        }
    }

    /// Ends bulk work: every pass fails from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Waits until no urgent work exists. False once the gate is closed.
    pub fn pass(&self) -> bool {
        if self.urgent.load(Ordering::SeqCst) > 0 && !self.closed.load(Ordering::SeqCst) {
            self.wait();
        }
        !self.closed.load(Ordering::SeqCst)
    }

    /// Waits for `time`, urgent work or not. False once the gate is closed, which ends the wait.
    pub fn pause(&self, time: Duration) -> bool {
        let open = |(): &mut ()| !self.closed.load(Ordering::SeqCst);
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_timeout_while(guard, time, open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        !self.closed.load(Ordering::SeqCst)
    }

    fn wait(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.urgent.load(Ordering::SeqCst) > 0 && !self.closed.load(Ordering::SeqCst) {
            guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn notify(&self) {
        // The lock is taken so that a waiter is either before its check or inside its wait.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn bulk_passes_only_while_no_urgent_work_exists() {
        let gate = Gate::default();
        assert!(gate.pass());
        gate.enter();
        let passed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(gate.pass());
                passed.store(true, Ordering::SeqCst);
            });
            while gate.waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!passed.load(Ordering::SeqCst));
            gate.leave();
        });
        assert!(passed.load(Ordering::SeqCst));
    }

    #[test]
    fn a_pause_takes_its_time() {
        let (gate, time, begin) = (Gate::default(), Duration::from_millis(5), Instant::now());
        assert!(gate.pause(time));
        assert!(begin.elapsed() >= time);
    }

    #[test]
    fn closing_frees_every_waiter_and_refuses_everybody() {
        let gate = Gate::default();
        gate.enter();
        std::thread::scope(|scope| {
            let waiters = [scope.spawn(|| gate.pass()), scope.spawn(|| gate.pause(Duration::MAX))];
            gate.close();
            assert!(waiters.into_iter().all(|waiter| !waiter.join().unwrap()));
        });
        gate.leave();
        assert!(!gate.pass());
    }
}
