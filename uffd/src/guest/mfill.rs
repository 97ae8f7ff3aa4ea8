//! Installing and waking pages of a guest.

use std::ops;

use crate::error::Error;
use crate::guest::space::GuestSpace;
use crate::page::{Hva, PageRun};
use crate::uffd::{Installed, Range, Uffd, Wake};

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

/// A guest's memory with the userfaultfd that it is registered with.
pub struct GuestUffd<U> {
    uffd: U,
    space: GuestSpace,
}

impl<U: Uffd> GuestUffd<U> {
    /// Puts the two together; all memslots of `space` are registered with `uffd`.
    pub fn new(uffd: U, space: GuestSpace) -> GuestUffd<U> {
        GuestUffd { uffd, space }
    }

    /// The userfaultfd.
    pub fn uffd(&self) -> &U {
        &self.uffd
    }

    /// Where the pages are.
    pub fn space(&self) -> &GuestSpace {
        &self.space
    }

    /// Installs the pages of `run` with `bytes`. The run may span memslots.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideGuest`] and [`Error::WrongLength`] before anything is done, and what
    /// [`Uffd::copy`] fails with.
    pub fn copy(&self, run: PageRun, bytes: &[u8], wake: Wake) -> Result<Filled, Error> {
        self.check_length(run, bytes.len())?;
        let page = self.space.page_size();
        self.fill(run, |range, part| {
            let piece = &bytes[page.length_of(part.start)..page.length_of(part.end)];
            self.uffd.copy(range.start, piece, wake)
        })
    }

    /// Installs the pages of `run` by moving the pages that hold `staged`. The run may span
    /// memslots.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideGuest`] and [`Error::WrongLength`] before anything is done, and what
    /// [`Uffd::move_in`] fails with; then some of the pages may have been moved.
    pub fn move_in(&self, run: PageRun, staged: &mut [u8], wake: Wake) -> Result<Filled, Error> {
        self.check_length(run, staged.len())?;
        let page = self.space.page_size();
        self.fill(run, |range, part| {
            let piece = &mut staged[page.length_of(part.start)..page.length_of(part.end)];
            self.uffd.move_in(range.start, piece, wake)
        })
    }

    /// Installs pages of zeros. The run may span memslots.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideGuest`] before anything is done, and what [`Uffd::zero`] fails with.
    pub fn zero(&self, run: PageRun, wake: Wake) -> Result<Filled, Error> {
        self.fill(run, |range, _| self.uffd.zero(range, wake))
    }

    /// Wakes the threads that wait for pages of `run`. The run may span memslots.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideGuest`] before anything is done, and what [`Uffd::wake`] fails with.
    pub fn wake(&self, run: PageRun) -> Result<(), Error> {
        self.check(run)?;
        self.space.split(run).try_for_each(|(range, _)| self.uffd.wake(range))
    }

    /// Makes all of the guest's memory ordinary again. Threads that still wait for a page go on
    /// with a page of zeros, so all pages must be in place before.
    ///
    /// # Errors
    ///
    /// What [`Uffd::unregister`] fails with; memslots behind the one that failed stay registered.
    pub fn unregister_all(&self) -> Result<(), Error> {
        self.space.split(self.space.all()).try_for_each(|(range, _)| self.uffd.unregister(range))
    }

    /// Calls `install` for what is left of each piece of the run until all is in place. `install`
    /// gets where the piece is and which pages it is, counted from the first of the run.
    fn fill(
        &self,
        run: PageRun,
        mut install: impl FnMut(Range, ops::Range<u32>) -> Result<Installed, Error>,
    ) -> Result<Filled, Error> {
        self.check(run)?;
        let page = self.space.page_size();
        let mut done = 0;
        for (piece, part) in self.space.split(run) {
            let end = done + part.count;
            while done < end {
                let bytes = page.bytes_of(end - done);
                let start = Hva(piece.start.0 + (piece.bytes - bytes));
                match install(Range { start, bytes }, done..end)? {
                    Installed::All => done = end,
                    Installed::Partly { bytes: installed } => {
                        assert!(installed < bytes, "{installed} of {bytes} bytes is not a part");
                        done += page.pages_in(installed).expect("pages are installed whole");
                    }
                    Installed::AlreadyPresent => return Ok(Filled::AlreadyPresent { done }),
                    Installed::EventsFirst => return Ok(Filled::EventsFirst { done }),
                }
            }
        }
        Ok(Filled::All)
    }

    fn check_length(&self, run: PageRun, bytes: usize) -> Result<(), Error> {
        let (needed, given) = (self.space.page_size().bytes_of(run.count), bytes as u64);
        if given != needed {
            return Err(Error::WrongLength { run, needed, given });
        }
        Ok(())
    }

    fn check(&self, run: PageRun) -> Result<(), Error> {
        if self.space.contains(run) {
            return Ok(());
        }
        Err(Error::OutsideGuest { run, pages: self.space.page_count() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelUffd;
    use crate::kernel::tests::{Memory, open};
    use crate::page::{Gpa, PageIndex, PageSize};

    const PAGE: usize = 4096;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    /// A guest of four pages and, behind a hole, two more.
    fn guest() -> Option<(GuestUffd<KernelUffd>, Memory, Memory)> {
        let uffd = open()?;
        let (low, high) = (Memory::anonymous(4), Memory::memfd(2));
        let at = |gpa, memory: &Memory| (Gpa(gpa), memory.range().start, memory.range().bytes);
        let space = GuestSpace::new(PageSize::BASE, [at(0, &low), at(1 << 32, &high)]).unwrap();
        low.register(&uffd);
        high.register(&uffd);
        Some((GuestUffd::new(uffd, space), low, high))
    }

    /// Each page filled with its number, from `first` on.
    fn numbered(first: u8, count: u8) -> Vec<u8> {
        (first..first + count).flat_map(|number| [number; PAGE]).collect()
    }

    #[test]
    fn a_run_spans_memslots() {
        let Some((guest, low, high)) = guest() else {
            return;
        };
        let filled = guest.copy(run(2, 4), &numbered(2, 4), Wake::Now).unwrap();
        assert_eq!(filled, Filled::All);
        assert_eq!(guest.zero(run(0, 2), Wake::Now).unwrap(), Filled::All);
        assert_eq!(low.bytes_of_pages(), [0, 0, 2, 3]);
        assert_eq!(high.bytes_of_pages(), [4, 5]);
    }

    #[test]
    fn a_page_already_there_is_told_with_the_pages_before_it() {
        let Some((guest, _low, high)) = guest() else {
            return;
        };
        assert_eq!(guest.zero(PageRun::one(PageIndex(5)), Wake::Now).unwrap(), Filled::All);
        let filled = guest.copy(run(1, 5), &numbered(1, 5), Wake::Now).unwrap();
        assert_eq!(filled, Filled::AlreadyPresent { done: 4 });
        assert_eq!(high.bytes_of_pages(), [4, 0]);
        let filled = guest.copy(run(1, 1), &numbered(9, 1), Wake::Now).unwrap();
        assert_eq!(filled, Filled::AlreadyPresent { done: 0 });
    }

    #[test]
    fn pages_outside_of_the_guest_and_wrong_lengths_are_refused() {
        let Some((guest, ..)) = guest() else { return };
        for run in [run(6, 1), run(5, 2), run(u32::MAX, 1), run(0, u32::MAX)] {
            let error = guest.zero(run, Wake::Now).unwrap_err();
            assert!(matches!(error, Error::OutsideGuest { pages: 6, .. }), "{error}");
            assert!(guest.wake(run).is_err());
        }
        let error = guest.copy(run(0, 2), &[0; PAGE], Wake::Now).unwrap_err();
        assert!(matches!(error, Error::WrongLength { needed: 8192, given: 4096, .. }), "{error}");
    }

    #[test]
    fn memory_is_ordinary_after_unregistering() {
        let Some((guest, low, high)) = guest() else {
            return;
        };
        guest.unregister_all().unwrap();
        assert_eq!(low.bytes_of_pages(), [0; 4]);
        assert_eq!(high.bytes_of_pages(), [0; 2]);
        assert!(guest.zero(run(0, 1), Wake::Now).is_err());
    }
}
