//! The thread of a device.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::engine::{Engine, Step};
use super::gate::{Gate, Wanted};
use super::interrupt::{Cause, Interrupt};
use crate::memory::GuestMemory;

/// What a device's thread shares with the registers and with the machine.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) engine: Mutex<Engine>,
    pub(super) gate: Gate,
    pub(super) interrupt: Interrupt,
    /// The driver has something for the device, or something else is wanted of its thread.
    pub(super) notify: EventFd,
    /// A queue made no sense.
    pub(super) broken: AtomicBool,
}

/// Why the thread stops serving.
enum Outcome {
    /// Until it is notified.
    Idle,
    /// The device lacks what it needs.
    NotOpen,
}

impl Shared {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
    ) -> io::Result<Shared> {
        Ok(Shared {
            name: device.name(),
            memory,
            engine: Mutex::new(Engine::new(device)),
            gate: Gate::new(),
            interrupt,
            notify: EventFd::new(0)?,
            broken: AtomicBool::new(false),
        })
    }

    /// Held while a request is under way; for others while none is.
    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is wanted of the thread, and wakes it for that unless it is to stay where it is.
    pub(super) fn want(&self, wanted: Wanted) {
        self.gate.want(wanted);
        if wanted != Wanted::Parked {
            self.wake();
        }
    }

    /// Lets the thread look at all queues.
    pub(super) fn wake(&self) {
        // It fails only when the counter is full, and then the thread is woken already.
        let _ = self.notify.write(1);
    }

    /// Does what there is to do, until something else is wanted.
    fn serve(&self, complained: &mut bool) -> Outcome {
        while self.gate.wanted() == Wanted::Running {
            let mut engine = self.engine();
            if !engine.open {
                match engine.device.open() {
                    Ok(()) => (engine.open, *complained) = (true, false),
                    Err(error) => {
                        if !std::mem::replace(complained, true) {
                            let error: &dyn std::error::Error = &error;
                            tracing::warn!(error, "the guest's requests to it wait");
                        }
                        return Outcome::NotOpen;
                    }
                }
            }
            let step = engine.step(&self.memory, &self.gate);
            drop(engine);
            match step {
                Step::Done { interrupt: true } => self.interrupt.raise(Cause::Used),
                Step::Done { interrupt: false } => {}
                Step::Idle => return Outcome::Idle,
                Step::Broken(_) if self.gate.wanted() == Wanted::Gone => {}
                Step::Broken(why) => {
                    tracing::warn!(
                        device = self.name,
                        why = why.0,
                        "it waits for its driver's reset"
                    );
                    self.broken.store(true, Ordering::SeqCst);
                    self.interrupt.raise(Cause::Changed);
                }
            }
        }
        Outcome::Idle
    }
}

/// Starts the thread. It touches nothing until it is told to run.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let thread = Arc::clone(shared);
    shared.gate.begin();
    let name = format!("virtio-{:.8}", shared.name);
    let spawned = thread::Builder::new().name(name).spawn(move || live(&thread));
    if spawned.is_err() {
        shared.gate.end();
    }
    spawned
}

fn live(shared: &Shared) {
    let mut complained = false;
    while shared.gate.enter() {
        let outcome = shared.serve(&mut complained);
        shared.gate.leave();
        match outcome {
            // It waits for a count that is not zero; a signal in between does no harm.
            Outcome::Idle => drop(shared.notify.read()),
            Outcome::NotOpen => shared.gate.rest(OPEN_AGAIN_AFTER),
        }
    }
    shared.gate.end();
}

/// How long a device that lacks what it needs waits until it tries again: the holder of a disk at
/// the source lets go of it a moment before the guest runs here.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(2);
