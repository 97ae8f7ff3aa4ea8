//! What threads do and how far they have come: something that may sleep is done, or parked with
//! all that is needed to go on.

use super::Process;
use super::access::{self, Reached, Touch, Toucher};
use super::address_space::AddressSpace;
use super::advise::Advising;
use super::calls::{Called, Sleeping};
use super::events::Delivery;
use super::faults::{Failure, ThreadState, Waiting};
use super::populate::Populate;
use super::sync::{Arc, Ordering};
use super::wait_queue::Sleeper;
use crate::abi::{Answer, Errno};

/// What came of something that may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An ioctl.
    Ioctl(Answer),
    /// A load: the byte.
    Loaded(u8),
    /// A store.
    Stored,
    /// An access of user code ended in a signal.
    Signal(Signal),
    /// A system call: its return value.
    Returned(Result<u64, Errno>),
    /// A fork.
    Forked(Process),
}

/// A synchronous signal. `si_addr` is the exact address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGSEGV.
    Segv {
        /// `si_addr`.
        address: u64,
    },
    /// SIGBUS with BUS_ADRERR.
    BusAddress {
        /// `si_addr`.
        address: u64,
    },
    /// SIGBUS with BUS_MCEERR_AR.
    BusPoison {
        /// `si_addr`.
        address: u64,
    },
}

/// How far something that may sleep has come.
#[derive(Debug)]
#[must_use]
pub enum Progress {
    /// It is over.
    Done(Outcome),
    /// Its thread sleeps.
    Parked(Parked),
}

/// A thread that sleeps, and what it does when it goes on.
#[derive(Debug)]
#[must_use]
pub struct Parked {
    thread: Arc<ThreadState>,
    sleeper: Arc<Sleeper>,
    waiting: Option<Waiting>,
    task: Task,
}

/// What a thread is in the middle of.
#[derive(Debug)]
pub(super) enum Task {
    /// An access.
    Touch { space: Arc<AddressSpace>, address: u64, touch: Touch, toucher: Toucher },
    /// An ioctl.
    Call(Sleeping),
    /// All is done but that events have to be read.
    Deliver(Delivery, Outcome),
    /// madvise.
    Advise(Box<Advising>),
    /// Populating memory.
    Populate(Populate),
}

impl Parked {
    /// The thread may go on.
    pub fn is_woken(&self) -> bool {
        self.sleeper.is_woken()
    }

    /// The id of the thread, as messages show it.
    pub fn thread_id(&self) -> u32 {
        self.thread.id
    }

    /// Blocks a real thread until this one may go on.
    pub fn wait(&self) {
        self.sleeper.wait();
    }

    /// Goes on if the thread was woken; otherwise it is parked as before.
    pub fn resume(self) -> Progress {
        if self.is_woken() { run(&self.thread, self.task) } else { Progress::Parked(self) }
    }

    /// A signal with a handler comes: a sleep for a page ends, and the access is repeated. A sleep
    /// for an event goes on.
    pub fn interrupt(self) -> Progress {
        match &self.waiting {
            Some(waiting) => waiting.leave(),
            None => return self.resume(),
        }
        run(&self.thread, self.task)
    }

    /// The thread is killed. A call that has come half-way ends as it would: those who wait for
    /// what is done are woken. The child of a fork is returned: it never runs, and is to be ended
    /// with [`Machine::exit`](super::Machine::exit).
    pub fn cancel(self) -> Option<Process> {
        if let Some(waiting) = &self.waiting {
            waiting.leave();
        }
        self.thread.fatal.store(true, Ordering::SeqCst);
        match self.task {
            Task::Deliver(delivery, outcome) => {
                delivery.cancel();
                if let Outcome::Forked(child) = outcome {
                    return Some(child);
                }
            }
            Task::Advise(advising) => advising.cancel(),
            Task::Call(call) => drop(call.go_on(&self.thread)),
            Task::Touch { .. } | Task::Populate(_) => {}
        }
        None
    }
}

/// Runs a task until it is over or has to sleep.
pub(super) fn run(thread: &Arc<ThreadState>, task: Task) -> Progress {
    match task {
        Task::Touch { space, address, touch, toucher } => {
            run_touch(thread, space, address, (touch, toucher))
        }
        Task::Call(call) => called(thread, call.go_on(thread)),
        Task::Deliver(mut delivery, outcome) => match delivery.step() {
            Some(sleeper) => parked(thread, sleeper, None, Task::Deliver(delivery, outcome)),
            None => Progress::Done(outcome),
        },
        Task::Advise(mut advising) => match advising.go_on() {
            Ok(result) => Progress::Done(Outcome::Returned(result)),
            Err(sleeper) => parked(thread, sleeper, None, Task::Advise(advising)),
        },
        Task::Populate(mut populate) => match populate.go_on(thread) {
            Ok(result) => Progress::Done(Outcome::Returned(result)),
            Err(waiting) => {
                let sleeper = waiting.sleeper.clone();
                parked(thread, sleeper, Some(waiting), Task::Populate(populate))
            }
        },
    }
}

/// The progress of an ioctl.
pub(super) fn called(thread: &Arc<ThreadState>, called: Called) -> Progress {
    match called {
        Called::Done(answer) => Progress::Done(Outcome::Ioctl(answer)),
        Called::Parked(waiting, call) => {
            parked(thread, waiting.sleeper.clone(), Some(waiting), Task::Call(call))
        }
    }
}

fn parked(
    thread: &Arc<ThreadState>,
    sleeper: Arc<Sleeper>,
    waiting: Option<Waiting>,
    task: Task,
) -> Progress {
    Progress::Parked(Parked { thread: thread.clone(), sleeper, waiting, task })
}

fn run_touch(
    thread: &Arc<ThreadState>,
    space: Arc<AddressSpace>,
    address: u64,
    (touch, toucher): (Touch, Toucher),
) -> Progress {
    match access::touch(thread, &space, address, touch, toucher) {
        Reached::Done(byte) => Progress::Done(match touch {
            Touch::Load => Outcome::Loaded(byte),
            Touch::Store(_) => Outcome::Stored,
            // read(2) and write(2) of one byte.
            Touch::KernelLoad | Touch::KernelStore(_) => Outcome::Returned(Ok(1)),
        }),
        Reached::Parked(waiting) => {
            let task = Task::Touch { space, address, touch, toucher };
            parked(thread, waiting.sleeper.clone(), Some(waiting), task)
        }
        // A guest's poison is a signal to its vCPU thread; all else ends KVM_RUN with EFAULT.
        Reached::Failed(failure)
            if !touch.is_user() || (toucher == Toucher::Guest && failure != Failure::Poison) =>
        {
            Progress::Done(Outcome::Returned(Err(Errno::EFAULT)))
        }
        Reached::Failed(failure) => {
            let poison_is_told = space.profile().memory_failure;
            Progress::Done(Outcome::Signal(match failure {
                Failure::Segment => Signal::Segv { address },
                Failure::Poison if poison_is_told => Signal::BusPoison { address },
                Failure::Poison | Failure::Bus => Signal::BusAddress { address },
            }))
        }
        Reached::WouldWait => unreachable!("the last try waits"),
    }
}
