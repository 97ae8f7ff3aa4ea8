//! What the rows begin with: a process, its userfaultfd, memory in the states that are needed,
//! and threads that touch it.

use std::thread;
use std::time::{Duration, Instant};

use godwit_uffd::abi::{Answer, Call, RawMessage};

use super::words::*;
use crate::world::{
    Ability, Access, Advice, Backing, Door, Entry, Fd, File, FileKind, Mapping, Outcome, Placement,
    Process, Remap, Signal, Step, Ticket, Touch, World,
};

/// How long the kernel may take for work of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// What something came to that must not sleep.
#[track_caller]
pub fn finished(step: Step) -> Outcome {
    match step {
        Step::Done(outcome) => outcome,
        Step::Parked(_) => panic!("it sleeps, and should have ended"),
    }
}

/// The ticket of something that must sleep.
#[track_caller]
pub fn parked(step: Step) -> Ticket {
    match step {
        Step::Parked(ticket) => ticket,
        Step::Done(outcome) => panic!("it has ended, and should sleep: {outcome:?}"),
    }
}

/// The answer of an ioctl that must not sleep.
#[track_caller]
pub fn answered(step: Step) -> Answer {
    match finished(step) {
        Outcome::Ioctl(answer) => answer,
        other => panic!("an ioctl has come to {other:?}"),
    }
}

/// The child of a fork that must not sleep.
#[track_caller]
pub fn forked(step: Step) -> Process {
    match finished(step) {
        Outcome::Forked(child) => child,
        other => panic!("a fork has come to {other:?}"),
    }
}

/// Makes a userfaultfd that does not block, and shakes hands.
#[track_caller]
pub fn open(world: &mut dyn World, process: Process, features: u64) -> Fd {
    let fd = world.open(process, Door::Call, O_CLOEXEC | O_NONBLOCK).expect("a userfaultfd");
    let answer = answered(world.ioctl(process, fd, api(features), Placement::Ordinary));
    assert_eq!(answer.result, Ok(()), "the handshake");
    fd
}

/// Waits for what the kernel does in its own time; only the lack of it ends at the deadline.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process with a userfaultfd behind its handshake. Whatever has no other process or
/// descriptor in its name is about these two.
pub struct Rig<'w> {
    pub world: &'w mut dyn World,
    pub process: Process,
    pub fd: Fd,
}

impl<'w> Rig<'w> {
    #[track_caller]
    pub fn new(world: &'w mut dyn World, features: u64) -> Self {
        let process = world.root();
        let fd = open(world, process, features);
        Self { world, process, fd }
    }

    /// With a userfaultfd that serves faults of user code alone.
    #[track_caller]
    pub fn user_mode_only(world: &'w mut dyn World) -> Self {
        let process = world.root();
        let flags = O_NONBLOCK | USER_MODE_ONLY;
        let fd = world.open(process, Door::Call, flags).expect("a userfaultfd");
        let answer = answered(world.ioctl(process, fd, api(0), Placement::Ordinary));
        assert_eq!(answer.result, Ok(()), "the handshake");
        Self { world, process, fd }
    }

    /// A second userfaultfd of the process.
    #[track_caller]
    pub fn another(&mut self, features: u64) -> Fd {
        open(self.world, self.process, features)
    }

    /// Whether this is the newest kernel, where that differs from 6.18.
    pub fn newest(&mut self) -> bool {
        self.world.can(Ability::Newest).is_ok()
    }
}

/// Calls.
impl Rig<'_> {
    #[track_caller]
    pub fn call(&mut self, call: Call) -> Answer {
        self.call_on(self.fd, call)
    }

    #[track_caller]
    pub fn call_on(&mut self, fd: Fd, call: Call) -> Answer {
        answered(self.world.ioctl(self.process, fd, call, Placement::Ordinary))
    }

    #[track_caller]
    pub fn call_with(&mut self, call: Call, placement: Placement) -> Answer {
        answered(self.world.ioctl(self.process, self.fd, call, placement))
    }

    /// A call that must sleep.
    #[track_caller]
    pub fn start(&mut self, call: Call) -> Ticket {
        parked(self.world.ioctl(self.process, self.fd, call, Placement::Ordinary))
    }

    /// Copies one page of `byte` and expects it to work.
    #[track_caller]
    pub fn fill(&mut self, dst: u64, byte: u8) {
        let src = self.source(&[byte]);
        assert_eq!(self.call(copy(dst, src, 1)), done(1), "COPY to {dst:#x}");
    }
}

/// Memory.
impl Rig<'_> {
    #[track_caller]
    pub fn map(&mut self, backing: Backing, pages: u64) -> u64 {
        self.map_as(backing, pages, Access::ReadWrite)
    }

    #[track_caller]
    pub fn map_as(&mut self, backing: Backing, pages: u64, access: Access) -> u64 {
        let mapping = Mapping { pages, backing, access, at: None };
        self.world.map(self.process, mapping).expect("a mapping")
    }

    /// Replaces what is at `start`.
    #[track_caller]
    pub fn map_at(&mut self, start: u64, backing: Backing, pages: u64) {
        let mapping = Mapping { pages, backing, access: Access::ReadWrite, at: Some(start) };
        assert_eq!(self.world.map(self.process, mapping), Ok(start), "a mapping");
    }

    #[track_caller]
    pub fn anonymous(&mut self, pages: u64) -> u64 {
        self.map(Backing::Anonymous, pages)
    }

    /// A fresh registered mapping.
    #[track_caller]
    pub fn armed(&mut self, backing: Backing, pages: u64, mode: u64) -> u64 {
        let start = self.map(backing, pages);
        self.arm(start, pages, mode);
        start
    }

    #[track_caller]
    pub fn arm(&mut self, start: u64, pages: u64, mode: u64) {
        assert_eq!(self.call(register(start, pages, mode)).result, Ok(()), "REGISTER");
    }

    /// The specification's reg(mode): eight pages of fresh anonymous memory.
    #[track_caller]
    pub fn reg(&mut self, mode: u64) -> u64 {
        self.armed(Backing::Anonymous, 8, mode)
    }

    /// A fresh shared mapping of a fresh memfd of eight pages, registered.
    #[track_caller]
    pub fn shmem(&mut self, mode: u64) -> (File, u64) {
        let file = self.world.make_file(FileKind::Shmem, 8);
        (file, self.armed(shared(file), 8, mode))
    }

    /// A huge page of anonymous memory, populated and not registered.
    #[track_caller]
    pub fn huge(&mut self, byte: u8) -> u64 {
        let start = self.map(Backing::TransparentHuge, HUGE_PAGES);
        self.store(start, byte);
        self.is(start, T);
        start
    }

    /// Fresh memory that is not registered, with one byte at the start of each page.
    #[track_caller]
    pub fn source(&mut self, contents: &[u8]) -> u64 {
        let start = self.anonymous(contents.len() as u64);
        for (page, byte) in (0..).zip(contents) {
            self.store(start + page * PAGE, *byte);
        }
        start
    }

    /// Brings a page that has no entry, in anonymous memory that the descriptor owns, into a
    /// state; pages have the content `byte`.
    #[track_caller]
    pub fn put(&mut self, entry: Entry, address: u64, byte: u8) {
        match entry {
            P => self.fill(address, byte),
            PW => {
                let src = self.source(&[byte]);
                assert_eq!(self.call(copy_protected(address, src, 1)), done(1), "COPY, protected");
            }
            Z => assert_eq!(self.call(zeropage(address, 1)), done(1), "ZEROPAGE"),
            ZW => {
                self.put(Z, address, 0);
                assert_eq!(self.call(protect(address, 1)), OK, "WRITEPROTECT");
            }
            W => assert_eq!(self.call(protect(address, 1)), OK, "WRITEPROTECT"),
            X => assert_eq!(self.call(poison(address, 1)), done(1), "POISON"),
            G => self.advise(address, 1, Advice::GuardInstall),
            S => {
                self.put(P, address, byte);
                self.advise(address, 1, Advice::PageOut);
            }
            SW => {
                self.put(PW, address, byte);
                self.advise(address, 1, Advice::PageOut);
            }
            other => panic!("no way to make {other:?}"),
        }
        self.is(address, entry);
    }

    /// Expects the entry of a page.
    #[track_caller]
    pub fn is(&mut self, address: u64, entry: Entry) {
        self.is_in(self.process, address, entry);
    }

    #[track_caller]
    pub fn is_in(&mut self, process: Process, address: u64, entry: Entry) {
        assert_eq!(self.world.entry(process, address), entry, "the entry of {address:#x}");
    }

    /// Expects a byte without touching it.
    #[track_caller]
    pub fn holds(&mut self, address: u64, byte: u8) {
        let held = self.world.peek(self.process, address);
        assert_eq!(held, Some(byte), "the byte at {address:#x}");
    }

    #[track_caller]
    pub fn advise(&mut self, start: u64, pages: u64, advice: Advice) {
        let outcome = finished(self.world.advise(self.process, start, pages, advice));
        assert_eq!(outcome, Outcome::Returned(Ok(0)), "madvise {advice:?}");
    }

    #[track_caller]
    pub fn mprotect(&mut self, start: u64, pages: u64, access: Access) {
        let outcome = finished(self.world.protect(self.process, start, pages, access));
        assert_eq!(outcome, Outcome::Returned(Ok(0)), "mprotect {access:?}");
    }

    #[track_caller]
    pub fn munmap(&mut self, start: u64, pages: u64) {
        let outcome = finished(self.world.unmap(self.process, start, pages));
        assert_eq!(outcome, Outcome::Returned(Ok(0)), "munmap");
    }

    #[track_caller]
    pub fn mlock(&mut self, start: u64, pages: u64) {
        let outcome = finished(self.world.lock(self.process, start, pages, true));
        assert_eq!(outcome, Outcome::Returned(Ok(0)), "mlock");
    }

    /// Forks without an event.
    #[track_caller]
    pub fn fork(&mut self) -> Process {
        forked(self.world.fork(self.process))
    }

    /// Forks with EVENT_FORK: the child, and its descriptor in this process.
    #[track_caller]
    pub fn fork_with_event(&mut self) -> (Process, Fd) {
        let fork = parked(self.world.fork(self.process));
        self.sleeps(fork);
        let messages = self.world.read(self.fd, 32);
        let Ok([RawMessage::Fork { fd }]) = messages.as_deref() else { panic!("{messages:?}") };
        (forked(self.world.poll_ticket(fork)), Fd(*fd))
    }

    /// mremap that moves the pages to `to` and keeps their number.
    pub fn moving(&mut self, from: u64, pages: u64, to: u64) -> Step {
        let remap = Remap { from, pages, new_pages: pages, to: Some(to), dont_unmap: false };
        self.world.remap(self.process, remap)
    }
}

/// Threads and messages.
impl Rig<'_> {
    /// A touch that must not sleep.
    #[track_caller]
    pub fn touch(&mut self, address: u64, touch: Touch) -> Outcome {
        finished(self.world.touch(self.process, address, touch))
    }

    /// Stores silently.
    #[track_caller]
    pub fn store(&mut self, address: u64, byte: u8) {
        let outcome = self.touch(address, Touch::Store(byte));
        assert_eq!(outcome, Outcome::Stored, "a store to {address:#x}");
    }

    /// Loads silently, and expects the byte.
    #[track_caller]
    pub fn load(&mut self, address: u64, byte: u8) {
        let outcome = self.touch(address, Touch::Load);
        assert_eq!(outcome, Outcome::Loaded(byte), "a load from {address:#x}");
    }

    /// A touch that must sleep.
    #[track_caller]
    pub fn wait(&mut self, address: u64, touch: Touch) -> Ticket {
        parked(self.world.touch(self.process, address, touch))
    }

    /// A touch that must sleep, and its message.
    #[track_caller]
    pub fn faults(&mut self, address: u64, touch: Touch, flags: u64) -> Ticket {
        let ticket = self.wait(address, touch);
        self.says(fault(flags, address & !(PAGE - 1)));
        ticket
    }

    /// Expects that what slept has ended.
    #[track_caller]
    pub fn ended(&mut self, ticket: Ticket, outcome: Outcome) {
        assert_eq!(self.world.poll_ticket(ticket), Step::Done(outcome), "what slept");
    }

    #[track_caller]
    pub fn sleeps(&mut self, ticket: Ticket) {
        assert_eq!(self.world.poll_ticket(ticket), Step::Parked(ticket), "what slept");
    }

    /// Expects one message as the next, and reads no other.
    #[track_caller]
    pub fn says(&mut self, message: RawMessage) {
        self.says_on(self.fd, message);
    }

    #[track_caller]
    pub fn says_on(&mut self, fd: Fd, message: RawMessage) {
        assert_eq!(self.world.read(fd, 32), Ok(vec![message]), "the next message");
    }

    /// Expects that there is no message.
    #[track_caller]
    pub fn silent(&mut self) {
        assert_eq!(self.world.read(self.fd, 32), Err(EAGAIN), "there is no message");
    }

    /// The signal of an access to a poisoned page: hardware poison where the kernel knows of it.
    #[track_caller]
    pub fn is_poison(&mut self, address: u64, outcome: &Outcome) {
        let signals = [Signal::BusAddress { address }, Signal::BusPoison { address }];
        let is_one = signals.iter().any(|signal| *outcome == Outcome::Signal(*signal));
        assert!(is_one, "an access to poison at {address:#x} has come to {outcome:?}");
    }
}
