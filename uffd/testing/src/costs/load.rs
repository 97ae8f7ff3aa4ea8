//! One kind of work on one ground, in rounds. A round works through the whole place, in calls of
//! some pages each, and only that is timed; what makes the place fresh again is not.

use std::time::{Duration, Instant};

use godwit_uffd::abi::{Call, WRITEPROTECT_WP};

use super::{Ground, Layout, Work, source_bytes};
use crate::world::Advice;

/// Work that is ready to be done.
#[derive(Debug)]
pub struct Load<'a, G: Ground> {
    ground: &'a G,
    layout: Layout,
    work: Work,
    /// Bytes of one call.
    batch: u64,
    /// Where the pages are that the next round moves.
    from: u64,
}

impl<'a, G: Ground> Load<'a, G> {
    /// Prepares a ground for calls of `pages` pages each.
    pub fn new(ground: &'a G, work: Work, pages: u64) -> Self {
        let layout = ground.layout();
        let load = Load { ground, layout, work, batch: pages * layout.page(), from: layout.place };
        match work {
            Work::Copy | Work::Zeropage | Work::Poison | Work::Wake => {}
            Work::Continue => {
                load.populate();
                load.advise(Advice::DontNeed);
            }
            Work::Protect | Work::Move => load.populate(),
            Work::Unprotect => {
                load.populate();
                load.protect_all(WRITEPROTECT_WP);
            }
        }
        load
    }

    /// Pages that a round works on.
    pub fn pages(&self) -> u64 {
        self.layout.bytes() / self.layout.page()
    }

    /// Does the work once on every page; how long that took.
    ///
    /// # Panics
    ///
    /// If a call does not do all that it was told.
    pub fn round(&mut self) -> Duration {
        let started = Instant::now();
        for offset in (0..self.layout.bytes()).step_by(word(self.batch)) {
            self.make(self.call(offset));
        }
        let took = started.elapsed();
        self.refresh();
        took
    }

    fn make(&self, call: Call) {
        let answer = self.ground.call(call);
        assert!(answer.result.is_ok(), "{call:x?} of {:?}: {answer:?}", self.layout.kind);
    }

    fn call(&self, offset: u64) -> Call {
        let (start, len) = (self.layout.place + offset, self.batch);
        match self.work {
            Work::Copy => Call::Copy { dst: start, src: self.layout.source, len, mode: 0 },
            Work::Zeropage => Call::Zeropage { start, len, mode: 0 },
            Work::Continue => Call::Continue { start, len, mode: 0 },
            Work::Poison => Call::Poison { start, len, mode: 0 },
            Work::Protect => Call::WriteProtect { start, len, mode: WRITEPROTECT_WP },
            Work::Unprotect => Call::WriteProtect { start, len, mode: 0 },
            Work::Move => {
                Call::Move { dst: self.to() + offset, src: self.from + offset, len, mode: 0 }
            }
            Work::Wake => Call::Wake { start, len },
        }
    }

    fn to(&self) -> u64 {
        let other = self.layout.other.expect("memory that pages can be moved in");
        if self.from == self.layout.place { other } else { self.layout.place }
    }

    /// Makes the place as it was before a round.
    fn refresh(&mut self) {
        match self.work {
            Work::Copy | Work::Zeropage | Work::Poison => self.vacate(),
            Work::Continue => self.advise(Advice::DontNeed),
            Work::Protect => self.protect_all(0),
            Work::Unprotect => self.protect_all(WRITEPROTECT_WP),
            Work::Move => self.from = self.to(),
            Work::Wake => {}
        }
    }

    /// Takes the pages out of the page cache and the page tables.
    fn vacate(&self) {
        if self.layout.kind.is_file() {
            self.advise(Advice::Remove);
        }
        // Poison survives a hole in the file.
        self.advise(Advice::DontNeed);
    }

    fn advise(&self, advice: Advice) {
        self.ground.advise(self.layout.place, self.layout.bytes(), advice);
    }

    fn populate(&self) {
        let (src, len) = (self.layout.source, source_bytes(self.layout.kind));
        for offset in (0..self.layout.bytes()).step_by(word(len)) {
            self.make(Call::Copy { dst: self.layout.place + offset, src, len, mode: 0 });
        }
    }

    fn protect_all(&self, mode: u64) {
        let (start, len) = (self.layout.place, self.layout.bytes());
        self.make(Call::WriteProtect { start, len, mode });
    }
}

impl<G: Ground> Drop for Load<'_, G> {
    /// Leaves holes behind for the next.
    fn drop(&mut self) {
        if self.work == Work::Unprotect {
            // A protected page of a file would leave its protection.
            self.protect_all(0);
        }
        self.vacate();
        if let Some(other) = self.layout.other {
            self.ground.advise(other, self.layout.bytes(), Advice::DontNeed);
        }
    }
}

fn word(value: u64) -> usize {
    usize::try_from(value).expect("words have 64 bits")
}
