//! How other threads speak to the thread that polls sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// A queue with an eventfd that is readable while something waits in it.
#[derive(Debug)]
pub struct Notifier<T> {
    queue: Mutex<Vec<T>>,
    event: OwnedFd,
}

impl<T> Notifier<T> {
    /// An empty queue.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new() -> io::Result<Notifier<T>> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Notifier { queue: Mutex::new(Vec::new()), event })
    }

    /// Puts `item` in the queue and makes the eventfd readable.
    pub fn send(&self, item: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        // The only failure is a counter at its maximum, which is readable as well.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Takes everything that waits.
    pub fn take(&self) -> Vec<T> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Notifier<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
