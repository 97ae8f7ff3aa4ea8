//! Random acts: mostly valid, aimed at memory that is there and at threads that sleep.

use super::act::{AREAS, Act, FIRST_HUGETLB, FIRST_TRANSPARENT, How, Memory, Number, Odd, SMALL};
use super::act::{Span, units};
use super::book::{Book, Sleeper};
use super::random::Random;
use crate::world::{Access, Advice, Placement};

/// What the hosts of both worlds have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kinds {
    /// Hugetlb memory.
    pub hugetlb: bool,
    /// Transparent huge pages.
    pub transparent: bool,
}

/// Feature bits.
mod feature {
    pub(super) const EVENTS: [u64; 4] = [1 << 1, 1 << 2, 1 << 3, 1 << 6];
    pub(super) const SIGBUS: u64 = 1 << 7;
    pub(super) const THREAD_ID: u64 = 1 << 8;
    pub(super) const EXACT_ADDRESS: u64 = 1 << 11;
    pub(super) const UNPOPULATED: u64 = 1 << 13;
    pub(super) const ASYNC: u64 = 1 << 15;
    pub(super) const UNKNOWN: u64 = 1 << 40;
}

/// A source of acts for one case.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    /// Which areas the case plays in.
    areas: Vec<(u8, Memory)>,
    /// Acts that set the scene.
    scene: Vec<Act>,
}

impl Generator {
    /// The case that a seed names.
    #[must_use]
    pub fn new(seed: u64, kinds: Kinds) -> Self {
        let mut random = Random::new(seed);
        let mut areas = Vec::new();
        for area in 0..SMALL {
            if random.one_in_thousand(450) {
                areas.push((area, small_memory(&mut random)));
            }
        }
        if kinds.hugetlb && random.one_in_thousand(150) {
            for area in FIRST_HUGETLB..FIRST_TRANSPARENT {
                let shared = random.one_in_thousand(500);
                let file = Memory::HugetlbFile { shared };
                areas.push((area, random.pick(&[Memory::Hugetlb, file])));
            }
        }
        if kinds.transparent && random.one_in_thousand(150) {
            areas.extend((FIRST_TRANSPARENT..AREAS).map(|area| (area, Memory::Transparent)));
        }
        if areas.is_empty() {
            areas.push((0, Memory::Anonymous));
        }
        let mut generator = Self { random, areas, scene: Vec::new() };
        generator.set_scene();
        generator
    }

    /// Maps most areas, opens a descriptor or two, registers most of the memory.
    fn set_scene(&mut self) {
        let descriptors = if self.random.one_in_thousand(250) { 2 } else { 1 };
        for _ in 0..descriptors {
            let open = self.open(0);
            self.scene.push(open);
        }
        for (area, memory) in self.areas.clone() {
            let access = Access::ReadWrite;
            self.scene.insert(0, Act::Map { process: 0, area, memory, access });
            if self.random.one_in_thousand(850) {
                let fd = self.random.below(descriptors);
                let at = Span { area, page: 0, pages: units(area) };
                let mode = self.register_mode();
                self.scene.push(plain_call(0, fd, Number::Register, at, mode));
            }
        }
        self.scene.reverse();
    }

    /// The next act.
    pub fn next(&mut self, book: &Book) -> Act {
        if let Some(act) = self.scene.pop() {
            return act;
        }
        // Whatever the dice say is possible soon, because touches nearly always are.
        loop {
            let act = self.any(book);
            if book.allows(act) {
                return act;
            }
        }
    }

    fn any(&mut self, book: &Book) -> Act {
        type Make = fn(&mut Generator, &Book) -> Act;
        const MAKERS: [(u64, Make); 13] = [
            (250, Generator::touch),
            (420, Generator::call),
            (90, Generator::read),
            (70, Generator::advise),
            (30, Generator::protect),
            (35, Generator::remap),
            (15, Generator::unmap),
            (25, Generator::map),
            (25, Generator::fork_or_exit),
            (15, Generator::open_or_close),
            (15, Generator::interrupt),
            (50, Generator::file),
            (25, Generator::lock_or_scan),
        ];
        let make = self.random.weighted(&MAKERS);
        make(self, book)
    }

    fn process(&mut self, book: &Book) -> u8 {
        let living: Vec<u8> = book.living().collect();
        self.random.pick(&living)
    }

    /// An open descriptor, or none: then the number of the next.
    fn fd(&mut self, book: &Book) -> u8 {
        let open: Vec<u8> = book.open().collect();
        if open.is_empty() { u8::MAX } else { self.random.pick(&open) }
    }

    /// A place: where a thread sleeps, or in an area that is mapped.
    fn place(&mut self, book: &Book) -> (u8, u8) {
        let asleep: Vec<(u8, u8)> = book
            .sleepers()
            .filter_map(|(_, _, one)| match one {
                Sleeper::Touch { area, page, .. } => Some((area, page)),
                _ => None,
            })
            .collect();
        if !asleep.is_empty() && self.random.one_in_thousand(350) {
            return self.random.pick(&asleep);
        }
        let (area, _) = self.random.pick(&self.areas);
        (area, self.random.below(units(area)))
    }

    fn span(&mut self, book: &Book) -> Span {
        let (area, page) = self.place(book);
        if self.random.one_in_thousand(30) {
            return Span { area, page: 0, pages: units(area) };
        }
        let longest = self.random.weighted(&[(600, 1), (250, 3), (120, 8), (30, 24)]);
        Span { area, page, pages: 1 + self.random.below(longest) }
    }

    fn touch(&mut self, book: &Book) -> Act {
        let (area, page) = self.place(book);
        let ways =
            [(400, How::Load), (400, How::Store), (100, How::KernelLoad), (100, How::KernelStore)];
        let how = self.random.weighted(&ways);
        let exact = self.random.one_in_thousand(100);
        Act::Touch { process: self.process(book), area, page, exact, how }
    }

    fn call(&mut self, book: &Book) -> Act {
        const NUMBERS: [(u64, Number); 11] = [
            (220, Number::Copy),
            (110, Number::Zeropage),
            (150, Number::Move),
            (170, Number::WriteProtect),
            (100, Number::Continue),
            (70, Number::Poison),
            (50, Number::Wake),
            (80, Number::Register),
            (35, Number::Unregister),
            (5, Number::Api),
            (5, Number::Other),
        ];
        let number = self.random.weighted(&NUMBERS);
        let fd = self.fd(book);
        let owner = book.descriptors.get(usize::from(fd)).map_or(0, |one| one.process);
        let process = if self.random.one_in_thousand(950) { owner } else { self.process(book) };
        let at = self.span(book);
        let (area, page) = self.place(book);
        let from = if self.random.one_in_thousand(100) { (at.area, page) } else { (area, page) };
        let mode = match number {
            Number::Register => self.register_mode(),
            _ if self.random.one_in_thousand(30) => u64::from(self.random.below(16)),
            Number::WriteProtect => self.random.weighted(&[(500, 1), (400, 0), (100, 2)]),
            Number::Copy | Number::Continue | Number::Move => {
                self.random.weighted(&[(600, 0), (100, 1), (250, 2), (50, 3)])
            }
            _ => self.random.weighted(&[(850, 0), (150, 1)]),
        };
        let (mut odd, mut placement) = (Odd::No, Placement::Ordinary);
        if self.random.one_in_thousand(40) {
            odd = self.random.pick(&[
                Odd::StartNotAligned,
                Odd::LengthNotAligned,
                Odd::LengthZero,
                Odd::LengthWraps,
                Odd::SmallPage,
                Odd::SourceNotAligned,
                Odd::SourceOutside,
            ]);
        } else if self.random.one_in_thousand(15) {
            placement = self.random.pick(&[Placement::ReadOnly, Placement::Unmapped]);
        }
        Act::Call { process, fd, number, at, from, mode, odd, placement }
    }

    fn register_mode(&mut self) -> u64 {
        let modes = [(300, 1), (150, 2), (250, 3), (80, 4), (80, 5), (40, 6), (80, 7), (10, 0)];
        if self.random.one_in_thousand(10) { 8 } else { self.random.weighted(&modes) }
    }

    fn read(&mut self, book: &Book) -> Act {
        let messages = self.random.weighted(&[(300, 1), (100, 2), (600, 16)]);
        Act::Read { fd: self.fd(book), messages }
    }

    fn advise(&mut self, book: &Book) -> Act {
        const ADVICE: [(u64, Advice); 7] = [
            (450, Advice::DontNeed),
            (120, Advice::Free),
            (100, Advice::Remove),
            (120, Advice::GuardInstall),
            (90, Advice::GuardRemove),
            (60, Advice::PopulateRead),
            (60, Advice::PopulateWrite),
        ];
        let advice = self.random.weighted(&ADVICE);
        Act::Advise { process: self.process(book), at: self.span(book), advice }
    }

    fn access(&mut self) -> Access {
        let all = [(600, Access::ReadWrite), (250, Access::Read), (150, Access::None)];
        self.random.weighted(&all)
    }

    fn protect(&mut self, book: &Book) -> Act {
        Act::Protect { process: self.process(book), at: self.span(book), access: self.access() }
    }

    fn remap(&mut self, book: &Book) -> Act {
        let from = self.span(book);
        let like = usize::from(from.area >= SMALL);
        let to = match like {
            0 => self.random.below(SMALL),
            _ => self.place(book).0,
        };
        let new_pages = match self.random.one_in_thousand(800) {
            true => from.pages,
            false => 1 + self.random.below(8),
        };
        let dont_unmap = self.random.one_in_thousand(250);
        Act::Remap { process: self.process(book), from, to, new_pages, dont_unmap }
    }

    fn unmap(&mut self, book: &Book) -> Act {
        Act::Unmap { process: self.process(book), at: self.span(book) }
    }

    fn map(&mut self, book: &Book) -> Act {
        let (area, mut memory) = self.random.pick(&self.areas);
        if area < SMALL && self.random.one_in_thousand(400) {
            memory = small_memory(&mut self.random);
        }
        let access =
            if self.random.one_in_thousand(850) { Access::ReadWrite } else { self.access() };
        Act::Map { process: self.process(book), area, memory, access }
    }

    fn fork_or_exit(&mut self, book: &Book) -> Act {
        let process = self.process(book);
        match self.random.one_in_thousand(600) {
            true => Act::Fork { process },
            false => Act::Exit { process },
        }
    }

    fn open(&mut self, process: u8) -> Act {
        let mut features = 0;
        for event in feature::EVENTS {
            if self.random.one_in_thousand(250) {
                features |= event;
            }
        }
        for (bit, times) in [
            (feature::THREAD_ID, 500),
            (feature::EXACT_ADDRESS, 400),
            (feature::UNPOPULATED, 500),
            (feature::ASYNC, 120),
            (feature::SIGBUS, 50),
            (feature::UNKNOWN, 5),
        ] {
            if self.random.one_in_thousand(times) {
                features |= bit;
            }
        }
        Act::Open { process, features, user_mode_only: self.random.one_in_thousand(80) }
    }

    fn open_or_close(&mut self, book: &Book) -> Act {
        if self.random.one_in_thousand(600) {
            let process = self.process(book);
            return self.open(process);
        }
        Act::Close { fd: self.fd(book) }
    }

    fn interrupt(&mut self, book: &Book) -> Act {
        let user = |one| matches!(one, Sleeper::Touch { user: true, .. });
        let asleep: Vec<u8> =
            book.sleepers().filter(|(_, _, one)| user(*one)).map(|(ticket, ..)| ticket).collect();
        let ticket = if asleep.is_empty() { u8::MAX } else { self.random.pick(&asleep) };
        Act::Interrupt { ticket }
    }

    fn file(&mut self, _: &Book) -> Act {
        let (file, page) = (self.random.below(2), self.random.below(8));
        let truncate = Act::FileTruncate { file, pages: 1 + page };
        let grow = Act::FileTruncate { file, pages: 8 };
        let acts = [
            (600, Act::FileStore { file, page }),
            (200, Act::FilePunch { file, page }),
            (50, truncate),
            (150, grow),
        ];
        self.random.weighted(&acts)
    }

    fn lock_or_scan(&mut self, book: &Book) -> Act {
        let (process, at) = (self.process(book), self.span(book));
        if self.random.one_in_thousand(400) {
            return Act::Lock { process, at, locked: self.random.one_in_thousand(600) };
        }
        let flags = u64::from(self.random.below(4));
        let mask = self.random.pick(&[0, 1, 2, 8]);
        Act::Scan { process, at, flags, mask }
    }
}

fn small_memory(random: &mut Random) -> Memory {
    let file = random.below(2);
    random.weighted(&[
        (500, Memory::Anonymous),
        (80, Memory::SharedAnonymous),
        (250, Memory::Shmem { file, shared: true }),
        (170, Memory::Shmem { file, shared: false }),
    ])
}

fn plain_call(process: u8, fd: u8, number: Number, at: Span, mode: u64) -> Act {
    let (odd, placement) = (Odd::No, Placement::Ordinary);
    Act::Call { process, fd, number, at, from: (0, 0), mode, odd, placement }
}
