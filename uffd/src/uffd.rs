//! The operations of a userfaultfd, and what their results mean.

use std::{fmt, io};

use crate::abi::{self, Answer, Call, Out};
use crate::backend::Backend;
use crate::error::Error;
use crate::event::Event;
use crate::features::{Ioctls, RegisterMode};
use crate::meaning;
use crate::page::Hva;

/// Bytes of this process's address space. The kernel wants whole pages and refuses anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: Hva,
    /// The length in bytes.
    pub bytes: u64,
}

impl Range {
    /// The range without its first `bytes`.
    #[must_use]
    pub const fn behind(self, bytes: u64) -> Range {
        Range { start: Hva(self.start.0 + bytes), bytes: self.bytes - bytes }
    }

    /// The first `bytes` of the range, or all of it if it is shorter.
    #[must_use]
    pub const fn first(self, bytes: u64) -> Range {
        Range { start: self.start, bytes: if bytes < self.bytes { bytes } else { self.bytes } }
    }
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

/// Whether the protection of a range was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// All of it.
    All,
    /// None of it, because the address space is changing: read events, then call again.
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

impl Wake {
    const fn bits(self) -> u64 {
        match self {
            Wake::Now => 0,
            Wake::Later => abi::MODE_DONTWAKE,
        }
    }
}

/// How pages with contents are put in place. A [`Wake`] alone means pages that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Whether their waiters go on at once.
    pub wake: Wake,
    /// The first write to each page will wait and be reported. The range has to be registered for
    /// [`WRITE_PROTECT`](RegisterMode::WRITE_PROTECT).
    pub protected: bool,
}

impl Mode {
    /// Pages that are write-protected.
    pub const fn protected(wake: Wake) -> Mode {
        Mode { wake, protected: true }
    }

    const fn bits(self) -> u64 {
        self.wake.bits() | if self.protected { abi::MODE_WP } else { 0 }
    }
}

impl From<Wake> for Mode {
    fn from(wake: Wake) -> Mode {
        Mode { wake, protected: false }
    }
}

/// What a move does where its source has no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// It stops.
    Refused,
    /// It counts the page as moved, and the destination stays without one.
    Skipped,
}

/// What can be done with registered memory.
///
/// Every [`Backend`] can do it, and all of it is decided here, once. Reading events and installing
/// pages may happen on several threads at once. What a call fails with is [`Error::Operation`],
/// with the error number of the kernel.
pub trait Uffd: Send + Sync {
    /// Lets accesses to a range wait for this userfaultfd, and returns what can be done with the
    /// range. Only memory that was lent to the userfaultfd can be registered.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not whole pages, its memory's kind lacks the mode,
    /// another userfaultfd has it, or it was not lent.
    fn register(&self, range: Range, mode: RegisterMode) -> Result<Ioctls, Error>;

    /// Makes a range ordinary memory again, wakes the threads that wait for its missing pages, and
    /// gives it back to whoever lent it.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not mapped or belongs to another userfaultfd.
    fn unregister(&self, range: Range) -> Result<(), Error>;

    /// Installs the pages from `at` with `bytes`, which must be whole pages.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not registered, misaligned or no longer mapped, or if
    /// there is no memory for a page.
    fn copy(&self, at: Hva, bytes: &[u8], mode: impl Into<Mode>) -> Result<Installed, Error>;

    /// Installs pages of zeros.
    ///
    /// # Errors
    ///
    /// As [`copy`](Uffd::copy); also where the memory's kind has no zero page (hugetlb).
    fn zero(&self, range: Range, wake: Wake) -> Result<Installed, Error>;

    /// Maps pages that the page cache has, with what they hold there: the kernel's CONTINUE.
    ///
    /// # Errors
    ///
    /// As [`copy`](Uffd::copy); also where the page cache has no page, or the memory's kind has no
    /// page cache (anonymous).
    fn map_cached(&self, range: Range, mode: impl Into<Mode>) -> Result<Installed, Error>;

    /// Marks pages as lost: whoever touches one gets SIGBUS.
    ///
    /// # Errors
    ///
    /// As [`copy`](Uffd::copy).
    fn poison(&self, range: Range, wake: Wake) -> Result<Installed, Error>;

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

    /// Gives the pages of `staged` up, as far as they are whole pages of private anonymous memory;
    /// see [`Backend::give_up`].
    fn give_up(&self, staged: &mut [u8]);

    /// Moves pages from `from` to `to`, without copying them, and leaves nothing at `from`, which
    /// must have been lent. Both are private anonymous memory of this process.
    ///
    /// # Errors
    ///
    /// As [`copy`](Uffd::copy); also where a page of the source is missing, shared with another
    /// process or pinned (EBUSY), or was not lent (EPERM).
    fn move_pages(
        &self,
        to: Range,
        from: Hva,
        holes: Holes,
        wake: Wake,
    ) -> Result<Installed, Error>;

    /// Write-protects the pages of a range: their next write waits and is reported.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not registered for it. Pages in front of the part that
    /// is not may be protected by then.
    fn protect(&self, range: Range) -> Result<Changed, Error>;

    /// Takes write-protection away.
    ///
    /// # Errors
    ///
    /// As [`protect`](Uffd::protect).
    fn unprotect(&self, range: Range, wake: Wake) -> Result<Changed, Error>;

    /// Calls `each` for the pages of a range that were written since they were protected, in order,
    /// and protects them again in the same step: what is written afterwards is told the next time.
    /// For memory whose userfaultfd was opened with [`WP_ASYNC`](crate::Features::WP_ASYNC).
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range, or a part of it, is not protected so. `each` was called
    /// for every page that may have been protected again.
    fn take_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Error>;

    /// Wakes all threads whose faults were reported in the range. Each repeats its access, and
    /// raises a new fault if the page is still not there.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not made of whole pages.
    fn wake(&self, range: Range) -> Result<(), Error>;

    /// Appends the events that wait, at most a fixed number of them, to `into`. Never waits, and
    /// appends nothing when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the descriptor cannot be read. [`Error::Message`] if one of the messages
    /// is not understood; all others have been appended.
    fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error>;
}

impl<B: Backend> Uffd for B {
    fn register(&self, range: Range, mode: RegisterMode) -> Result<Ioctls, Error> {
        let call = Call::Register { start: range.start.0, len: range.bytes, mode: mode.bits() };
        match plain(self, call)?.out {
            Out::Ioctls(mask) => Ok(Ioctls::from_bits_retain(mask)),
            out => unreachable!("REGISTER has told {out:?} instead of its calls"),
        }
    }

    fn unregister(&self, range: Range) -> Result<(), Error> {
        plain(self, Call::Unregister { start: range.start.0, len: range.bytes }).map(drop)
    }

    fn copy(&self, at: Hva, bytes: &[u8], mode: impl Into<Mode>) -> Result<Installed, Error> {
        let (len, mode) = (bytes.len() as u64, mode.into().bits());
        let answer = self.copy_bytes(at, bytes, mode);
        let src = bytes.as_ptr() as u64;
        meaning::installed(answer)
            .map_err(|errno| Error::of_call(Call::Copy { dst: at.0, src, len, mode }, errno))
    }

    fn move_in(&self, at: Hva, staged: &mut [u8], wake: Wake) -> Result<Installed, Error> {
        let (src, len, mode) = (staged.as_ptr() as u64, staged.len() as u64, wake.bits());
        meaning::installed(self.move_bytes(at, staged, mode))
            .map_err(|errno| Error::of_call(Call::Move { dst: at.0, src, len, mode }, errno))
    }

    fn give_up(&self, staged: &mut [u8]) {
        Backend::give_up(self, staged);
    }

    fn zero(&self, range: Range, wake: Wake) -> Result<Installed, Error> {
        let (start, len) = (range.start.0, range.bytes);
        install(self, Call::Zeropage { start, len, mode: wake.bits() })
    }

    fn map_cached(&self, range: Range, mode: impl Into<Mode>) -> Result<Installed, Error> {
        let (start, len) = (range.start.0, range.bytes);
        install(self, Call::Continue { start, len, mode: mode.into().bits() })
    }

    fn poison(&self, range: Range, wake: Wake) -> Result<Installed, Error> {
        let (start, len) = (range.start.0, range.bytes);
        install(self, Call::Poison { start, len, mode: wake.bits() })
    }

    fn move_pages(
        &self,
        to: Range,
        from: Hva,
        holes: Holes,
        wake: Wake,
    ) -> Result<Installed, Error> {
        let skip = match holes {
            Holes::Refused => 0,
            Holes::Skipped => abi::MOVE_ALLOW_SRC_HOLES,
        };
        let mode = wake.bits() | skip;
        install(self, Call::Move { dst: to.start.0, src: from.0, len: to.bytes, mode })
    }

    fn protect(&self, range: Range) -> Result<Changed, Error> {
        change(self, range, abi::WRITEPROTECT_WP)
    }

    fn unprotect(&self, range: Range, wake: Wake) -> Result<Changed, Error> {
        let mode = match wake {
            Wake::Now => 0,
            Wake::Later => abi::WRITEPROTECT_DONTWAKE,
        };
        change(self, range, mode)
    }

    fn take_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Error> {
        self.scan_written(range, each).map_err(|errno| Error::Operation {
            operation: "PAGEMAP_SCAN",
            range,
            source: io::Error::from_raw_os_error(errno.0),
        })
    }

    fn wake(&self, range: Range) -> Result<(), Error> {
        plain(self, Call::Wake { start: range.start.0, len: range.bytes }).map(drop)
    }

    fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error> {
        let mut understood = Ok(());
        self.read(&mut |message| match Event::try_from(message) {
            Ok(event) => into.push(event),
            Err(error) => understood = Err(Error::Message(error)),
        })?;
        understood
    }
}

fn install(backend: &impl Backend, call: Call) -> Result<Installed, Error> {
    meaning::installed(backend.call(call)).map_err(|errno| Error::of_call(call, errno))
}

fn change(backend: &impl Backend, range: Range, mode: u64) -> Result<Changed, Error> {
    let call = Call::WriteProtect { start: range.start.0, len: range.bytes, mode };
    meaning::changed(backend.call(call)).map_err(|errno| Error::of_call(call, errno))
}

fn plain(backend: &impl Backend, call: Call) -> Result<Answer, Error> {
    let answer = backend.call(call);
    answer.result.map(|()| answer).map_err(|errno| Error::of_call(call, errno))
}
