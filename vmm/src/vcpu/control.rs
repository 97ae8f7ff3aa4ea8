//! What the vCPU threads are to do, and what they do.
//!
//! The lock here is held for a few instructions only, and never by a thread that waits for guest
//! memory, a device or a console.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kvm::{Tid, kick};

/// What all vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Stay out of the guest.
    Parked = 0,
    /// Run the guest.
    Running = 1,
    /// End.
    Gone = 2,
}

/// What one vCPU thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It has not said anything yet, and has not entered the guest.
    Starting,
    /// It is out of the guest.
    Parked,
    /// It may be in the guest.
    Running,
    /// It has ended.
    Gone,
}

struct Cpu {
    tid: Option<Tid>,
    doing: Doing,
}

struct State {
    wanted: Wanted,
    /// The guest has ended; it never runs again.
    ended: bool,
    /// A pause counts although a vCPU is late.
    late: bool,
    cpus: Vec<Cpu>,
}

/// The meeting point of the vCPU threads and those who command them.
pub(crate) struct Control {
    /// `State::wanted`, for a look without the lock.
    wanted: AtomicU8,
    state: Mutex<State>,
    /// `wanted` has changed.
    changed: Condvar,
    /// A thread has parked or gone.
    settled: Condvar,
}

/// Why a wait for the vCPU threads ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSettled {
    /// This vCPU is still running.
    TimedOut { cpu: usize },
    /// Something else is wanted by now.
    CalledOff,
}

impl Control {
    pub(crate) fn new(cpu_count: usize) -> Control {
        let cpus = (0..cpu_count).map(|_| Cpu { tid: None, doing: Doing::Starting }).collect();
        Control {
            wanted: AtomicU8::new(Wanted::Parked as u8),
            state: Mutex::new(State { wanted: Wanted::Parked, ended: false, late: false, cpus }),
            changed: Condvar::new(),
            settled: Condvar::new(),
        }
    }

    /// What is wanted now. A vCPU thread asks this after it cleared `immediate_exit`.
    pub(crate) fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::SeqCst) {
            0 => Wanted::Parked,
            1 => Wanted::Running,
            _ => Wanted::Gone,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU thread says who it is. Its `immediate_exit` is known to the signal handler by now.
    pub(crate) fn introduce(&self, cpu: usize, tid: Tid) {
        self.lock().cpus[cpu].tid = Some(tid);
    }

    /// The kernel's ids of the vCPU threads, by vCPU; none for one that has ended or not begun.
    pub(crate) fn threads(&self) -> Vec<Option<Tid>> {
        self.lock().cpus.iter().map(|cpu| cpu.tid).collect()
    }

    /// A vCPU thread is out of the guest and waits until something else is wanted.
    pub(crate) fn park(&self, cpu: usize) -> Wanted {
        let mut state = self.lock();
        state.cpus[cpu].doing = Doing::Parked;
        if state.first_running().is_none() {
            self.settled.notify_all();
        }
        while state.wanted == Wanted::Parked {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.wanted == Wanted::Running {
            state.cpus[cpu].doing = Doing::Running;
        }
        state.wanted
    }

    /// A vCPU thread ends. It is not kicked any more.
    pub(crate) fn leave(&self, cpu: usize) {
        let mut state = self.lock();
        state.cpus[cpu] = Cpu { tid: None, doing: Doing::Gone };
        self.settled.notify_all();
    }

    /// A vCPU thread saw the end of the guest: all of them park, for good.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        if state.wanted == Wanted::Running {
            self.set(&mut state, Wanted::Parked);
            state.kick_running();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Whether the guest stands still: every vCPU is out of the guest or late, and is to stay
    /// there.
    pub(crate) fn is_parked(&self) -> bool {
        let state = self.lock();
        state.wanted != Wanted::Running && (state.late || state.first_running().is_none())
    }

    /// The first vCPU that is not out of the guest.
    pub(crate) fn first_running(&self) -> Option<usize> {
        self.lock().first_running()
    }

    /// Lets the vCPUs run. Does nothing after the guest has ended or the threads were told to go;
    /// returns whether they run.
    pub(crate) fn run(&self) -> bool {
        let mut state = self.lock();
        if state.ended || state.wanted == Wanted::Gone {
            return false;
        }
        self.set(&mut state, Wanted::Running);
        true
    }

    /// Brings every vCPU out of the guest and waits for that, at most until `deadline`. What is
    /// still in the guest then is *late* if `late_is_fine`, and the guest counts as parked: the
    /// vCPU waits for a page and has a kick waiting for it, so it gets no further than the end of
    /// the access. Otherwise the guest runs on, and the call has failed.
    pub(crate) fn park_all(&self, deadline: Instant, late_is_fine: bool) -> Result<(), NotSettled> {
        let mut state = self.lock();
        if state.wanted == Wanted::Running {
            self.set(&mut state, Wanted::Parked);
        }
        let (mut state, result) = self.settle(state, deadline, State::first_running);
        match result {
            Err(NotSettled::TimedOut { .. }) if late_is_fine => {
                state.late = true;
                Ok(())
            }
            Err(NotSettled::TimedOut { .. }) if state.wanted == Wanted::Parked && !state.ended => {
                self.set(&mut state, Wanted::Running);
                result
            }
            _ => result,
        }
    }

    /// Makes every thread end and waits for that, at most until `deadline`.
    pub(crate) fn dismiss(&self, deadline: Instant) -> Result<(), NotSettled> {
        let mut state = self.lock();
        self.set(&mut state, Wanted::Gone);
        self.settle(state, deadline, State::first_present).1
    }

    fn set(&self, state: &mut State, wanted: Wanted) {
        state.wanted = wanted;
        state.late = false;
        self.wanted.store(wanted as u8, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Kicks the running vCPUs until `left` names none.
    fn settle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
        left: fn(&State) -> Option<usize>,
    ) -> (MutexGuard<'a, State>, Result<(), NotSettled>) {
        let wanted = state.wanted;
        while let Some(cpu) = left(&state) {
            if state.wanted != wanted {
                return (state, Err(NotSettled::CalledOff));
            }
            let now = Instant::now();
            if now >= deadline {
                return (state, Err(NotSettled::TimedOut { cpu }));
            }
            state.kick_running();
            let wait = KICK_AGAIN_AFTER.min(deadline - now);
            (state, _) =
                self.settled.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        }
        (state, Ok(()))
    }
}

impl State {
    fn first_running(&self) -> Option<usize> {
        self.cpus.iter().position(|cpu| cpu.doing == Doing::Running)
    }

    fn first_present(&self) -> Option<usize> {
        self.cpus.iter().position(|cpu| cpu.doing != Doing::Gone)
    }

    fn kick_running(&self) {
        let running = self.cpus.iter().filter(|cpu| cpu.doing == Doing::Running);
        running.filter_map(|cpu| cpu.tid).for_each(kick);
    }
}

/// One kick is enough as far as we know; another follows if a thread does not answer.
const KICK_AGAIN_AFTER: Duration = Duration::from_millis(10);

impl NotSettled {
    /// What it means for a pause that was given `PAUSE_WITHIN`.
    pub(crate) fn into_error(self, waited_ms: u64) -> crate::Error {
        match self {
            NotSettled::TimedOut { cpu } => crate::Error::PauseTimeout { cpu, waited_ms },
            NotSettled::CalledOff => crate::Error::PauseCalledOff,
        }
    }
}
