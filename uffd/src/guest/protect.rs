//! Write-protecting pages of a guest.

use crate::error::Error;
use crate::features::RegisterMode;
use crate::guest::fallback::Protecting;
use crate::guest::memory::{GuestUffd, Piece};
use crate::guest::mfill::Filled;
use crate::page::PageRun;
use crate::uffd::{Changed, Installed, Uffd, Wake};

/// How far a change of protection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Protected {
    /// All pages have it.
    All,
    /// The address space is changing: read events, then go on behind the first `done` pages.
    EventsFirst {
        /// Pages that have it, counted from the first of the run.
        done: u32,
    },
}

impl<U: Uffd> GuestUffd<U> {
    /// Write-protects the pages of `run`: the next write to each waits and is reported. A page that
    /// is missing is reported as missing first if the memory is registered for that, and what is
    /// installed there then is protected only if it is installed so.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`], [`Error::InsidePage`] and
    /// [`Error::NotRegisteredFor`]. Then [`Error::Stopped`] around [`Error::NoMethod`] where the
    /// kernel lacks the call, and around what [`Uffd::protect`] fails with.
    pub fn protect(&self, run: PageRun) -> Result<Protected, Error> {
        self.check_mode(run, RegisterMode::WRITE_PROTECT)?;
        let walked = self.walk(&self.snapshot(), run, |piece| self.protect_piece(piece))?;
        Ok(walked.into())
    }

    /// Takes the protection of the pages of `run` away, and wakes the threads that wait for it.
    ///
    /// # Errors
    ///
    /// As [`protect`](GuestUffd::protect).
    pub fn unprotect(&self, run: PageRun, wake: Wake) -> Result<Protected, Error> {
        self.check_mode(run, RegisterMode::WRITE_PROTECT)?;
        let walked = self.walk_and_wake(&self.snapshot(), run, wake, |piece, wake| {
            self.uffd().unprotect(piece.range, wake).map(Installed::from)
        })?;
        Ok(walked.into())
    }

    fn protect_piece(&self, piece: &Piece<'_>) -> Result<Installed, Error> {
        match self.methods(piece.kind).protecting {
            Protecting::Direct => {}
            Protecting::PopulateFirst => {
                if self.populate(piece)? == Changed::EventsFirst {
                    return Ok(Installed::EventsFirst);
                }
            }
            Protecting::Refused(reason) => {
                let (operation, memory) = ("WRITEPROTECT", piece.kind);
                return Err(Error::NoMethod { operation, memory, reason });
            }
        }
        self.uffd().protect(piece.range).map(Installed::from)
    }

    /// Puts the zero page wherever there is none, so that there is something to protect. Only for
    /// memory whose missing pages read as zero.
    fn populate(&self, piece: &Piece<'_>) -> Result<Changed, Error> {
        let page = piece.kind.page_size().bytes() as u64;
        let mut rest = piece.range;
        while rest.bytes > 0 {
            match self.uffd().zero(rest, Wake::Later)? {
                Installed::All => break,
                Installed::Partly { bytes } => rest = rest.behind(bytes),
                Installed::AlreadyPresent => rest = rest.behind(page),
                Installed::EventsFirst => return Ok(Changed::EventsFirst),
            }
        }
        Ok(Changed::All)
    }
}

impl From<Changed> for Installed {
    fn from(changed: Changed) -> Installed {
        match changed {
            Changed::All => Installed::All,
            Changed::EventsFirst => Installed::EventsFirst,
        }
    }
}

impl From<Filled> for Protected {
    fn from(filled: Filled) -> Protected {
        match filled {
            Filled::All => Protected::All,
            Filled::EventsFirst { done } => Protected::EventsFirst { done },
            Filled::AlreadyPresent { .. } => unreachable!("a change of protection finds no page"),
        }
    }
}
