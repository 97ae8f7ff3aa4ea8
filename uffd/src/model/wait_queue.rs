//! Threads that wait for their faults to be resolved: the queues of a context, and the rule that
//! says which of the waiters a range wakes (`userfaultfd_wait_queue`, `userfaultfd_wake_range`).

use std::collections::VecDeque;
use std::ops::Range;

use super::sync::{Arc, AtomicUsize, Flag, Mutex, Ordering};
use crate::abi::RawMessage;

/// One sleep of one thread. It is woken once; a thread that sleeps again has a new one.
#[derive(Debug, Default)]
pub(super) struct Sleeper {
    woken: Flag,
}

impl Sleeper {
    /// Ends the sleep.
    pub(super) fn wake(&self) {
        self.woken.raise();
    }

    /// The sleep has ended.
    pub(super) fn is_woken(&self) -> bool {
        self.woken.is_raised()
    }

    /// Blocks a real thread until the sleep has ended.
    pub(super) fn wait(&self) {
        self.woken.wait();
    }
}

/// A thread that waits for a fault, and the message about it.
#[derive(Clone, Debug)]
pub(super) struct FaultWaiter {
    /// The sleep.
    pub(super) sleeper: Arc<Sleeper>,
    /// The flags of the message.
    pub(super) flags: u64,
    /// The address of the message: what a wake compares with its range.
    pub(super) address: u64,
    /// The thread, or 0.
    pub(super) ptid: u32,
}

#[derive(Debug, Default)]
struct Queues {
    unread: VecDeque<FaultWaiter>,
    read: VecDeque<FaultWaiter>,
}

/// The fault queues of a context.
#[derive(Debug, Default)]
pub(super) struct FaultQueues {
    queues: Mutex<Queues>,
    /// The waiters of both queues, so that a resolver that wakes nobody takes no lock.
    ///
    /// Nobody is missed: a waiter counts itself and then looks at its entry under the page-table
    /// lock, a resolver changes the entry under that lock and then looks at the count. Whichever
    /// of the two has the lock first, the other sees what it did.
    waiting: AtomicUsize,
}

impl FaultQueues {
    /// Adds a waiter whose message was not read.
    pub(super) fn push(&self, waiter: FaultWaiter) {
        let mut queues = self.queues.lock();
        queues.unread.push_back(waiter);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes out a waiter that is not to sleep, or whose sleep a signal has ended. False if it
    /// had been woken before.
    pub(super) fn remove(&self, sleeper: &Arc<Sleeper>) -> bool {
        let mut queues = self.queues.lock();
        let before = queues.unread.len() + queues.read.len();
        queues.unread.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
        queues.read.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
        let removed = before - queues.unread.len() - queues.read.len();
        self.waiting.fetch_sub(removed, Ordering::SeqCst);
        removed > 0
    }

    /// Wakes every waiter, read or not, whose message address is in the range.
    pub(super) fn wake(&self, range: &Range<u64>) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queues = self.queues.lock();
        let mut woken = 0;
        let mut keep = |waiter: &FaultWaiter| {
            let wake = range.contains(&waiter.address);
            if wake {
                woken += 1;
                waiter.sleeper.wake();
            }
            !wake
        };
        queues.unread.retain(&mut keep);
        queues.read.retain(&mut keep);
        self.waiting.fetch_sub(woken, Ordering::SeqCst);
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        self.wake(&(0..u64::MAX));
    }

    /// The oldest message that was not read. It counts as read from now on.
    pub(super) fn read(&self) -> Option<RawMessage> {
        let mut queues = self.queues.lock();
        let waiter = queues.unread.pop_front()?;
        let (flags, address, ptid) = (waiter.flags, waiter.address, waiter.ptid);
        queues.read.push_back(waiter);
        Some(RawMessage::Pagefault { flags, address, ptid })
    }

    /// The numbers of waiters: not read, and all.
    pub(super) fn counts(&self) -> (usize, usize) {
        let queues = self.queues.lock();
        (queues.unread.len(), queues.unread.len() + queues.read.len())
    }
}
