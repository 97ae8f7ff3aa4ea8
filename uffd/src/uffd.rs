//! The operations of a userfaultfd, and what their results mean.

use std::fmt;

use crate::error::Error;
use crate::event::Event;
use crate::page::Hva;

/// Bytes of this process's address space. The kernel wants whole pages and refuses anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: Hva,
    /// The length in bytes.
    pub bytes: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at {}", self.bytes, self.start)
    }
}

/// How far an install came. The kernel's error numbers become one of these in one place, and
/// callers match on what is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Installed {
    /// All pages are in place and were not before; their waiters were woken if that was asked.
    All,
    /// Somebody had installed the first page before. Its bytes stand, nothing was changed, and
    /// its waiters may still need a wake.
    AlreadyPresent,
    /// The first `bytes` are in place and their waiters were woken if that was asked. The kernel
    /// hides why it stopped: calling again for the rest tells.
    Partly {
        /// A whole number of pages, more than none and less than all.
        bytes: u64,
    },
    /// Nothing was done because the address space is changing, most often because an event waits
    /// to be read: read events, then call again.
    EventsFirst,
}

/// Whether the threads that wait for an installed page go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The operation wakes them.
    Now,
    /// They sleep until a later [`Uffd::wake`].
    Later,
}

/// What can be done with registered memory.
///
/// Reading events and installing pages may happen on several threads at once.
pub trait Uffd: Send + Sync {
    /// Installs the pages from `at` with `bytes`, which must be whole pages.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not registered, misaligned or no longer mapped, or if
    /// there is no memory for a page.
    fn copy(&self, at: Hva, bytes: &[u8], wake: Wake) -> Result<Installed, Error>;

    /// Installs the pages that hold `staged`, whole pages of private anonymous memory, at `at`.
    /// Nothing is allocated and no byte is copied; `staged` holds zeros afterwards, or what it held
    /// where a page was not moved.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] as for [`copy`](Uffd::copy), where the kernel or the memory's kind has
    /// no MOVE, and if a page of `staged` is pinned or shared with a child. Pages that were moved
    /// before it stay moved.
    fn move_in(&self, at: Hva, staged: &mut [u8], wake: Wake) -> Result<Installed, Error>;

    /// Installs pages of zeros.
    ///
    /// # Errors
    ///
    /// As [`copy`](Uffd::copy); also where the memory's kind has no zero page (hugetlb).
    fn zero(&self, range: Range, wake: Wake) -> Result<Installed, Error>;

    /// Wakes all threads whose faults were reported in the range. Each repeats its access, and
    /// raises a new fault if the page is still not there.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not made of whole pages.
    fn wake(&self, range: Range) -> Result<(), Error>;

    /// Makes a range ordinary memory again and wakes the threads that wait for its missing pages.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not mapped or belongs to another userfaultfd.
    fn unregister(&self, range: Range) -> Result<(), Error>;

    /// Appends the events that wait, at most a fixed number of them, to `into`. Never waits, and
    /// appends nothing when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the descriptor cannot be read or holds a message of an unknown kind.
    fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error>;
}
