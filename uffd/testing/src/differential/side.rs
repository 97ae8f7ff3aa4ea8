//! One of the two worlds, with its numbers translated to those that both have in common.

use std::collections::BTreeMap;

use godwit_uffd::abi::{Answer, Errno, RawMessage};

use super::act::{AREAS, Act, How, Memory, Span, byte, call, touched, unit, units};
use crate::world::{
    Ability, BASE_PAGE, Backing, Door, Entry, Fd, FdInfo, File, FileKind, Mapping, Outcome,
    Placement, Polled, Process, Remap, Scan, ScanRegion, Step, Ticket, Touch, World,
};

/// Base pages of a small file, and of the hugetlb file.
const FILE_PAGES: u64 = 8;
const HUGE_FILE_PAGES: u64 = 1024;

/// What an act has come to. Processes, descriptors and threads have their common numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// There is nothing to say.
    Nothing,
    /// A mapping.
    Mapped(Result<u64, Errno>),
    /// A descriptor, and its handshake.
    Opened(Result<Answer, Errno>),
    /// Something that may sleep is over.
    Over(Outcome),
    /// Its thread sleeps.
    Asleep,
    /// What was read.
    Read(Result<Vec<RawMessage>, Errno>),
    /// What a scan has found.
    Scanned(Result<Vec<ScanRegion>, Errno>),
}

/// The state that both worlds show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Of each process and page: the entry, and the page's first byte.
    pub pages: Vec<(u8, u64, Entry, Option<u8>)>,
    /// Of each open descriptor.
    pub descriptors: Vec<(u8, FdInfo, Polled)>,
    /// Of each page of each small file.
    pub files: Vec<Option<u8>>,
}

/// How a ticket that was over has ended.
pub type Ended = (u8, Outcome);

/// A world and its numbers.
pub struct Side {
    world: Box<dyn World>,
    processes: Vec<Option<Process>>,
    descriptors: Vec<Option<Fd>>,
    tickets: Vec<Option<Ticket>>,
    /// The ticket of each thread that sleeps or has slept.
    threads: BTreeMap<u32, u8>,
    files: Vec<File>,
    huge_file: Option<File>,
}

fn small(count: usize) -> u8 {
    u8::try_from(count).expect("a case is short")
}

impl Side {
    /// A fresh world, with two files.
    pub fn new(mut world: Box<dyn World>, hugetlb: bool) -> Self {
        let root = world.root();
        let files = (0..2).map(|_| world.make_file(FileKind::Shmem, FILE_PAGES)).collect();
        let huge_file = hugetlb.then(|| {
            let pool = world.can(Ability::Hugetlb(HUGE_POOL));
            pool.unwrap_or_else(|reason| panic!("huge pages were there a moment ago: {reason:?}"));
            world.make_file(FileKind::Hugetlb, HUGE_FILE_PAGES)
        });
        Self {
            world,
            processes: vec![Some(root)],
            descriptors: Vec::new(),
            tickets: Vec::new(),
            threads: BTreeMap::new(),
            files,
            huge_file,
        }
    }

    fn process(&self, number: u8) -> Process {
        self.processes[usize::from(number)].expect("the book says that it lives")
    }

    fn fd(&self, number: u8) -> Fd {
        self.descriptors[usize::from(number)].expect("the book says that it is open")
    }

    /// Does one thing.
    pub fn apply(&mut self, act: Act) -> Report {
        match act {
            Act::Map { process, area, memory, access } => {
                let pages = u64::from(units(area)) * unit(area);
                let at = Some(super::act::address(area, 0));
                let mapping = Mapping { pages, backing: self.backing(memory), access, at };
                Report::Mapped(self.world.map(self.process(process), mapping))
            }
            Act::Open { process, features, user_mode_only } => {
                self.open(process, features, user_mode_only)
            }
            Act::Close { fd } => {
                let open = self.descriptors[usize::from(fd)].take();
                self.world.close(open.expect("the book says that it is open"));
                Report::Nothing
            }
            Act::Exit { process } => {
                let living = self.processes[usize::from(process)].take();
                self.world.exit(living.expect("the book says that it lives"));
                Report::Nothing
            }
            Act::Read { fd, messages } => self.read(fd, messages),
            Act::Interrupt { ticket } => {
                let ticket = self.tickets[usize::from(ticket)].expect("the book says it sleeps");
                self.world.interrupt(ticket);
                Report::Nothing
            }
            Act::Scan { process, at, flags, mask } => {
                let (start, end) = (at.start(), at.start() + at.bytes());
                let scan = Scan { start, end, flags, mask };
                Report::Scanned(self.world.scan(self.process(process), scan))
            }
            Act::FileStore { file, page } => {
                self.world.file_store(self.files[usize::from(file)], page.into(), byte(page));
                Report::Nothing
            }
            Act::FilePunch { file, page } => {
                self.world.file_punch(self.files[usize::from(file)], page.into());
                Report::Nothing
            }
            Act::FileTruncate { file, pages } => {
                self.world.file_truncate(self.files[usize::from(file)], pages.into());
                Report::Nothing
            }
            other => {
                let step = self.start(other);
                self.report(step)
            }
        }
    }

    /// What may sleep.
    fn start(&mut self, act: Act) -> Step {
        match act {
            Act::Unmap { process, at } => {
                self.world.unmap(self.process(process), at.start(), at.base_pages())
            }
            Act::Protect { process, at, access } => {
                self.world.protect(self.process(process), at.start(), at.base_pages(), access)
            }
            Act::Advise { process, at, advice } => {
                self.world.advise(self.process(process), at.start(), at.base_pages(), advice)
            }
            Act::Remap { process, from, to, new_pages, dont_unmap } => {
                let target = Span { area: to, page: from.page, pages: new_pages };
                let remap = Remap {
                    from: from.start(),
                    pages: from.base_pages(),
                    new_pages: target.base_pages(),
                    to: Some(target.start()),
                    dont_unmap,
                };
                self.world.remap(self.process(process), remap)
            }
            Act::Lock { process, at, locked } => {
                self.world.lock(self.process(process), at.start(), at.base_pages(), locked)
            }
            Act::Fork { process } => self.world.fork(self.process(process)),
            Act::Call { process, fd, number, at, from, mode, odd, placement } => {
                let call = call(number, at, from, mode, odd);
                self.world.ioctl(self.process(process), self.fd(fd), call, placement)
            }
            Act::Touch { process, area, page, exact, how } => {
                let touch = match how {
                    How::Load => Touch::Load,
                    How::Store => Touch::Store(byte(page)),
                    How::KernelLoad => Touch::KernelLoad,
                    How::KernelStore => Touch::KernelStore(byte(page)),
                };
                self.world.touch(self.process(process), touched(area, page, exact), touch)
            }
            other => unreachable!("{other:?} does not sleep"),
        }
    }

    fn backing(&self, memory: Memory) -> Backing {
        let (file, shared) = match memory {
            Memory::Anonymous => return Backing::Anonymous,
            Memory::SharedAnonymous => return Backing::SharedAnonymous,
            Memory::Hugetlb => return Backing::Hugetlb,
            Memory::Transparent => return Backing::TransparentHuge,
            Memory::Shmem { file, shared } => (self.files[usize::from(file)], shared),
            Memory::HugetlbFile { shared } => (self.huge_file.expect("a hugetlb file"), shared),
        };
        Backing::File { file, page: 0, shared, read_only_descriptor: false }
    }

    fn open(&mut self, process: u8, features: u64, user_mode_only: bool) -> Report {
        const CLOEXEC: u32 = 0o200_0000;
        const NONBLOCK: u32 = 0o4000;
        let process = self.process(process);
        let flags = CLOEXEC | NONBLOCK | u32::from(user_mode_only);
        let fd = match self.world.open(process, Door::Call, flags) {
            Err(error) => return Report::Opened(Err(error)),
            Ok(fd) => fd,
        };
        self.descriptors.push(Some(fd));
        let call = godwit_uffd::abi::Call::Api { api: 0xAA, features };
        match self.world.ioctl(process, fd, call, Placement::Ordinary) {
            Step::Done(Outcome::Ioctl(answer)) => Report::Opened(Ok(answer)),
            other => panic!("a handshake has come to {other:?}"),
        }
    }

    fn read(&mut self, fd: u8, messages: u8) -> Report {
        let mut read = self.world.read(self.fd(fd), usize::from(messages) * 32);
        for message in read.iter_mut().flatten() {
            match message {
                RawMessage::Fork { fd } => {
                    self.descriptors.push(Some(Fd(*fd)));
                    *fd = small(self.descriptors.len() - 1).into();
                }
                RawMessage::Pagefault { ptid, .. } if *ptid != 0 => {
                    let ticket = self.threads.get(ptid);
                    *ptid = ticket.map_or(u32::MAX, |ticket| 1 + u32::from(*ticket));
                }
                _ => {}
            }
        }
        Report::Read(read)
    }

    fn report(&mut self, step: Step) -> Report {
        match step {
            Step::Done(outcome) => Report::Over(self.common(outcome)),
            Step::Parked(ticket) => {
                let number = small(self.tickets.len());
                self.threads.insert(self.world.thread_id(ticket), number);
                self.tickets.push(Some(ticket));
                Report::Asleep
            }
        }
    }

    fn common(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Forked(child) => {
                self.processes.push(Some(child));
                Outcome::Forked(Process(small(self.processes.len() - 1).into()))
            }
            other => other,
        }
    }

    /// Lets everything that was woken come to an end or to sleep; what has ended.
    pub fn settle(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        loop {
            let before = ended.len();
            for number in 0..self.tickets.len() {
                let Some(ticket) = self.tickets[number] else { continue };
                if let Step::Done(outcome) = self.world.poll_ticket(ticket) {
                    self.tickets[number] = None;
                    let outcome = self.common(outcome);
                    ended.push((small(number), outcome));
                }
            }
            // One that has ended may have woken another that was looked at before.
            if ended.len() == before {
                ended.sort_by_key(|(number, _)| *number);
                return ended;
            }
        }
    }

    /// Forgets a ticket whose process has ended.
    pub fn forget(&mut self, ticket: u8) {
        self.tickets[usize::from(ticket)] = None;
    }

    /// Looks at the areas of the processes, at all descriptors and at all files.
    pub fn observe(&mut self, areas: &[(u8, u8)]) -> Observation {
        let mut seen = Observation::default();
        for &(process, area) in areas {
            let living = self.process(process);
            // Of large units the first two pages say whether it is whole.
            let (pieces, pages) = match unit(area) {
                1 => (1, units(area)),
                _ => (units(area), 2),
            };
            for piece in 0..pieces {
                let start = super::act::address(area, piece);
                let entries = self.world.entries(living, start, pages.into());
                let bytes = self.world.bytes(living, start, pages.into());
                let places = (0..).map(|page| start + page * BASE_PAGE);
                let looks = places.zip(entries.into_iter().zip(bytes));
                let large = unit(area) > 1;
                seen.pages.extend(looks.map(|(at, (entry, byte))| {
                    let entry = if large { without_sharing(entry) } else { entry };
                    (process, at, entry, byte)
                }));
            }
        }
        for number in 0..self.descriptors.len() {
            if let Some(fd) = self.descriptors[number] {
                let (info, polled) = (self.world.fd_info(fd), self.world.poll(fd));
                seen.descriptors.push((small(number), info, polled));
            }
        }
        for file in self.files.clone() {
            seen.files.extend((0..FILE_PAGES).map(|page| self.world.file_load(file, page)));
        }
        seen
    }
}

/// Whether a part of a huge page counts as shared depends on how precisely a kernel was built to
/// count, so it is not compared.
fn without_sharing(entry: Entry) -> Entry {
    match entry {
        Entry::Anonymous { protected, huge, .. } => {
            Entry::Anonymous { exclusive: true, protected, huge }
        }
        other => other,
    }
}

/// Free huge pages that a case needs: two areas and a file, each twice after a fork.
const HUGE_POOL: u32 = 16;

/// All areas of a process.
pub fn all_areas(process: u8) -> impl Iterator<Item = (u8, u8)> {
    (0..AREAS).map(move |area| (process, area))
}
