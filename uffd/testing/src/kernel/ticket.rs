//! Operations that may sleep, from their start to their outcome.

// UNSAFETY: a pipe, and one byte through it.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use godwit_uffd::abi::Call;

use super::agents::{Standing, Worker};
use super::mailbox::operation;
use super::probe::{Probed, signal_of};
use super::syscall::checked;
use super::{KernelWorld, NOWHERE, descriptor, errno, host};
use crate::world::{NotHere, Outcome, Placement, Process, Step, Ticket};

/// How to tell the outcome of an operation from its result.
#[derive(Debug)]
pub(super) enum Kind {
    Ioctl {
        call: Call,
        written: bool,
    },
    Load,
    Store,
    Call,
    /// A system call, and the pipe that it works on.
    Pipe(#[expect(dead_code, reason = "held open until the call is over")] Pipe),
    Fork {
        child: usize,
    },
    /// A vCPU's access: where its instruction pointer is when it is over, and what it is.
    Guest {
        vcpu: usize,
        end: u64,
        store: bool,
    },
}

/// How an operation that has slept stands.
#[derive(Debug)]
pub(super) enum Stage {
    Waiting(Worker, Kind),
    Over(Outcome),
    /// Its process has ended.
    Gone,
}

impl KernelWorld {
    /// Starts an operation on a thread of the agent.
    pub(super) fn begin(&mut self, at: usize, kind: Kind, code: u32, words: [u64; 7]) -> Step {
        let worker = self.agents.post(at, code, words);
        self.first_look(worker, kind)
    }

    pub(super) fn begin_fork(&mut self, at: usize, child: usize) -> Step {
        let slot = self.agents.pick(at);
        let worker = Worker { agent: at, slot };
        // The child runs on its copy of this thread's stack, so it has the same number.
        let leader = self.agents.slot_address(Worker { agent: child, slot });
        let driver = self.agents.driver();
        self.agents.post_to(worker, operation::FORK, [leader, driver, 0, 0, 0, 0, 0]);
        self.first_look(worker, Kind::Fork { child })
    }

    pub(super) fn begin_ioctl(
        &mut self,
        at: usize,
        fd: RawFd,
        call: Call,
        placement: Placement,
    ) -> Step {
        let worker = Worker { agent: at, slot: self.agents.pick(at) };
        let (number, structure) = descriptor::encode(call);
        let ordinary = self.agents.slot(worker).fill(structure);
        let address = match placement {
            Placement::Ordinary => ordinary,
            Placement::ReadOnly => self.agents.read_only_buffer(worker),
            Placement::Unmapped => NOWHERE,
        };
        let (ioctl, fd) = (libc::SYS_ioctl.cast_unsigned(), u64::from(fd.cast_unsigned()));
        self.agents.post_to(worker, operation::CALL, [ioctl, fd, number, address, 0, 0, 0]);
        let written = placement == Placement::Ordinary;
        self.first_look(worker, Kind::Ioctl { call, written })
    }

    fn first_look(&mut self, worker: Worker, kind: Kind) -> Step {
        match self.agents.settle(worker) {
            Standing::Done => Step::Done(self.outcome(worker, &kind)),
            Standing::Asleep => {
                self.tickets.push(Stage::Waiting(worker, kind));
                let number = u32::try_from(self.tickets.len() - 1).expect("few tickets");
                Step::Parked(Ticket(number))
            }
        }
    }

    /// How a ticket stands, as soon as it stands still.
    pub(super) fn look_at(&mut self, ticket: Ticket) -> Step {
        let at = ticket.0 as usize;
        let worker = match &self.tickets[at] {
            Stage::Over(outcome) => return Step::Done(outcome.clone()),
            Stage::Gone => panic!("the process of {ticket:?} has ended"),
            Stage::Waiting(worker, _) => *worker,
        };
        if self.agents.settle(worker) == Standing::Asleep {
            return Step::Parked(ticket);
        }
        let Stage::Waiting(_, kind) = std::mem::replace(&mut self.tickets[at], Stage::Gone) else {
            unreachable!("it was waiting a moment ago, and nothing else runs");
        };
        let outcome = self.outcome(worker, &kind);
        self.tickets[at] = Stage::Over(outcome.clone());
        Step::Done(outcome)
    }

    /// The thread that a parked operation is on.
    pub(super) fn worker(&self, ticket: Ticket) -> Worker {
        match self.tickets[ticket.0 as usize] {
            Stage::Waiting(worker, _) => worker,
            ref other => panic!("{ticket:?} does not sleep: {other:?}"),
        }
    }

    fn outcome(&mut self, worker: Worker, kind: &Kind) -> Outcome {
        let slot = self.agents.slot(worker);
        let value = slot.result.load(Ordering::Relaxed);
        let signal = signal_of(Probed { value, signal: slot.signal.load(Ordering::Relaxed) });
        let structure = slot.structure();
        self.agents.release(worker);
        let result = value.cast_signed();
        match kind {
            Kind::Load | Kind::Store if signal.is_some() => {
                Outcome::Signal(signal.expect("just looked at"))
            }
            Kind::Load => Outcome::Loaded(u8::try_from(value).expect("a byte")),
            Kind::Store => Outcome::Stored,
            Kind::Call | Kind::Pipe(_) => Outcome::Returned(checked(result)),
            Kind::Ioctl { call, written } => {
                Outcome::Ioctl(descriptor::decode(*call, checked(result), structure, *written))
            }
            Kind::Guest { vcpu, end, store } => {
                let access = (*vcpu, *end, *store);
                self.outcome_of_guest(worker.agent, checked(result), access)
            }
            Kind::Fork { child } => {
                self.agents.adopt(*child, result, worker.slot);
                Outcome::Forked(self.add_process(*child))
            }
        }
    }

    pub(super) fn add_process(&mut self, at: usize) -> Process {
        self.processes.push(Some(at));
        Process(u32::try_from(self.processes.len() - 1).expect("few processes"))
    }

    /// Forgets what an agent that ends is in the middle of.
    pub(super) fn forget(&mut self, at: usize) {
        self.pins.retain(|(agent, _), _| *agent != at);
        self.guests.remove(&at);
        for stage in &mut self.tickets {
            if matches!(stage, Stage::Waiting(worker, _) if worker.agent == at) {
                if let Stage::Waiting(_, Kind::Fork { child }) = stage {
                    self.agents.unreserve(*child);
                }
                *stage = Stage::Gone;
            }
        }
    }

    /// Whether the kernel has what came after 6.18, told by a feature that came with it.
    pub(super) fn is_newest(&self) -> Result<(), NotHere> {
        let features = host::offered_features()?;
        match features >> FEATURE_RWP & 1 {
            1 => Ok(()),
            _ => Err(NotHere(format!("the kernel's features end before RWP: {features:#x}"))),
        }
    }
}

/// The number of the feature bit of read-write protection.
const FEATURE_RWP: u32 = 17;

/// A pipe of one operation, so that no two threads share a pipe's lock.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which lives through the call.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
        assert!(made == 0, "pipe2: {:?}", errno());
        // SAFETY: the kernel has just made both, and nothing else owns them.
        let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        Self { reader, writer }
    }

    /// Puts one byte in.
    pub(super) fn fill(&self, byte: u8) {
        // SAFETY: one byte, which lives through the call.
        let put = unsafe { libc::write(self.writer(), (&raw const byte).cast(), 1) };
        assert_eq!(put, 1, "a byte into an empty pipe");
    }

    pub(super) fn reader(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    pub(super) fn writer(&self) -> RawFd {
        self.writer.as_raw_fd()
    }
}
