//! Installing pages of a guest.

use crate::error::Error;
use crate::features::RegisterMode;
use crate::guest::fallback::{Support, Zero};
use crate::guest::memory::{GuestUffd, Piece};
use crate::memory::ZEROS;
use crate::page::PageRun;
use crate::uffd::{Installed, Mode, Uffd, Wake};

/// How far the install of a run of pages came. A short count is gone on with until its reason is
/// known, so it is never a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Filled {
    /// All pages are in place and were not before.
    All,
    /// The page behind the first `done` was there before. Its bytes stand, its waiters may still
    /// need a wake, and the pages behind it have not been tried.
    AlreadyPresent {
        /// Pages in place, counted from the first of the run.
        done: u32,
    },
    /// The address space is changing: read events, then go on behind the first `done` pages.
    EventsFirst {
        /// Pages in place, counted from the first of the run.
        done: u32,
    },
}

impl Filled {
    /// Pages of `run` that are in place by this operation.
    pub fn pages_done(self, run: PageRun) -> u32 {
        match self {
            Filled::All => run.count,
            Filled::AlreadyPresent { done } | Filled::EventsFirst { done } => done,
        }
    }
}

impl<U: Uffd> GuestUffd<U> {
    /// Installs the pages of `run` with `bytes`. The run may span memslots.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`], [`Error::InsidePage`],
    /// [`Error::WrongLength`], and [`Error::NotRegisteredFor`] if protected pages are wanted. Then
    /// [`Error::Stopped`] around what [`Uffd::copy`] fails with.
    pub fn copy(&self, run: PageRun, bytes: &[u8], mode: impl Into<Mode>) -> Result<Filled, Error> {
        let mode = mode.into();
        if mode.protected {
            self.check_mode(run, RegisterMode::WRITE_PROTECT)?;
        }
        let begin = self.snapshot();
        let page = begin.space.page_size();
        begin.space.check_length(run, bytes.len())?;
        self.walk_and_wake(&begin, run, mode.wake, |piece, wake| {
            let pages = page.length_of(piece.pages.start)..page.length_of(piece.pages.end);
            self.uffd().copy(piece.range.start, &bytes[pages], Mode { wake, ..mode })
        })
    }

    /// Installs pages of zeros. The run may span memslots.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`] and [`Error::InsidePage`]. Then
    /// [`Error::Stopped`] around what [`Uffd::zero`] fails with.
    pub fn zero(&self, run: PageRun, wake: Wake) -> Result<Filled, Error> {
        self.walk_and_wake(&self.snapshot(), run, wake, |piece, wake| self.zero_piece(piece, wake))
    }

    /// Maps pages that the page cache has, with what they hold there: the kernel's CONTINUE. The
    /// run may span memslots, all of memfds.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`] and [`Error::InsidePage`]. Then
    /// [`Error::Stopped`] around [`Error::NoMethod`] where the memory has no page cache or the
    /// kernel lacks the call, and around what [`Uffd::map_cached`] fails with.
    pub fn map_cached(&self, run: PageRun, mode: impl Into<Mode>) -> Result<Filled, Error> {
        let mode = mode.into();
        if mode.protected {
            self.check_mode(run, RegisterMode::WRITE_PROTECT)?;
        }
        self.walk_and_wake(&self.snapshot(), run, mode.wake, |piece, wake| {
            self.supported("CONTINUE", piece, self.methods(piece.kind).map_cached)?;
            self.uffd().map_cached(piece.range, Mode { wake, ..mode })
        })
    }

    /// Marks pages as lost: a vCPU that touches one gets a machine check, other threads SIGBUS.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`] and [`Error::InsidePage`]. Then
    /// [`Error::Stopped`] around [`Error::NoMethod`] where the kernel lacks the call: nothing else
    /// keeps a page from being read as zeros. And around what [`Uffd::poison`] fails with.
    pub fn poison(&self, run: PageRun, wake: Wake) -> Result<Filled, Error> {
        self.walk_and_wake(&self.snapshot(), run, wake, |piece, wake| {
            self.supported("POISON", piece, self.methods(piece.kind).poison)?;
            self.uffd().poison(piece.range, wake)
        })
    }

    pub(super) fn zero_piece(&self, piece: &Piece<'_>, wake: Wake) -> Result<Installed, Error> {
        match self.methods(piece.kind).zero {
            Zero::Zeropage => self.uffd().zero(piece.range, wake),
            Zero::CopyZeros => {
                let part = piece.range.first(ZEROS.len() as u64);
                let zeros = usize::try_from(part.bytes).expect("no more than there are zeros");
                let installed = self.uffd().copy(part.start, &ZEROS[..zeros], wake)?;
                Ok(piece.after(part, installed))
            }
        }
    }

    fn supported(
        &self,
        operation: &'static str,
        piece: &Piece<'_>,
        support: Support,
    ) -> Result<(), Error> {
        match support {
            Support::Direct => Ok(()),
            Support::Refused(reason) => {
                Err(Error::NoMethod { operation, memory: piece.kind, reason })
            }
        }
    }
}
