//! What the conformance rows do not pin: locks and their order, saved retry state, wake ranges,
//! real threads, and what is left behind.

mod guest;
#[cfg(feature = "shuttle")]
mod interleavings;
mod life;
mod locks;
mod newest;
mod retry;
mod threads;
mod waiting;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{
    Access, Advice, ContextId, Door, Machine, MapRequest, Material, Observed, Outcome, PAGE,
    Parked, Placement, Process, Profile, Progress, Setup, Thread, Touch,
};
use crate::abi::{API_VERSION, Answer, Call, Errno, Out};

pub(super) const MISSING: u64 = 1;
pub(super) const WP: u64 = 2;

/// One process with one userfaultfd, and a thread that makes its calls.
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) process: Process,
    pub(super) caller: Thread,
    pub(super) context: ContextId,
}

impl Rig {
    pub(super) fn new(profile: Profile, features: u64) -> Rig {
        let setup = Setup { profile, hugetlb_pages: 8, unprivileged_userfaultfd: false };
        let machine = Machine::new(setup);
        let process = machine.spawn(true);
        let caller = machine.thread(process);
        let context = open(&machine, caller, features);
        Rig { machine, process, caller, context }
    }

    pub(super) fn map(&self, pages: u64) -> u64 {
        self.map_of(Material::Anonymous { huge: false }, pages)
    }

    pub(super) fn map_of(&self, material: Material, pages: u64) -> u64 {
        let access = Access::ReadWrite;
        let request = MapRequest { len: pages * PAGE, material, access, at: None };
        match self.machine.map(self.caller, request) {
            Progress::Done(Outcome::Returned(Ok(address))) => address,
            other => panic!("mmap has come to {other:?}"),
        }
    }

    /// A fresh registered mapping.
    pub(super) fn armed(&self, pages: u64, mode: u64) -> u64 {
        let start = self.map(pages);
        self.arm(self.context, start, pages, mode);
        start
    }

    pub(super) fn arm(&self, context: ContextId, start: u64, pages: u64, mode: u64) {
        let call = Call::Register { start, len: pages * PAGE, mode };
        assert_eq!(self.call_on(context, call).result, Ok(()), "REGISTER");
    }

    pub(super) fn another(&self, features: u64) -> ContextId {
        open(&self.machine, self.caller, features)
    }

    pub(super) fn call(&self, call: Call) -> Answer {
        self.call_on(self.context, call)
    }

    pub(super) fn call_on(&self, context: ContextId, call: Call) -> Answer {
        match self.machine.call(self.caller, context, call, Placement::Ordinary) {
            Progress::Done(Outcome::Ioctl(answer)) => answer,
            other => panic!("{call:?} has come to {other:?}"),
        }
    }

    /// Starts a call that has to sleep.
    pub(super) fn start(&self, call: Call) -> Parked {
        sleeping(self.machine.call(self.caller, self.context, call, Placement::Ordinary))
    }

    pub(super) fn touch(&self, address: u64, touch: Touch) -> Progress {
        self.machine.access(self.machine.thread(self.process), address, touch)
    }

    pub(super) fn fill(&self, at: u64, byte: u8) {
        let page = vec![byte; 4096];
        let answer = self.machine.copy_bytes(self.caller, self.context, at, &page, 0);
        assert_eq!(answer, done(1), "COPY to {at:#x}");
    }

    pub(super) fn load(&self, address: u64) -> u8 {
        match self.touch(address, Touch::Load) {
            Progress::Done(Outcome::Loaded(byte)) => byte,
            other => panic!("a load has come to {other:?}"),
        }
    }

    pub(super) fn advise(&self, start: u64, pages: u64, advice: Advice) {
        match self.machine.advise(self.caller, start, pages * PAGE, advice) {
            Progress::Done(Outcome::Returned(Ok(0))) => {}
            other => panic!("madvise {advice:?} has come to {other:?}"),
        }
    }

    pub(super) fn entry(&self, address: u64) -> Observed {
        self.machine.observe(self.process, address)
    }
}

fn open(machine: &Machine, thread: Thread, features: u64) -> ContextId {
    let nonblocking = libc::O_NONBLOCK.cast_unsigned();
    let context = machine.open(thread, Door::Call, nonblocking).expect("a userfaultfd");
    let call = Call::Api { api: API_VERSION, features };
    match machine.call(thread, context, call, Placement::Ordinary) {
        Progress::Done(Outcome::Ioctl(answer)) => assert_eq!(answer.result, Ok(())),
        other => panic!("the handshake has come to {other:?}"),
    }
    context
}

pub(super) fn copy(dst: u64, src: u64, pages: u64) -> Call {
    Call::Copy { dst, src, len: pages * PAGE, mode: 0 }
}

pub(super) fn moving(dst: u64, src: u64, pages: u64) -> Call {
    Call::Move { dst, src, len: pages * PAGE, mode: 0 }
}

pub(super) fn zero(start: u64, pages: u64) -> Call {
    Call::Zeropage { start, len: pages * PAGE, mode: 0 }
}

pub(super) fn done(pages: i64) -> Answer {
    Answer { result: Ok(()), out: Out::Done(pages * 4096) }
}

pub(super) fn partial(pages: i64) -> Answer {
    Answer { result: Err(Errno::EAGAIN), out: Out::Done(pages * 4096) }
}

pub(super) fn refused(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Done(errno.negative()) }
}

pub(super) fn sleeping(progress: Progress) -> Parked {
    match progress {
        Progress::Parked(parked) => parked,
        Progress::Done(outcome) => panic!("it should sleep, and has come to {outcome:?}"),
    }
}

/// What something that was woken comes to.
pub(super) fn ended(parked: Parked) -> Outcome {
    match parked.resume() {
        Progress::Done(outcome) => outcome,
        Progress::Parked(parked) => panic!("it sleeps on: {parked:?}"),
    }
}

/// Runs something that hangs if a lock is held or taken in the wrong order.
pub(super) fn within_deadline(work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        sender.send(()).expect("somebody waits");
    });
    match receiver.recv_timeout(DEADLINE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(60);
