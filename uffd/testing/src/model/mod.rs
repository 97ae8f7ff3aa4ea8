//! The model as a world.

mod convert;
mod ground;

use std::collections::BTreeMap;

use godwit_uffd::abi::{Call, Errno, MESSAGE_BYTES, RawMessage};
use godwit_uffd::model::{
    self, ContextId, FileId, MapRequest, Material, PAGE, Parked, Profile, Progress, Setup, Thread,
};

use crate::world::{
    Ability, Access, Advice, Door, Entry, Fd, FdInfo, File, FileKind, Mapping, NotHere, Outcome,
    Placement, Polled, Process, Remap, Scan, ScanRegion, Step, Ticket, Touch, World,
};

pub use ground::ModelGround;

/// Something that sleeps, or how it has ended.
enum State {
    Sleeps(Parked),
    Over(Outcome),
}

/// A call or an access that has slept.
struct Slept {
    process: Process,
    thread_id: u32,
    state: Option<State>,
}

/// A machine of the model, stepped by one thread.
pub struct ModelWorld {
    machine: model::Machine,
    profile: Profile,
    root: Process,
    /// The thread that makes the system calls of a process.
    callers: BTreeMap<Process, Thread>,
    tickets: BTreeMap<Ticket, Slept>,
    /// Those of processes that have ended are gone, so they are not counted.
    next_ticket: u32,
}

impl ModelWorld {
    /// A machine that is one kernel or another.
    #[must_use]
    pub fn new(profile: Profile) -> ModelWorld {
        let setup =
            Setup { profile, hugetlb_pages: HUGETLB_PAGES, unprivileged_userfaultfd: false };
        let machine = model::Machine::new(setup);
        let root = machine.spawn(true);
        let mut world = ModelWorld {
            machine,
            profile,
            root: Process(root.0),
            callers: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
        };
        world.add_caller(world.root);
        world
    }

    /// The machine behind the world.
    #[must_use]
    pub fn machine(&self) -> &model::Machine {
        &self.machine
    }

    fn add_caller(&mut self, process: Process) {
        let thread = self.machine.thread(model::Process(process.0));
        self.callers.insert(process, thread);
    }

    fn caller(&self, process: Process) -> Thread {
        *self.callers.get(&process).expect("a process that has not ended")
    }

    /// Notes what sleeps, and lets everybody run who may.
    fn step(&mut self, process: Process, progress: Progress) -> Step {
        let step = match progress {
            Progress::Done(outcome) => Step::Done(self.outcome(&outcome)),
            Progress::Parked(parked) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                let thread_id = parked.thread_id();
                let state = Some(State::Sleeps(parked));
                self.tickets.insert(ticket, Slept { process, thread_id, state });
                // The thread that sleeps may be the one that makes calls; the next has another.
                self.add_caller(process);
                Step::Parked(ticket)
            }
        };
        self.settle();
        step
    }

    fn outcome(&mut self, outcome: &model::Outcome) -> Outcome {
        if let model::Outcome::Forked(child) = outcome {
            self.add_caller(Process(child.0));
        }
        convert::outcome(outcome)
    }

    /// Resumes whatever was woken, oldest first, until all that is left sleeps.
    fn settle(&mut self) {
        while let Some(ticket) =
            self.tickets.iter().find(|(_, slept)| is_woken(slept)).map(|(ticket, _)| *ticket)
        {
            self.resume(ticket, Parked::resume);
        }
    }

    fn resume(&mut self, ticket: Ticket, go_on: impl FnOnce(Parked) -> Progress) {
        let slept = self.tickets.get_mut(&ticket).expect("a ticket of this world");
        let state = match slept.state.take() {
            Some(State::Sleeps(parked)) => match go_on(parked) {
                Progress::Parked(parked) => State::Sleeps(parked),
                Progress::Done(outcome) => State::Over(self.outcome(&outcome)),
            },
            Some(over) => over,
            None => unreachable!("a ticket always has a state"),
        };
        self.tickets.get_mut(&ticket).expect("as above").state = Some(state);
    }

    fn returned(&mut self, process: Process, result: Result<u64, Errno>) -> Step {
        self.step(process, Progress::Done(model::Outcome::Returned(result)))
    }
}

fn is_woken(slept: &Slept) -> bool {
    matches!(&slept.state, Some(State::Sleeps(parked)) if parked.is_woken())
}

impl World for ModelWorld {
    fn can(&mut self, ability: Ability) -> Result<(), NotHere> {
        match ability {
            Ability::Newest if self.profile != Profile::NEWEST => {
                Err(NotHere("the profile is 6.18".to_owned()))
            }
            Ability::Hugetlb(pages) if u64::from(pages) > self.machine.free_hugetlb_pages() => {
                Err(NotHere(format!("the model's pool has fewer than {pages} huge pages")))
            }
            _ => Ok(()),
        }
    }

    fn root(&self) -> Process {
        self.root
    }

    fn spawn(&mut self, privileged: bool) -> Process {
        let process = Process(self.machine.spawn(privileged).0);
        self.add_caller(process);
        process
    }

    fn fork(&mut self, process: Process) -> Step {
        let progress = self.machine.fork(self.caller(process));
        self.step(process, progress)
    }

    fn exit(&mut self, process: Process) {
        let theirs: Vec<Ticket> = self
            .tickets
            .iter()
            .filter(|(_, slept)| slept.process == process)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in theirs {
            if let Some(Slept { state: Some(State::Sleeps(parked)), .. }) =
                self.tickets.remove(&ticket)
                && let Some(child) = parked.cancel()
            {
                self.machine.exit(child);
            }
        }
        self.machine.exit(model::Process(process.0));
        // The thread stays known: descriptors that it has opened may outlive it.
        self.settle();
    }

    fn make_file(&mut self, kind: FileKind, pages: u64) -> File {
        File(self.machine.make_file(convert::file_kind(kind), pages).0)
    }

    fn file_store(&mut self, file: File, page: u64, byte: u8) {
        self.machine.file_store(FileId(file.0), page, &[byte]).expect("room in the file");
    }

    fn file_load(&mut self, file: File, page: u64) -> Option<u8> {
        self.machine.file_load(FileId(file.0), page)
    }

    fn file_truncate(&mut self, file: File, pages: u64) {
        self.machine.file_truncate(FileId(file.0), pages);
    }

    fn file_punch(&mut self, file: File, page: u64) {
        self.machine.file_punch(FileId(file.0), page, 1);
    }

    fn file_seal_writes(&mut self, file: File) {
        self.machine.file_seal_writes(FileId(file.0));
    }

    fn map(&mut self, process: Process, mapping: Mapping) -> Result<u64, Errno> {
        let progress = self.machine.map(self.caller(process), convert::mapping(&mapping));
        match self.step(process, progress) {
            Step::Done(Outcome::Returned(result)) => result,
            Step::Done(other) => unreachable!("mmap has come to {other:?}"),
            // It sleeps until somebody reads that the range was unmapped; the mapping is there.
            Step::Parked(_) => Ok(mapping.at.expect("only a replaced range has an event")),
        }
    }

    fn unmap(&mut self, process: Process, start: u64, pages: u64) -> Step {
        let progress = self.machine.unmap(self.caller(process), start, pages * PAGE);
        self.step(process, progress)
    }

    fn protect(&mut self, process: Process, start: u64, pages: u64, access: Access) -> Step {
        let access = convert::access(access);
        let id = model::Process(process.0);
        let result = self.machine.protect(id, start, pages * PAGE, access);
        self.returned(process, result.map(|()| 0))
    }

    fn advise(&mut self, process: Process, start: u64, pages: u64, advice: Advice) -> Step {
        let advice = convert::advice(advice);
        let progress = self.machine.advise(self.caller(process), start, pages * PAGE, advice);
        self.step(process, progress)
    }

    fn remap(&mut self, process: Process, remap: Remap) -> Step {
        let progress = self.machine.remap(self.caller(process), convert::remap(&remap));
        self.step(process, progress)
    }

    fn lock(&mut self, process: Process, start: u64, pages: u64, locked: bool) -> Step {
        let progress = self.machine.lock(self.caller(process), start, pages * PAGE, locked);
        self.step(process, progress)
    }

    fn pin(&mut self, process: Process, address: u64) {
        let page = address / PAGE * PAGE;
        let step = self.advise(process, page, 1, Advice::PopulateWrite);
        assert_eq!(step, Step::Done(Outcome::Returned(Ok(0))), "no page to pin at {address:#x}");
        self.machine.pin(model::Process(process.0), address);
    }

    fn unpin(&mut self, process: Process, address: u64) {
        self.machine.unpin(model::Process(process.0), address);
    }

    fn open(&mut self, process: Process, door: Door, flags: u32) -> Result<Fd, Errno> {
        let context = self.machine.open(self.caller(process), convert::door(door), flags)?;
        Ok(Fd(context.0))
    }

    fn close(&mut self, fd: Fd) {
        self.machine.close(ContextId(fd.0));
        self.settle();
    }

    fn set_nonblocking(&mut self, fd: Fd, nonblocking: bool) {
        self.machine.set_nonblocking(ContextId(fd.0), nonblocking);
    }

    fn ioctl(&mut self, process: Process, fd: Fd, call: Call, placement: Placement) -> Step {
        let caller = self.caller(process);
        let placement = convert::placement(placement);
        let progress = self.machine.call(caller, ContextId(fd.0), call, placement);
        self.step(process, progress)
    }

    fn read(&mut self, fd: Fd, bytes: usize) -> Result<Vec<RawMessage>, Errno> {
        let messages = self.machine.read(ContextId(fd.0), bytes);
        self.settle();
        messages
    }

    fn read_into_nowhere(&mut self, fd: Fd) -> Result<usize, Errno> {
        let result = self.machine.read_into_nowhere(ContextId(fd.0));
        self.settle();
        result.map(|()| MESSAGE_BYTES)
    }

    fn poll(&mut self, fd: Fd) -> Polled {
        convert::polled(self.machine.poll(ContextId(fd.0)))
    }

    fn fd_info(&mut self, fd: Fd) -> FdInfo {
        let info = self.machine.fd_info(ContextId(fd.0));
        FdInfo { pending: info.pending, total: info.total, features: info.features.bits() }
    }

    fn touch(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        let thread = self.machine.thread(model::Process(process.0));
        let progress = self.machine.access(thread, address, convert::touch(touch));
        self.step(process, progress)
    }

    fn guest_touch(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        let thread = self.machine.thread(model::Process(process.0));
        let progress = self.machine.guest_access(thread, address, convert::touch(touch));
        self.step(process, progress)
    }

    fn map_guest_memfd(&mut self, process: Process, pages: u64) -> u64 {
        let file = self.machine.make_file(model::FileKind::GuestMemory, pages);
        let material = Material::File { file, page: 0, shared: true, read_only: false };
        let access = model::Access::ReadWrite;
        let request = MapRequest { len: pages * PAGE, material, access, at: None };
        match self.machine.map(self.caller(process), request) {
            Progress::Done(model::Outcome::Returned(Ok(address))) => address,
            other => unreachable!("mmap has come to {other:?}"),
        }
    }

    fn thread_id(&mut self, ticket: Ticket) -> u32 {
        self.tickets.get(&ticket).expect("a ticket of this world").thread_id
    }

    fn interrupt(&mut self, ticket: Ticket) {
        self.resume(ticket, Parked::interrupt);
        self.settle();
    }

    fn poll_ticket(&mut self, ticket: Ticket) -> Step {
        self.settle();
        match &self.tickets.get(&ticket).expect("a ticket of this world").state {
            Some(State::Over(outcome)) => Step::Done(outcome.clone()),
            _ => Step::Parked(ticket),
        }
    }

    fn entry(&mut self, process: Process, address: u64) -> Entry {
        convert::entry(self.machine.observe(model::Process(process.0), address))
    }

    fn peek(&mut self, process: Process, address: u64) -> Option<u8> {
        self.machine.peek(model::Process(process.0), address)
    }

    fn scan(&mut self, process: Process, scan: Scan) -> Result<Vec<ScanRegion>, Errno> {
        let regions = self.machine.scan(model::Process(process.0), &convert::scan(&scan))?;
        Ok(regions.into_iter().map(convert::region).collect())
    }
}

/// Huge pages of the model's pool.
const HUGETLB_PAGES: u64 = 64;
