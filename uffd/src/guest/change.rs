//! Changing a guest's memory map while other threads install pages: hotplug, balloon.

use std::sync::{Arc, MutexGuard, PoisonError};

use crate::guest::memory::GuestUffd;
use crate::guest::space::GuestSpace;
use crate::uffd::Uffd;

/// A change of the map that is under way. As long as it lives, no operation on the guest's pages
/// is, and new ones are told to read events and come back - also for the time in which the change
/// waits for an event of its own to be read. Dropped, it leaves the map as it was.
///
/// The order that keeps a page from landing in memory that is somebody else's by then: begin;
/// madvise, unmap, or map and [register](Uffd::register); [commit](Change::commit). Whoever reads
/// events does nothing of that, because it would wait for itself.
pub struct Change<'a, U: Uffd> {
    guest: &'a GuestUffd<U>,
    _only: MutexGuard<'a, ()>,
}

impl<U: Uffd> GuestUffd<U> {
    /// Begins a change: waits out the calls that are under way, and holds off others. One change is
    /// under way at a time, so that none is lost: the next waits for it, and begins with the map
    /// that it leaves.
    pub fn change(&self) -> Change<'_, U> {
        let only = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_map().changing = true;
        Change { guest: self, _only: only }
    }
}

impl<U: Uffd> Change<'_, U> {
    /// Ends the change: the guest's memory is `space` from now on. What operations have not done
    /// yet they look up in it by guest address.
    pub fn commit(self, space: GuestSpace) {
        let mut map = self.guest.write_map();
        map.space = Arc::new(space);
        map.generation += 1;
    }
}

impl<U: Uffd> Drop for Change<'_, U> {
    fn drop(&mut self) {
        self.guest.write_map().changing = false;
    }
}
