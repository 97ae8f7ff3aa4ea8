//! The locks of the model, in one place: with the feature `shuttle` they are those of a checker
//! that decides itself which thread goes on, and tries many orders.
//!
//! Locks are taken in this order, which is the kernel's:
//!
//! 1. the map of an address space (`mmap_lock`), for reading or writing;
//! 2. one VMA, for reading by those who fill or fault, for writing by those who hold the map for
//!    writing; a reader lets go of the map once it has its VMA;
//! 3. a context's `map_changing`;
//! 4. a file's page cache;
//! 5. a folio's lock, except under a page-table lock, where it is only ever tried;
//! 6. a page table; two of them in address order;
//! 7. a context's queues;
//! 8. the bytes of a folio, and the flag of a sleeper.
//!
//! No lock is held while a caller is parked. A lock whose holder has panicked is taken all the
//! same: the panic is already on its way to whoever joins that thread.

use std::sync::PoisonError;

#[cfg(feature = "shuttle")]
use shuttle::{sync, thread};
#[cfg(not(feature = "shuttle"))]
use std::{sync, thread};

pub(super) use sync::Arc;
pub(super) use sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(super) use sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
pub(super) use thread::yield_now;

/// A lock for one.
#[derive(Debug, Default)]
pub(super) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Puts a value under a lock.
    pub(super) const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock for many readers or one writer.
#[derive(Debug, Default)]
pub(super) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// Puts a value under a lock.
    pub(super) const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }

    /// Waits for a reader's share.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the whole lock.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock of a page. Its holders never sleep, so who waits for it only lets others run.
#[derive(Debug, Default)]
pub(super) struct PageLock {
    held: AtomicBool,
}

/// Holds the lock of a page.
#[derive(Debug)]
pub(super) struct PageGuard<'a>(&'a PageLock);

impl PageLock {
    /// Takes the lock if nobody has it.
    pub(super) fn try_lock(&self) -> Option<PageGuard<'_>> {
        let taken = self.held.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst);
        taken.is_ok().then(|| PageGuard(self))
    }

    /// Somebody has it.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Waits until nobody has it.
    pub(super) fn wait(&self) {
        while self.is_held() {
            yield_now();
        }
    }
}

impl Drop for PageGuard<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::SeqCst);
    }
}

/// Wakes threads that wait for what a lock protects to change.
#[derive(Debug, Default)]
pub(super) struct Condition(sync::Condvar);

impl Condition {
    /// Wakes all who wait.
    pub(super) fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Lets go of the lock until it was notified.
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flag that is raised once and that threads can wait for. The core raises it and never waits.
#[derive(Debug, Default)]
pub(super) struct Flag {
    raised: Mutex<bool>,
    changed: Condition,
}

impl Flag {
    /// Raises the flag; all who wait go on.
    pub(super) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_all();
    }

    /// Whether it was raised.
    pub(super) fn is_raised(&self) -> bool {
        *self.raised.lock()
    }

    /// Waits until it is raised.
    pub(super) fn wait(&self) {
        let mut raised = self.raised.lock();
        while !*raised {
            raised = self.changed.wait(raised);
        }
    }
}
