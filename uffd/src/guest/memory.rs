//! A guest's memory and the userfaultfd that it is registered with.

use std::ops;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::Error;
use crate::event::Event;
use crate::features::{Features, Ioctls, RegisterMode};
use crate::guest::fallback::Methods;
use crate::guest::mfill::Filled;
use crate::guest::space::GuestSpace;
use crate::memory::MemoryKind;
use crate::page::{Gpa, PageRun};
use crate::trial::Trials;
use crate::uffd::{Installed, Range, Uffd, Wake};

/// How often one operation meets a map that has changed since it last looked, before it leaves
/// the rest to its caller.
const CHANGES_MAX: u32 = 8;

/// A guest's memory with the userfaultfd that it is registered with.
pub struct GuestUffd<U> {
    uffd: U,
    mode: RegisterMode,
    methods: [Methods; MemoryKind::ALL.len()],
    map: RwLock<Map>,
    /// Held by the change that is under way.
    pub(super) changes: Mutex<()>,
}

/// Where the guest's memory is now. Operations hold its lock for reading while a call is under
/// way, so a change begins when none is.
pub(super) struct Map {
    pub space: Arc<GuestSpace>,
    /// Counts the spaces.
    pub generation: u64,
    /// A change is under way: until it is over, operations leave the rest to their callers.
    pub changing: bool,
}

/// The map at the beginning of an operation, by which its runs are numbered.
pub(super) struct Snapshot {
    pub space: Arc<GuestSpace>,
    generation: u64,
}

/// What one call is to be about: pages of a run that lie in one memslot.
pub(super) struct Piece<'a> {
    /// The map as it is now, which does not change during the call.
    pub space: &'a GuestSpace,
    /// Where this process has them.
    pub range: Range,
    /// Which pages they are, counted from the first of the run.
    pub pages: ops::Range<u32>,
    /// What they are made of.
    pub kind: MemoryKind,
}

impl<U: Uffd> GuestUffd<U> {
    /// Puts the two together: all memslots of `space` were registered with `uffd` for missing
    /// pages. Nothing is known of what the kernel can do, so only what lies in the nature of the
    /// memory has a stand-in.
    pub fn new(uffd: U, space: GuestSpace) -> GuestUffd<U> {
        let mode = RegisterMode::MISSING;
        let decide = |kind| {
            Methods::decide(kind, mode, Features::WP_UNPOPULATED, Ioctls::all(), Trials::NONE)
        };
        GuestUffd::assemble(uffd, space, mode, MemoryKind::ALL.map(decide))
    }

    /// Registers all memslots of `space`, which were lent to `uffd`, for `mode`, and decides how
    /// each operation is done: by `enabled`, the features that `uffd` was opened with, by what the
    /// registration reports, and by `trials`.
    ///
    /// # Errors
    ///
    /// What [`Uffd::register`] fails with. `uffd` is dropped, so nothing stays registered.
    pub fn register(
        uffd: U,
        space: GuestSpace,
        mode: RegisterMode,
        enabled: Features,
        trials: impl Fn(MemoryKind) -> Trials,
    ) -> Result<GuestUffd<U>, Error> {
        let mut masks = [Ioctls::all(); MemoryKind::ALL.len()];
        for memslot in space.memslots() {
            masks[memslot.memory as usize] &= uffd.register(space.range_of(memslot), mode)?;
        }
        // Trials take pages for a moment, so only what the guest has is tried.
        let has = |kind| space.memslots().iter().any(|memslot| memslot.memory == kind);
        let trials = |kind| if has(kind) { trials(kind) } else { Trials::NONE };
        let methods = MemoryKind::ALL
            .map(|kind| Methods::decide(kind, mode, enabled, masks[kind as usize], trials(kind)));
        Ok(GuestUffd::assemble(uffd, space, mode, methods))
    }

    fn assemble(
        uffd: U,
        space: GuestSpace,
        mode: RegisterMode,
        methods: [Methods; MemoryKind::ALL.len()],
    ) -> GuestUffd<U> {
        let map = RwLock::new(Map { space: Arc::new(space), generation: 0, changing: false });
        GuestUffd { uffd, mode, methods, map, changes: Mutex::default() }
    }

    /// The userfaultfd.
    pub fn uffd(&self) -> &U {
        &self.uffd
    }

    /// Where the pages are now. Numbers of pages are those of this space: after a change, pages
    /// behind a memslot that came or went have others.
    pub fn space(&self) -> Arc<GuestSpace> {
        Arc::clone(&self.read_map().space)
    }

    /// What the memory is registered for.
    pub fn mode(&self) -> RegisterMode {
        self.mode
    }

    /// How operations on memory of a kind are done.
    pub fn methods(&self, kind: MemoryKind) -> &Methods {
        &self.methods[kind as usize]
    }

    /// Wakes the threads that wait for pages of `run`. The run may span memslots, and end inside a
    /// huge page, whose waiters are woken.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideGuest`] before anything is done, and what [`Uffd::wake`] fails with.
    pub fn wake(&self, run: PageRun) -> Result<(), Error> {
        let space = self.space();
        space.check_inside(run)?;
        space.split(space.whole_pages(run)).try_for_each(|(range, _)| self.uffd.wake(range))
    }

    /// Makes all of the guest's memory ordinary again. Threads that still wait for a page go on
    /// with a page of zeros, so all pages must be in place before.
    ///
    /// # Errors
    ///
    /// What [`Uffd::unregister`] fails with; memslots behind the one that failed stay registered.
    pub fn unregister_all(&self) -> Result<(), Error> {
        let space = self.space();
        space.split(space.all()).try_for_each(|(range, _)| self.uffd.unregister(range))
    }

    /// Appends the events that wait to `into`; see [`Uffd::read_events`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error> {
        self.uffd.read_events(into)
    }

    /// The map as it is now. Nobody who holds it may ask for it again.
    pub(super) fn read_map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_map(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let map = self.read_map();
        Snapshot { space: Arc::clone(&map.space), generation: map.generation }
    }

    /// As [`walk`](GuestUffd::walk), with one wake. In one memslot the calls wake what they have
    /// done, which costs nothing. Over several, a thread that was woken early would run into the
    /// next memslot's missing pages and come back, so all are woken at the end.
    pub(super) fn walk_and_wake(
        &self,
        begin: &Snapshot,
        run: PageRun,
        wake: Wake,
        mut step: impl FnMut(&Piece<'_>, Wake) -> Result<Installed, Error>,
    ) -> Result<Filled, Error> {
        if wake == Wake::Later || begin.space.is_in_one_memslot(run) {
            return self.walk(begin, run, |piece| step(piece, wake));
        }
        let walked = self.walk(begin, run, |piece| step(piece, Wake::Later));
        let done = match &walked {
            Ok(filled) => filled.pages_done(run),
            Err(error) => error.pages_done(),
        };
        let woken = if done > 0 { self.wake(run.first_pages(done)) } else { Ok(()) };
        walked.and_then(|filled| woken.map(|()| filled))
    }

    /// Calls `step` for what is left of each piece of the run until all is done. `step` may do a
    /// part of its piece. The run is numbered by the space at the beginning; if the map changes
    /// on the way, the rest is looked up again by its guest addresses.
    pub(super) fn walk(
        &self,
        begin: &Snapshot,
        run: PageRun,
        mut step: impl FnMut(&Piece<'_>) -> Result<Installed, Error>,
    ) -> Result<Filled, Error> {
        begin.space.check(run)?;
        let unit = begin.space.page_size();
        let (mut done, mut seen, mut changes) = (0, begin.generation, 0);
        while done < run.count {
            let mut place = begin.space.place_of(run.without(done)).expect("the run was checked");
            let gpa = place.gpa;
            let stopped = |source| Error::Stopped { gpa, done, source: Box::new(source) };
            let map = self.read_map();
            if map.generation != seen {
                (seen, changes) = (map.generation, changes + 1);
            }
            if map.changing || changes > CHANGES_MAX {
                return Ok(Filled::EventsFirst { done });
            }
            if seen != begin.generation {
                let now = map.space.place_at(gpa, place.range.bytes);
                place = now.ok_or_else(|| stopped(Error::NotMemory { gpa }))?;
            }
            let end = done + unit.pages_in(place.range.bytes).expect("places are whole pages");
            let (range, kind) = (place.range, place.kind);
            let piece = Piece { space: &map.space, range, pages: done..end, kind };
            match step(&piece).map_err(stopped)? {
                Installed::All => done = end,
                Installed::Partly { bytes } => {
                    assert!(bytes < range.bytes, "{bytes} of {} bytes is not a part", range.bytes);
                    done += unit.pages_in(bytes).expect("pages are installed whole");
                }
                Installed::AlreadyPresent => return Ok(Filled::AlreadyPresent { done }),
                Installed::EventsFirst => return Ok(Filled::EventsFirst { done }),
            }
        }
        Ok(Filled::All)
    }

    /// Where the first page of a run is, for an error; of an empty run, the start of all.
    pub(super) fn gpa_of(&self, run: PageRun) -> Gpa {
        self.read_map().space.gpa_of(run.first).unwrap_or(Gpa(0))
    }

    /// The memory was registered for what `run` is to be used for.
    pub(super) fn check_mode(&self, run: PageRun, needed: RegisterMode) -> Result<(), Error> {
        if self.mode.contains(needed) {
            return Ok(());
        }
        Err(Error::NotRegisteredFor { gpa: self.gpa_of(run), needed })
    }
}

impl Piece<'_> {
    /// What comes of a step that has done the first `part` of this piece.
    pub fn after(&self, part: Range, installed: Installed) -> Installed {
        match installed {
            Installed::All if part.bytes < self.range.bytes => {
                Installed::Partly { bytes: part.bytes }
            }
            other => other,
        }
    }
}

impl<U: AsFd> AsFd for GuestUffd<U> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}
