//! Moving pages into a guest's memory, or within it.

use crate::error::Error;
use crate::guest::fallback::Moving;
use crate::guest::memory::{GuestUffd, Piece};
use crate::guest::mfill::Filled;
use crate::memory::MemoryKind;
use crate::page::{Hva, PageRun};
use crate::uffd::{Holes, Installed, Range, Uffd, Wake};

/// Where pages are moved from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Other pages of the guest, as many, from this run.
    Guest(PageRun),
    /// Private anonymous memory of this process, as long as the run, that was lent to the
    /// userfaultfd and is not registered: a staging area.
    Staging(Hva),
}

const OPERATION: &str = "MOVE";

impl<U: Uffd> GuestUffd<U> {
    /// Moves pages to `to`, which is missing, and leaves nothing where they were. Both runs may
    /// span memslots, each cut at other places.
    ///
    /// Where the kernel or the memory lacks MOVE, pages of a staging area are copied and given up;
    /// its holes then arrive as zeros, whatever `holes` says. Pages of the guest itself are not,
    /// because a copy of a missing page would wait for the page.
    ///
    /// # Errors
    ///
    /// Before anything is done: [`Error::OutsideGuest`] and [`Error::InsidePage`], of either run,
    /// and [`Error::WrongLength`] if the runs differ. Then [`Error::Stopped`], with `done` pages
    /// moved, around [`Error::NoMethod`] and what [`Uffd::move_pages`] fails with. If a staging
    /// area was not lent, its pages may have been copied and be where they were as well.
    pub fn move_pages(
        &self,
        to: PageRun,
        from: Source,
        holes: Holes,
        wake: Wake,
    ) -> Result<Filled, Error> {
        let begin = self.snapshot();
        let space = &begin.space;
        if let Source::Guest(run) = from {
            space.check(run)?;
            if run.count != to.count {
                let page = space.page_size();
                let (needed, given) = (page.bytes_of(to.count), page.bytes_of(run.count));
                return Err(Error::WrongLength { run: to, needed, given });
            }
        }
        self.walk_and_wake(&begin, to, wake, |piece, wake| {
            let (source, kind) = match from {
                Source::Guest(run) => {
                    let place = space.place_of(run.without(piece.pages.start));
                    let place = place.expect("as long as the destination");
                    // The source is looked up again as the destination is.
                    let (gpa, bytes) = (place.gpa, place.range.bytes);
                    let now = piece.space.place_at(gpa, bytes).ok_or(Error::NotMemory { gpa })?;
                    (now.range, now.kind)
                }
                Source::Staging(start) => {
                    let done = space.page_size().bytes_of(piece.pages.start);
                    let range = Range { start, bytes: done + piece.range.bytes };
                    (range.behind(done), MemoryKind::Anonymous)
                }
            };
            let part = piece.range.first(source.bytes);
            let source = source.first(part.bytes);
            let moved = match (self.methods(piece.kind).moving, kind) {
                (Moving::Move, MemoryKind::Anonymous) => {
                    self.uffd().move_pages(part, source.start, holes, wake)?
                }
                _ => self.copy_and_give_up(piece, part, source, from, wake)?,
            };
            Ok(piece.after(part, moved))
        })
    }

    fn copy_and_give_up(
        &self,
        piece: &Piece<'_>,
        part: Range,
        source: Range,
        from: Source,
        wake: Wake,
    ) -> Result<Installed, Error> {
        if let Source::Guest(_) = from {
            let reason = "only anonymous memory can be moved, by a kernel that has MOVE, and a \
                          copy of guest memory may wait for itself";
            return Err(Error::NoMethod { operation: OPERATION, memory: piece.kind, reason });
        }
        let copied = self.uffd().copy_from(part, source.start, wake)?;
        let done = match copied {
            Installed::All => part.bytes,
            Installed::Partly { bytes } => bytes,
            Installed::AlreadyPresent | Installed::EventsFirst => 0,
        };
        if done > 0 {
            self.uffd().give_up(source.first(done))?;
        }
        Ok(copied)
    }
}
