//! Claims: who resolves a page, decided by one compare-and-swap per transition.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use godwit_uffd::page::{PageIndex, PageRun};

use super::PageSet;

const MISSING: u8 = 0;
const REQUESTED: u8 = 1;
const INSTALLING: u8 = 2;
const INSTALLING_REQUESTED: u8 = 3;
const ZERO: u8 = 4;
const DATA: u8 = 5;
const POISONED: u8 = 6;
const EMPTYING: u8 = 7;

/// What an installed page was installed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All bytes zero; nothing travelled but the fact.
    Zero,
    /// Contents.
    Data,
    /// Nothing: the source could not read it, and whoever touches it gets a machine check.
    Poisoned,
}

/// The answer to a fault on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// Nobody has asked for it yet: the caller asks the source.
    Now,
    /// It has been asked for, or is being installed: the installer wakes the waiter.
    Before,
    /// It is there: the caller wakes the waiter, which raised its fault too late to be seen.
    Present,
}

/// The peer sent a page that it had sent before, or discarded one that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{page} was sent twice")]
pub struct Duplicate {
    /// The page.
    pub page: PageIndex,
}

/// The state of every page of a guest at the destination.
///
/// ```text
/// Missing -> Requested -> Installing -> Installed (Zero, Data or Poisoned)
///    \__________________^       |           |
///    ^------- released ---------/           |   (back to Missing or Requested, as it was)
///    ^------- Emptying <- discarded --------/   (before the switchover)
/// ```
///
/// The fault loop, which marks faults as requested, and the bulk threads, which install what is
/// pushed, share nothing else. A page is installed by the one thread that moved it to Installing.
/// A vCPU that was kicked out of its fault raises it again: the page is then Requested already and
/// no second request is sent.
#[derive(Debug)]
pub struct Claims {
    states: Box<[AtomicU8]>,
    remaining: AtomicU32,
    zero: AtomicU32,
    data: AtomicU32,
    poisoned: AtomicU32,
}

impl Claims {
    /// All `pages` missing.
    pub fn new(pages: u32) -> Claims {
        Claims {
            states: (0..pages).map(|_| AtomicU8::new(MISSING)).collect(),
            remaining: AtomicU32::new(pages),
            zero: AtomicU32::new(0),
            data: AtomicU32::new(0),
            poisoned: AtomicU32::new(0),
        }
    }

    /// The number of pages of the guest.
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.states.len()).expect("made from a u32")
    }

    /// Pages that are not installed.
    pub fn remaining(&self) -> u32 {
        self.remaining.load(Ordering::Acquire)
    }

    /// Pages that were installed, by class.
    pub fn installed(&self, class: Class) -> u32 {
        self.counter(class).load(Ordering::Acquire)
    }

    fn counter(&self, class: Class) -> &AtomicU32 {
        match class {
            Class::Zero => &self.zero,
            Class::Data => &self.data,
            Class::Poisoned => &self.poisoned,
        }
    }

    /// Pages that nobody has asked for and nobody has sent.
    pub fn missing(&self) -> u32 {
        let missing = self.states.iter().filter(|s| s.load(Ordering::Acquire) == MISSING).count();
        u32::try_from(missing).expect("at most all pages")
    }

    /// Marks a faulting page as requested.
    ///
    /// `page` must be a page of the guest.
    pub fn request(&self, page: PageIndex) -> Requested {
        match self.update(page, |state| match state {
            MISSING => Some(REQUESTED),
            INSTALLING => Some(INSTALLING_REQUESTED),
            _ => None,
        }) {
            Ok(MISSING) => Requested::Now,
            Err(ZERO | DATA | POISONED) => Requested::Present,
            _ => Requested::Before,
        }
    }

    /// Marks a page that nobody waits for yet as requested, if nobody has asked for it or sent it.
    /// False if somebody has.
    ///
    /// `page` must be a page of the guest.
    pub fn request_ahead(&self, page: PageIndex) -> bool {
        self.update(page, |state| (state == MISSING).then_some(REQUESTED)).is_ok()
    }

    /// Whether `page`, a page of the guest, has not come.
    pub fn is_awaited(&self, page: PageIndex) -> bool {
        matches!(self.states[page.0 as usize].load(Ordering::Acquire), MISSING | REQUESTED)
    }

    /// Moves one page by `step`; the state before it, as an error where there is no such step.
    fn update(&self, page: PageIndex, step: impl FnMut(u8) -> Option<u8>) -> Result<u8, u8> {
        self.states[page.0 as usize].fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
    }

    /// The pages that are in place.
    pub fn received(&self) -> PageSet {
        self.set_of(|state| matches!(state, ZERO | DATA | POISONED))
    }

    /// The pages that were asked for and are not being installed. After the loss of the channel
    /// that the requests went over they have to be asked for again.
    pub fn requested(&self) -> PageSet {
        self.set_of(|state| state == REQUESTED)
    }

    fn set_of(&self, of: impl Fn(u8) -> bool) -> PageSet {
        let mut set = PageSet::empty(self.page_count());
        for (word, states) in (0..).zip(self.states.chunks(u64::BITS as usize)) {
            let bit =
                |(i, state): (usize, &AtomicU8)| u64::from(of(state.load(Ordering::Acquire))) << i;
            set.insert_word(word, states.iter().enumerate().map(bit).sum());
        }
        set
    }

    /// What `run` has is old: its pages are to be emptied, and [`Claims::emptied`] says that they
    /// are. A page that came in between would count as installed and be emptied, so none is taken
    /// until then. Before the switchover only, while no page of `run` is asked for or being
    /// installed.
    ///
    /// # Errors
    /// The first page that is; pages before it are to be emptied by then.
    pub fn discard(&self, run: PageRun) -> Result<(), Duplicate> {
        for page in run.pages() {
            let state = self.update(page, |state| match state {
                MISSING | EMPTYING | ZERO | DATA | POISONED => Some(EMPTYING),
                _ => None,
            });
            match state {
                Ok(ZERO) => self.zero.fetch_sub(1, Ordering::AcqRel),
                Ok(DATA) => self.data.fetch_sub(1, Ordering::AcqRel),
                Ok(POISONED) => self.poisoned.fetch_sub(1, Ordering::AcqRel),
                Ok(_) => continue,
                Err(_) => return Err(Duplicate { page }),
            };
            self.remaining.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The discarded pages of `run` are empty now, and missing.
    pub fn emptied(&self, run: PageRun) {
        for page in run.pages() {
            // Missing, if it was discarded twice at once.
            let emptied = self.update(page, |state| match state {
                EMPTYING | MISSING => Some(MISSING),
                _ => None,
            });
            assert!(emptied.is_ok(), "{page} emptied in state {emptied:?}");
        }
    }

    /// Claims every page of `run` for the caller to install.
    ///
    /// `run` must lie inside the guest.
    ///
    /// # Errors
    /// The first page that is installed, being installed or being emptied; no page of `run` is
    /// claimed then.
    pub fn begin(&self, run: PageRun) -> Result<(), Duplicate> {
        for (done, page) in run.pages().enumerate() {
            if !self.begin_one(page) {
                let done = u32::try_from(done).expect("less than the run");
                self.release(PageRun { first: run.first, count: done });
                return Err(Duplicate { page });
            }
        }
        Ok(())
    }

    fn begin_one(&self, page: PageIndex) -> bool {
        self.update(page, |state| match state {
            MISSING => Some(INSTALLING),
            REQUESTED => Some(INSTALLING_REQUESTED),
            _ => None,
        })
        .is_ok()
    }

    /// Gives back the claims of `run`: nothing was installed.
    pub fn release(&self, run: PageRun) {
        for page in run.pages() {
            let released = self.update(page, |state| match state {
                INSTALLING => Some(MISSING),
                INSTALLING_REQUESTED => Some(REQUESTED),
                _ => None,
            });
            assert!(released.is_ok(), "{page} released in state {released:?}");
        }
    }

    /// The pages of `run`, which the caller claimed, are in place. Calls `was_requested` for each
    /// that a vCPU had asked for. Returns whether these were the last pages of the guest.
    pub fn finish(
        &self,
        run: PageRun,
        class: Class,
        mut was_requested: impl FnMut(PageIndex),
    ) -> bool {
        let installed = match class {
            Class::Zero => ZERO,
            Class::Data => DATA,
            Class::Poisoned => POISONED,
        };
        for page in run.pages() {
            match self.states[page.0 as usize].swap(installed, Ordering::AcqRel) {
                INSTALLING => {}
                INSTALLING_REQUESTED => was_requested(page),
                other => unreachable!("{page} finished in state {other}"),
            }
        }
        self.counter(class).fetch_add(run.count, Ordering::AcqRel);
        self.remaining.fetch_sub(run.count, Ordering::AcqRel) == run.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    #[test]
    fn a_page_is_requested_once_and_installed_once() {
        let claims = Claims::new(4);
        assert_eq!(claims.request(PageIndex(2)), Requested::Now);
        assert_eq!(claims.request(PageIndex(2)), Requested::Before);
        claims.begin(run(2, 1)).unwrap();
        assert_eq!(claims.request(PageIndex(2)), Requested::Before);
        assert_eq!(claims.begin(run(2, 1)), Err(Duplicate { page: PageIndex(2) }));
        let mut requested = Vec::new();
        assert!(!claims.finish(run(2, 1), Class::Data, |page| requested.push(page)));
        assert_eq!(requested, [PageIndex(2)]);
        assert_eq!(claims.request(PageIndex(2)), Requested::Present);
        assert_eq!((claims.remaining(), claims.missing()), (3, 3));
    }

    #[test]
    fn a_run_with_a_duplicate_claims_nothing() {
        let claims = Claims::new(8);
        claims.begin(run(5, 1)).unwrap();
        assert_eq!(claims.request(PageIndex(3)), Requested::Now);
        assert_eq!(claims.begin(run(2, 6)), Err(Duplicate { page: PageIndex(5) }));
        claims.begin(run(2, 3)).unwrap();
        let mut requested = Vec::new();
        claims.finish(run(2, 3), Class::Zero, |page| requested.push(page));
        assert_eq!(requested, [PageIndex(3)]);
    }

    #[test]
    fn released_claims_remember_who_asked() {
        let claims = Claims::new(2);
        claims.request(PageIndex(0));
        claims.begin(run(0, 2)).unwrap();
        assert_eq!(claims.request(PageIndex(1)), Requested::Before);
        claims.release(run(0, 2));
        assert_eq!(claims.request(PageIndex(0)), Requested::Before);
        assert_eq!(claims.request(PageIndex(1)), Requested::Before);
        claims.begin(run(0, 2)).unwrap();
    }

    #[test]
    fn a_poisoned_page_is_there_and_counted_apart() {
        let claims = Claims::new(3);
        claims.begin(run(0, 2)).unwrap();
        assert!(!claims.finish(run(0, 2), Class::Poisoned, |_| {}));
        assert_eq!(claims.request(PageIndex(1)), Requested::Present);
        assert_eq!(claims.begin(run(1, 1)), Err(Duplicate { page: PageIndex(1) }));
        let counts = [Class::Zero, Class::Data, Class::Poisoned].map(|c| claims.installed(c));
        assert_eq!((counts, claims.remaining()), ([0, 0, 2], 1));
        // It has come like any other: it is not sent again after a loss of the source, and rounds
        // may replace it.
        assert_eq!(claims.received().runs().collect::<Vec<_>>(), [run(0, 2)]);
        claims.discard(run(1, 1)).unwrap();
        claims.emptied(run(1, 1));
        assert_eq!((claims.installed(Class::Poisoned), claims.remaining()), (1, 2));
    }

    #[test]
    fn discarded_pages_are_missing_and_come_again() {
        let claims = Claims::new(100);
        claims.begin(run(0, 100)).unwrap();
        claims.finish(run(0, 100), Class::Data, |_| {});
        claims.discard(run(70, 3)).unwrap();
        assert_eq!(claims.begin(run(69, 3)), Err(Duplicate { page: PageIndex(69) }));
        assert_eq!(claims.begin(run(71, 1)), Err(Duplicate { page: PageIndex(71) }));
        claims.emptied(run(70, 3));
        assert_eq!((claims.remaining(), claims.installed(Class::Data)), (3, 97));
        assert!(!claims.received().contains(PageIndex(71)));
        claims.begin(run(71, 1)).unwrap();
        assert_eq!(claims.discard(run(70, 3)), Err(Duplicate { page: PageIndex(71) }));
        claims.finish(run(71, 1), Class::Zero, |_| {});
        claims.request(PageIndex(72));
        assert_eq!(claims.requested().runs().collect::<Vec<_>>(), [run(72, 1)]);
        assert_eq!((claims.remaining(), claims.received().len()), (2, 98));
    }

    #[test]
    fn the_last_page_is_reported_once_among_racing_installers() {
        let claims = Claims::new(20_000);
        let lasts: usize = std::thread::scope(|scope| {
            let install = |offset: u32| {
                let claims = &claims;
                scope.spawn(move || {
                    (offset..20_000)
                        .step_by(4)
                        .filter(|&page| {
                            claims.begin(run(page, 1)).unwrap();
                            claims.finish(run(page, 1), Class::Data, |_| {})
                        })
                        .count()
                })
            };
            let threads: Vec<_> = (0..4).map(install).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((lasts, claims.remaining(), claims.installed(Class::Data)), (1, 0, 20_000));
    }
}
