//! What both worlds have agreed on so far: which numbers exist, and what would be a race.
//!
//! A race is where the kernel may let either of two woken threads go first. Such acts are left
//! out, in replays too, so that any disagreement is one about the rules.

use godwit_uffd::abi::{Answer, RawMessage};

use super::act::{AREAS, Act, How, Memory, Number, Span, address, units};
use super::act::{FIRST_HUGETLB, FIRST_TRANSPARENT, SMALL};
use super::side::{Ended, Report};
use crate::world::{Advice, Outcome, Process};

/// The feature bit of UNMAP events.
const EVENT_UNMAP: u64 = 1 << 6;

/// What sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleeper {
    /// An access.
    Touch {
        /// The area.
        area: u8,
        /// The unit in it.
        page: u8,
        /// Not a load.
        store: bool,
        /// Not by the kernel.
        user: bool,
    },
    /// A COPY that waits for its source.
    Call {
        /// The source's area.
        area: u8,
        /// Its first unit.
        page: u8,
        /// How many.
        pages: u8,
    },
    /// MADV_POPULATE or mlock.
    Populate {
        /// What it populates.
        at: Span,
        /// As stores would.
        store: bool,
    },
    /// Another call of memory management.
    Memory,
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Not closed.
    pub open: bool,
    /// The process whose memory it is for.
    pub process: u8,
    /// What was asked for in the handshake.
    pub features: u64,
    /// Faults may be queued in any order.
    disorder: bool,
}

/// The areas of a process: what each was mapped as last.
pub type Areas = [Option<Memory>; AREAS as usize];

/// What exists.
#[derive(Clone, Debug)]
pub struct Book {
    /// The areas of each process that lives.
    pub processes: Vec<Option<Areas>>,
    /// All descriptors there were.
    pub descriptors: Vec<Descriptor>,
    /// What sleeps, by ticket, and its process.
    pub tickets: Vec<Option<(u8, Sleeper)>>,
    /// Memory was locked.
    locks: bool,
}

impl Default for Book {
    fn default() -> Self {
        let root = Some([None; AREAS as usize]);
        Self { processes: vec![root], descriptors: Vec::new(), tickets: Vec::new(), locks: false }
    }
}

fn small(count: usize) -> u8 {
    u8::try_from(count).expect("a case is short")
}

/// Processes at one time, so that looking at all memory stays quick.
const PROCESSES_MAX: usize = 3;
/// Processes, descriptors and tickets in all.
const NUMBERS_MAX: usize = 100;

impl Book {
    /// The areas of a living process.
    #[must_use]
    pub fn areas(&self, process: u8) -> Option<&Areas> {
        self.processes.get(usize::from(process))?.as_ref()
    }

    /// Living processes.
    pub fn living(&self) -> impl Iterator<Item = u8> + '_ {
        let all = self.processes.iter().enumerate();
        all.filter(|(_, areas)| areas.is_some()).map(|(number, _)| small(number))
    }

    /// Open descriptors.
    pub fn open(&self) -> impl Iterator<Item = u8> + '_ {
        let all = self.descriptors.iter().enumerate();
        all.filter(|(_, one)| one.open).map(|(number, _)| small(number))
    }

    /// What sleeps: ticket, process, and what it is.
    pub fn sleepers(&self) -> impl Iterator<Item = (u8, u8, Sleeper)> + '_ {
        let all = self.tickets.iter().enumerate();
        all.filter_map(|(number, one)| one.map(|(process, what)| (small(number), process, what)))
    }

    fn asleep(&self, is: impl Fn(Sleeper) -> bool) -> bool {
        self.sleepers().any(|(_, _, what)| is(what))
    }

    fn lives(&self, process: u8) -> bool {
        self.areas(process).is_some()
    }

    fn is_open(&self, fd: u8) -> bool {
        self.descriptors.get(usize::from(fd)).is_some_and(|one| one.open)
    }

    /// Whether it matters which of two, each in a process, goes on first: if one stores what the
    /// other reads, and in memory of files also if one reads, because a read maps the pages around
    /// it that are there.
    fn race(&self, one: (u8, Sleeper), other: (u8, Sleeper)) -> bool {
        let facts = |(process, sleeper)| {
            let (at, store, bytes) = match sleeper {
                Sleeper::Touch { area, page, store, .. } => {
                    (Span { area, page, pages: 1 }, store, true)
                }
                Sleeper::Call { area, page, pages } => (Span { area, page, pages }, false, true),
                // It makes pages and looks at no byte of them.
                Sleeper::Populate { at, store } => (at, store, false),
                Sleeper::Memory => return None,
            };
            let anonymous = self.is_anonymous(process, at) && !self.is_file(process, at.area);
            Some((at, store, bytes, !anonymous))
        };
        let (Some(one), Some(other)) = (facts(one), facts(other)) else { return false };
        let [a, b] = [one.0, other.0];
        let overlap = a.page < b.page + b.pages && b.page < a.page + a.pages;
        let far = a.pages.max(b.pages) > 8;
        let bytes = one.2 && other.2 && one.1 != other.1;
        let reads = !one.1 || !other.1;
        (bytes && (overlap || far)) || (reads && one.3 && other.3)
    }

    /// Whether an area is memory of a file.
    fn is_file(&self, process: u8, area: u8) -> bool {
        let memory = self.areas(process).and_then(|areas| areas[usize::from(area)]);
        !matches!(memory, None | Some(Memory::Anonymous | Memory::Transparent))
    }

    /// Whether it would matter which of two sleepers goes on first if an area became other memory.
    fn would_race(&self, process: u8, area: u8, memory: Option<Memory>) -> bool {
        let mut then = self.clone();
        if then.lives(process) {
            then.set(process, area, memory);
        }
        let sleepers: Vec<_> = then.sleepers().map(|(_, owner, what)| (owner, what)).collect();
        let mut pairs = (1..sleepers.len()).flat_map(|end| (0..end).map(move |one| (one, end)));
        pairs.any(|(one, other)| then.race(sleepers[one], sleepers[other]))
    }

    /// Whether it would matter which goes on first, something new or one that sleeps.
    fn races(&self, process: u8, new: Sleeper) -> bool {
        self.sleepers().any(|(_, owner, what)| self.race((owner, what), (process, new)))
    }

    /// Whether nothing but private anonymous memory can be in a range.
    fn is_anonymous(&self, process: u8, at: Span) -> bool {
        let Some(areas) = self.areas(process) else { return false };
        let end = at.start() + at.bytes();
        (0..AREAS).zip(areas).all(|(area, memory)| {
            let apart = address(area, units(area)) <= at.start() || end <= address(area, 0);
            let anonymous = matches!(memory, None | Some(Memory::Anonymous | Memory::Transparent));
            apart || anonymous
        })
    }

    /// Whether a range is in hugetlb memory. It is never moved: 6.18 then loses count of what is
    /// reserved, and the host's pool does not shrink again.
    fn is_hugetlb(&self, process: u8, at: Span) -> bool {
        let memory = self.areas(process).and_then(|areas| areas[usize::from(at.area)]);
        (FIRST_HUGETLB..FIRST_TRANSPARENT).contains(&at.area)
            || matches!(memory, Some(Memory::Hugetlb | Memory::HugetlbFile { .. }))
    }

    /// Whether an act can be done now, and in one way only.
    #[must_use]
    pub fn allows(&self, act: Act) -> bool {
        let room = self.tickets.len().max(self.descriptors.len()).max(self.processes.len());
        if room >= NUMBERS_MAX {
            return false;
        }
        let memory = |what| matches!(what, Sleeper::Memory | Sleeper::Populate { .. });
        let no_memory = !self.asleep(memory);
        match act {
            // A mapping over another would sleep, and has no way to say so.
            Act::Map { process, area, memory, .. } => {
                let events = |one: &Descriptor| one.open && one.features & EVENT_UNMAP != 0;
                let told = self.descriptors.iter().any(events);
                self.lives(process) && !told && !self.would_race(process, area, Some(memory))
            }
            // Where a protected page of a file becomes a marker, 6.18 installs the guard for ever.
            Act::Advise { process, at, advice: Advice::GuardInstall } => {
                self.lives(process) && no_memory && self.is_anonymous(process, at)
            }
            // Parts of huge pages stay where parts are expected. Locked memory does not grow: the
            // kernel then populates it, and the model has no such step in mremap.
            Act::Remap { process, from, to, new_pages, .. } => {
                let grows = new_pages > from.pages;
                let alike = (from.area < SMALL) == (to < SMALL) && !(grows && self.locks);
                let memory = self.areas(process).and_then(|areas| areas[usize::from(from.area)]);
                let apart =
                    !self.is_hugetlb(process, from) && !self.would_race(process, to, memory);
                self.lives(process) && no_memory && alike && apart
            }
            Act::Unmap { process, .. }
            | Act::Advise { process, .. }
            | Act::Lock { process, .. } => {
                self.lives(process) && no_memory && !self.races(process, of_memory(act))
            }
            Act::Fork { process } => {
                self.lives(process) && no_memory && self.living().count() < PROCESSES_MAX
            }
            Act::Protect { process, .. } | Act::Scan { process, .. } => self.lives(process),
            Act::Open { process, .. } => self.lives(process),
            Act::Exit { process } => process != 0 && self.lives(process) && no_memory,
            Act::Close { fd } => {
                // A call in flight keeps a context alive without a descriptor to read it by.
                let in_flight = self.asleep(|one| matches!(one, Sleeper::Call { .. }));
                let lone = no_memory || !self.asleep(|one| !memory(one));
                self.is_open(fd) && lone && !in_flight
            }
            Act::Call { process, fd, number: Number::Copy, at, from, .. } => {
                // A store that is woken with it may come before or behind its reading.
                let source = Sleeper::Call { area: from.0, page: from.1, pages: at.pages };
                let alone = !self.asleep(|one| matches!(one, Sleeper::Call { .. }));
                self.lives(process) && self.is_open(fd) && alone && !self.races(process, source)
            }
            Act::Call { process, fd, .. } => self.lives(process) && self.is_open(fd),
            Act::Read { fd, .. } => self.is_open(fd),
            Act::Touch { process, area, page, how, .. } => {
                let store = matches!(how, How::Store | How::KernelStore);
                let new = Sleeper::Touch { area, page, store, user: true };
                self.lives(process) && !self.races(process, new)
            }
            Act::Interrupt { ticket } => {
                let sleeper = self.tickets.get(usize::from(ticket)).copied().flatten();
                // An access by the kernel does not end with a signal: it tries again and again.
                matches!(sleeper, Some((_, Sleeper::Touch { user: true, .. })))
            }
            Act::FileStore { .. } | Act::FilePunch { .. } | Act::FileTruncate { .. } => true,
        }
    }

    /// Whether faults may be queued on a descriptor in any order.
    #[must_use]
    pub fn disorder(&self, fd: u8) -> bool {
        self.descriptors[usize::from(fd)].disorder
    }

    /// Notes what an act has come to.
    pub fn note(&mut self, act: Act, report: &Report, ended: &[Ended]) {
        match report {
            Report::Asleep => self.note_sleeper(act),
            Report::Over(Outcome::Forked(child)) => self.note_child(act, *child),
            Report::Opened(Ok(answer)) => self.note_descriptor(act, answer),
            Report::Read(Ok(messages)) => self.note_messages(act, messages),
            Report::Mapped(Ok(_)) => {
                if let Act::Map { process, area, memory, .. } = act {
                    self.set(process, area, Some(memory));
                }
            }
            Report::Over(Outcome::Returned(Ok(_))) => self.note_memory(act),
            _ => {}
        }
        self.locks |= matches!(act, Act::Lock { locked: true, .. });
        if let Act::Close { fd } = act {
            self.descriptors[usize::from(fd)].open = false;
        }
        if let Act::Exit { process } = act {
            self.processes[usize::from(process)] = None;
        }
        for (ticket, outcome) in ended {
            let sleeper = self.tickets[usize::from(*ticket)].take();
            if let (Outcome::Forked(child), Some((process, _))) = (outcome, sleeper) {
                self.note_child(Act::Fork { process }, *child);
            }
        }
        if self.sleepers().count() > 1 && may_wake(act) {
            self.descriptors.iter_mut().for_each(|one| one.disorder = true);
        }
    }

    /// Tickets of a process that is about to end.
    pub fn forget(&mut self, process: u8) -> Vec<u8> {
        let gone: Vec<u8> = self
            .sleepers()
            .filter(|(_, owner, _)| *owner == process)
            .map(|(ticket, _, _)| ticket)
            .collect();
        for ticket in &gone {
            self.tickets[usize::from(*ticket)] = None;
        }
        gone
    }

    fn set(&mut self, process: u8, area: u8, memory: Option<Memory>) {
        if let Some(areas) = &mut self.processes[usize::from(process)] {
            areas[usize::from(area)] = memory;
        }
    }

    fn note_sleeper(&mut self, act: Act) {
        let sleeper = match act {
            Act::Touch { process, area, page, how, .. } => {
                let store = matches!(how, How::Store | How::KernelStore);
                let user = matches!(how, How::Load | How::Store);
                (process, Sleeper::Touch { area, page, store, user })
            }
            Act::Call { process, at, from: (area, page), .. } => {
                (process, Sleeper::Call { area, page, pages: at.pages })
            }
            Act::Remap { process, .. } => {
                // It has moved already; only its events are left.
                self.note_memory(act);
                (process, of_memory(act))
            }
            Act::Unmap { process, .. }
            | Act::Advise { process, .. }
            | Act::Lock { process, .. }
            | Act::Fork { process } => (process, of_memory(act)),
            other => panic!("{other:?} sleeps"),
        };
        self.tickets.push(Some(sleeper));
    }

    fn note_child(&mut self, act: Act, child: Process) {
        assert_eq!(child.0 as usize, self.processes.len(), "processes are counted");
        let Act::Fork { process } = act else { unreachable!("only forks have children") };
        self.processes.push(self.processes[usize::from(process)]);
    }

    fn note_descriptor(&mut self, act: Act, answer: &Answer) {
        let Act::Open { process, features, .. } = act else { unreachable!("only open opens") };
        let features = if answer.result.is_ok() { features } else { 0 };
        self.descriptors.push(Descriptor { open: true, process, features, disorder: false });
    }

    fn note_messages(&mut self, act: Act, read: &[RawMessage]) {
        let Act::Read { fd, messages } = act else { unreachable!("only read reads") };
        let own = self.descriptors[usize::from(fd)];
        for message in read {
            if let RawMessage::Fork { .. } = message {
                // The child is the next process: no second fork begins before this one ends.
                let process = small(self.processes.len());
                self.descriptors.push(Descriptor { open: true, process, ..own });
            }
        }
        if read.len() < usize::from(messages) {
            self.descriptors[usize::from(fd)].disorder = false;
        }
    }

    /// After a move an area may hold two kinds of memory. The one to beware of is noted.
    fn note_memory(&mut self, act: Act) {
        if let Act::Remap { process, from, to, .. } = act
            && let Some(areas) = self.areas(process)
        {
            let [from, there] = [from.area, to].map(|area| areas[usize::from(area)]);
            if matches!(there, None | Some(Memory::Anonymous | Memory::Transparent)) {
                self.set(process, to, from.or(there));
            }
        }
    }
}

/// What a call of memory management is while it sleeps.
fn of_memory(act: Act) -> Sleeper {
    match act {
        Act::Advise { at, advice: Advice::PopulateRead, .. } => {
            Sleeper::Populate { at, store: false }
        }
        Act::Advise { at, advice: Advice::PopulateWrite, .. } => {
            Sleeper::Populate { at, store: true }
        }
        // As stores in private memory, and as loads in other.
        Act::Lock { at, locked: true, .. } => Sleeper::Populate { at, store: false },
        _ => Sleeper::Memory,
    }
}

/// Whether an act may wake more than one thread.
fn may_wake(act: Act) -> bool {
    match act {
        Act::Call { .. } | Act::Close { .. } | Act::Read { .. } | Act::Exit { .. } => true,
        Act::Advise { advice, .. } => !matches!(advice, Advice::NoHugePage | Advice::HugePage),
        Act::Unmap { .. } | Act::Map { .. } | Act::Remap { .. } | Act::Fork { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Access;

    fn map(area: u8, memory: Memory) -> Act {
        Act::Map { process: 0, area, memory, access: Access::ReadWrite }
    }

    #[test]
    fn memory_under_a_sleeper_does_not_become_that_of_a_file_that_another_reads() {
        let shmem = Memory::Shmem { file: 1, shared: false };
        let touch = |area, page, how| Act::Touch { process: 0, area, page, exact: false, how };
        let mut book = Book::default();
        for act in [map(6, shmem), map(5, Memory::Anonymous)] {
            book.note(act, &Report::Mapped(Ok(0)), &[]);
        }
        book.note(touch(5, 2, How::Store), &Report::Asleep, &[]);
        assert!(book.allows(map(5, shmem)), "nobody else sleeps");
        book.note(touch(6, 3, How::Load), &Report::Asleep, &[]);
        assert!(!book.allows(map(5, shmem)));
        assert!(book.allows(map(5, Memory::Anonymous)));
        let from = Span { area: 6, page: 0, pages: 8 };
        let remap = |to| Act::Remap { process: 0, from, to, new_pages: 8, dont_unmap: true };
        assert!(!book.allows(remap(5)));
        assert!(book.allows(remap(4)));
    }

    #[test]
    fn nothing_reads_a_file_beside_a_call_that_populates_it() {
        let shmem = Memory::Shmem { file: 1, shared: true };
        let touch = |area, how| Act::Touch { process: 0, area, page: 5, exact: false, how };
        let at = Span { area: 7, page: 0, pages: 8 };
        let advise = |advice| Act::Advise { process: 0, at, advice };
        let mut book = Book::default();
        for act in [map(7, shmem), map(5, Memory::Anonymous)] {
            book.note(act, &Report::Mapped(Ok(0)), &[]);
        }
        let before = book.clone();
        book.note(advise(Advice::PopulateWrite), &Report::Asleep, &[]);
        assert!(!book.allows(touch(7, How::Load)));
        assert!(book.allows(touch(7, How::Store)), "neither maps other pages");
        book = before;
        book.note(advise(Advice::PopulateRead), &Report::Asleep, &[]);
        assert!(!book.allows(touch(7, How::Store)));
        assert!(book.allows(touch(5, How::Load)), "private memory");
        assert!(!book.allows(advise(Advice::DontNeed)), "one call at a time");
    }
}
