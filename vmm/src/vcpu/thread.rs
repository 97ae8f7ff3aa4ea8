//! The vCPU thread as a state machine: one struct per state, and a step that leads to the next.

// UNSAFETY: the thread announces the page that it shares with the kernel to the signal handler.
#![expect(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use super::poison::Poison;
use super::ram::Ferry;
use super::running::{Running, Tools};
use super::{Control, Wanted};
use crate::devices::Devices;
use crate::kvm::{Tid, Vcpu, prepare_vcpu_thread};
use crate::memory::GuestMemory;
use crate::vm::Exits;

/// What a vCPU thread shares with the rest of the VM.
pub(crate) struct CpuShared {
    /// Which vCPU it is, from 0.
    pub(crate) index: usize,
    /// How many the guest has.
    pub(crate) count: usize,
    /// The vCPU. Its thread holds the lock while it runs the guest; others take it while it is
    /// parked, to read or write its state.
    pub(crate) vcpu: Mutex<Vcpu>,
    pub(crate) control: Arc<Control>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) exits: Arc<Exits>,
}

/// Starts the thread of a vCPU. It stays out of the guest until told to run.
///
/// # Errors
/// The operating system's reason.
pub(crate) fn spawn(shared: Arc<CpuShared>) -> io::Result<JoinHandle<()>> {
    let ferry = Ferry::open()?;
    let name = format!("vcpu{}", shared.index);
    thread::Builder::new().name(name).spawn(move || live(&shared, ferry))
}

fn live(shared: &CpuShared, ferry: Ferry) {
    prepare_vcpu_thread();
    // SAFETY: `shared` outlives the value, and no other thread enters this vCPU.
    let immediate_exit =
        unsafe { shared.vcpu.lock().unwrap_or_else(PoisonError::into_inner).announce() };
    let tid = Tid(rustix::thread::gettid().as_raw_nonzero().get());
    shared.control.introduce(shared.index, tid);
    let mut tools = Tools { immediate_exit, ferry, poison: Poison::default() };
    let mut state = State::Parked;
    loop {
        state = match state {
            // Parked ---- start, resume ----> Running; Parked ---- shutdown ----> Gone
            State::Parked => match shared.control.park(shared.index) {
                Wanted::Parked => State::Parked,
                Wanted::Running => State::Running(Running::begin(shared)),
                Wanted::Gone => State::Gone,
            },
            // Running ---- pause, shutdown, end of the guest ----> Parked
            State::Running(running) => {
                running.step(&mut tools);
                State::Parked
            }
            State::Gone => break,
        };
    }
    shared.control.leave(shared.index);
}

enum State<'a> {
    /// Out of the guest.
    Parked,
    /// In the guest, or about to be.
    Running(Running<'a>),
    /// At its end.
    Gone,
}
