//! Moving pages into a guest's memory, or within it.

use crate::error::Error;
use crate::guest::fallback::Moving;
use crate::guest::memory::{GuestUffd, Piece};
use crate::guest::mfill::Filled;
use crate::memory::MemoryKind;
use crate::page::PageRun;
use crate::uffd::{Holes, Installed, Uffd, Wake};

impl<U: Uffd> GuestUffd<U> {
    /// Installs the pages of `run` by moving the pages that hold `staged`, whole pages of private
    /// anonymous memory of this program. The run may span memslots.
    ///
    /// Where the kernel or the guest's memory lacks MOVE, the bytes are copied and the staged pages
    /// are given up. Either way nothing can be said of what `staged` holds afterwards, except in
    /// pages that are not in place: there it holds what it held.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`], [`Error::InsidePage`] and
    /// [`Error::WrongLength`]. Then [`Error::Stopped`] around what [`Uffd::move_in`] or
    /// [`Uffd::copy`] fails with.
    pub fn move_in(&self, run: PageRun, staged: &mut [u8], wake: Wake) -> Result<Filled, Error> {
        let begin = self.snapshot();
        begin.space.check_length(run, staged.len())?;
        let page = begin.space.page_size();
        self.walk_and_wake(&begin, run, wake, |piece, wake| {
            let pages = page.length_of(piece.pages.start)..page.length_of(piece.pages.end);
            let staged = &mut staged[pages];
            match self.methods(piece.kind).moving {
                Moving::Move => self.uffd().move_in(piece.range.start, staged, wake),
                Moving::CopyAndGiveUp => self.copy_and_give_up(piece, staged, wake),
            }
        })
    }

    /// Moves pages of the guest to others of its pages, `to`, which are missing, and leaves
    /// nothing where they were. Both runs may span memslots, each cut at other places.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`] and [`Error::InsidePage`], of either run,
    /// and [`Error::WrongLength`] if the runs differ. Then [`Error::Stopped`], with `done` pages
    /// moved, around what [`Uffd::move_pages`] fails with, and around [`Error::NoMethod`] where
    /// the kernel or the memory lacks MOVE: a copy of a page that is missing would wait for it.
    pub fn move_pages(
        &self,
        to: PageRun,
        from: PageRun,
        holes: Holes,
        wake: Wake,
    ) -> Result<Filled, Error> {
        let begin = self.snapshot();
        let space = &begin.space;
        space.check(from)?;
        space.check_length(to, space.page_size().length_of(from.count))?;
        self.walk_and_wake(&begin, to, wake, |piece, wake| {
            let place = space.place_of(from.without(piece.pages.start));
            let place = place.expect("as long as the destination");
            // The source is looked up again as the destination is.
            let (gpa, bytes) = (place.gpa, place.range.bytes);
            let source = piece.space.place_at(gpa, bytes).ok_or(Error::NotMemory { gpa })?;
            for kind in [piece.kind, source.kind] {
                self.check_moving(kind)?;
            }
            let part = piece.range.first(source.range.bytes);
            let moved = self.uffd().move_pages(part, source.range.start, holes, wake)?;
            Ok(piece.after(part, moved))
        })
    }

    fn check_moving(&self, kind: MemoryKind) -> Result<(), Error> {
        if self.methods(kind).moving == Moving::Move {
            return Ok(());
        }
        let reason = "it takes anonymous memory, and a kernel that has MOVE (Linux 6.8)";
        Err(Error::NoMethod { operation: "MOVE", memory: kind, reason })
    }

    fn copy_and_give_up(
        &self,
        piece: &Piece<'_>,
        staged: &mut [u8],
        wake: Wake,
    ) -> Result<Installed, Error> {
        let copied = self.uffd().copy(piece.range.start, staged, wake)?;
        let done = match copied {
            Installed::All => staged.len(),
            Installed::Partly { bytes } => usize::try_from(bytes).expect("a part of the bytes"),
            Installed::AlreadyPresent | Installed::EventsFirst => 0,
        };
        if done > 0 {
            self.uffd().give_up(&mut staged[..done]);
        }
        Ok(copied)
    }
}
