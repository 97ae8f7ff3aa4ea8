//! MOVE: pages change their place without being copied. This file has the checks and the loop
//! over page tables; `move_entry` has what is done to one entry.

use std::ops::Range;

use super::address_space::AddressSpace;
use super::context::Context;
use super::faults::ThreadState;
use super::folio::{Folio, HUGE, PAGE};
use super::move_entry::{Moved, move_one};
use super::page_table::{Bits, Entry, Level, PairGuard, Slot, index_in_table, lock_pair};
use super::read_write_protect::moved_bits;
use super::split::split_folio;
use super::sync::Arc;
use super::vma::Vma;
use super::wait_queue::Sleeper;
use crate::abi::Errno;

/// One call, and how far it has come.
#[derive(Debug)]
pub(super) struct Move {
    /// The first byte to move to.
    pub(super) dst: u64,
    /// The first byte to move.
    pub(super) src: u64,
    /// Bytes to move.
    pub(super) len: u64,
    /// A page that is missing counts as moved.
    pub(super) holes: bool,
    /// Bytes done.
    pub(super) done: u64,
}

/// How far a move has come.
#[derive(Debug)]
pub(super) enum Run {
    /// The end: bytes done, or the error of the first page.
    Over(Result<u64, Errno>),
    /// A page is being migrated; its mover is waited for.
    Migrating(Arc<Sleeper>),
}

/// Why a move stops before its end.
enum Stop {
    Error(Errno),
    Migrating(Arc<Sleeper>),
    /// A huge page has to be split, without any lock.
    Large(Arc<Folio>),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Error(errno)
    }
}

/// The places of a move, locked.
struct Mover<'a> {
    space: &'a AddressSpace,
    thread: &'a ThreadState,
    destination: &'a Vma,
    holes: bool,
}

impl Move {
    /// Moves until it is over or has to wait. All checks are made anew after a wait.
    pub(super) fn run(&mut self, context: &Arc<Context>, thread: &ThreadState) -> Run {
        let space = &context.space;
        loop {
            let stopped = space.with_two_vmas(self.dst, self.src, |destination, source| {
                self.in_vmas(context, thread, destination, source)
            });
            return match stopped {
                Err(Stop::Large(folio)) => {
                    split_folio(&space.host, &folio);
                    continue;
                }
                Err(Stop::Migrating(sleeper)) => Run::Migrating(sleeper),
                Err(Stop::Error(errno)) if self.done == 0 => Run::Over(Err(errno)),
                Err(Stop::Error(_)) | Ok(()) => Run::Over(Ok(self.done)),
            };
        }
    }

    fn in_vmas(
        &mut self,
        context: &Arc<Context>,
        thread: &ThreadState,
        destination: Option<&Vma>,
        source: Option<&Vma>,
    ) -> Result<(), Stop> {
        let space = &context.space;
        let destination = destination.ok_or(Errno::ENOENT)?;
        if !destination.shared {
            space.prepare_anonymous(destination);
        }
        let source = source.ok_or(Errno::ENOENT)?;
        let _no_event_begins = context.map_changing.read();
        if context.is_changing() {
            return Err(Errno::EAGAIN.into());
        }
        let dst = self.dst..self.dst + self.len;
        validate(context, (destination, &dst), (source, &(self.src..self.src + self.len)))?;
        let mover = Mover { space, thread, destination, holes: self.holes };
        while self.done < self.len {
            if thread.is_dying() {
                return Err(Errno::EINTR.into());
            }
            let at = (self.dst + self.done, self.src + self.done);
            let (moved, stopped) = mover.in_tables(at.0, at.1, self.len - self.done);
            self.done += moved;
            if let Some(stop) = stopped {
                return Err(stop);
            }
        }
        Ok(())
    }
}

/// What both places have to be, in the kernel's order; all of it is EINVAL.
fn validate(
    context: &Arc<Context>,
    (destination, dst): (&Vma, &Range<u64>),
    (source, src): (&Vma, &Range<u64>),
) -> Result<(), Errno> {
    let owned = destination.owner().is_some_and(|owner| Arc::ptr_eq(owner, context));
    let valid = !source.shared
        && source.contains(src)
        && !destination.shared
        && destination.contains(dst)
        && source.access == destination.access
        && source.locked == destination.locked
        && source.is_writable()
        && owned
        && source.is_anonymous()
        && destination.is_anonymous();
    if valid { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Mover<'_> {
    /// Moves what one pair of page tables maps: bytes done, and the error that stopped it.
    fn in_tables(&self, to: u64, from: u64, left: u64) -> (u64, Option<Stop>) {
        let destination = self.space.tables.get(to);
        let source = self.space.tables.get(from);
        if matches!(&*destination.lock(), Level::Huge(_)) {
            return (0, Some(Errno::EEXIST.into()));
        }
        match self.prepare_source((&destination, to), (&source, from), left) {
            Ok(0) => {}
            Ok(moved) => return (moved, None),
            Err(errno) => return (0, Some(errno.into())),
        }
        let in_table = |address: u64| HUGE - address % HUGE;
        let length = left.min(in_table(to)).min(in_table(from));
        self.entries((&destination, to), (&source, from), length)
    }

    /// Sees to it that the source has a table. A huge page is moved whole where that is possible
    /// (then the result is its size), and split where it is not.
    fn prepare_source(
        &self,
        (destination, to): (&Slot, u64),
        (source, from): (&Slot, u64),
        left: u64,
    ) -> Result<u64, Errno> {
        match lock_pair((source, from), (destination, to)) {
            PairGuard::One(mut level) => self.prepare_level(&mut level, None, (to, from), left),
            PairGuard::Two { mut source, mut destination } => {
                self.prepare_level(&mut source, Some(&mut destination), (to, from), left)
            }
        }
    }

    fn prepare_level(
        &self,
        source: &mut Level,
        destination: Option<&mut Level>,
        (to, from): (u64, u64),
        left: u64,
    ) -> Result<u64, Errno> {
        match source {
            Level::Table(_) => return Ok(0),
            Level::Empty if self.holes => {
                source.table_or_new();
                return Ok(0);
            }
            Level::Empty => return Err(Errno::ENOENT),
            Level::Huge(_) => {}
        }
        let Level::Huge(entry) = &mut *source else { return Ok(0) };
        let bits = match entry {
            Entry::Page(mapped) => {
                if !mapped.seems_exclusive() || mapped.folio.maybe_pinned() {
                    return Err(Errno::EBUSY);
                }
                moved_bits(self.destination)
            }
            Entry::Zero(_) => moved_bits(self.destination) - Bits::WRITE - Bits::EXCLUSIVE,
            _ => return Err(Errno::EBUSY),
        };
        let whole = from.is_multiple_of(HUGE) && to.is_multiple_of(HUGE) && left >= HUGE;
        match destination {
            Some(destination) if whole && matches!(destination, Level::Empty) => {
                let mut huge = std::mem::take(entry);
                *huge.bits_mut().expect("present") = bits;
                *source = Level::Empty;
                *destination = Level::Huge(huge);
                Ok(HUGE)
            }
            // The page itself is split when the first of its parts really moves.
            _ => {
                source.split();
                Ok(0)
            }
        }
    }

    /// Moves entries under both locks, in one go until something has to be waited for.
    fn entries(
        &self,
        (destination, to): (&Slot, u64),
        (source, from): (&Slot, u64),
        length: u64,
    ) -> (u64, Option<Stop>) {
        let mut done = 0;
        let mut guard = lock_pair((source, from), (destination, to));
        while done < length {
            if done > 0 && self.thread.is_dying() {
                return (done, Some(Errno::EINTR.into()));
            }
            let indices = (index_in_table(to + done), index_in_table(from + done));
            let moved = self.entry(&mut guard, indices);
            match moved {
                Moved::Done => done += PAGE,
                Moved::Failed(errno) => return (done, Some(errno.into())),
                Moved::Large(folio) => return (done, Some(Stop::Large(folio))),
                Moved::Contended(folio) => {
                    // The page lock is only tried under the page-table locks. It is waited for
                    // without them; whether the entry is still the same is found out anew.
                    drop(guard);
                    folio.lock.wait();
                    guard = lock_pair((source, from), (destination, to));
                }
                Moved::Migrating(sleeper) => return (done, Some(Stop::Migrating(sleeper))),
                // A huge page was put where a table was: begin again with this pair.
                Moved::Changed => return (done, None),
            }
        }
        (done, None)
    }

    fn entry(&self, guard: &mut PairGuard<'_>, (to, from): (usize, usize)) -> Moved {
        match guard {
            PairGuard::One(level) => {
                let Level::Table(table) = &mut **level else { return Moved::Changed };
                let mut entry = std::mem::take(&mut table.entries()[from]);
                let moved = if to == from {
                    // The page is its own destination.
                    if entry.is_none() { self.hole() } else { Moved::Failed(Errno::EEXIST) }
                } else {
                    move_one(self.destination, self.holes, &mut table.entries()[to], &mut entry)
                };
                table.entries()[from] = entry;
                moved
            }
            PairGuard::Two { source, destination } => {
                let Level::Table(source) = &mut **source else { return Moved::Changed };
                let Some(destination) = destination.table_or_new() else {
                    return Moved::Failed(Errno::EEXIST);
                };
                let target = &mut destination.entries()[to];
                move_one(self.destination, self.holes, target, &mut source.entries()[from])
            }
        }
    }

    fn hole(&self) -> Moved {
        if self.holes { Moved::Done } else { Moved::Failed(Errno::ENOENT) }
    }
}
