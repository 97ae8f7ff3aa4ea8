//! The life of one process that holds a guest: launched or received, controlled, moved on, ended.
//!
//! [`Host`] is what the control API, the migration threads and the main thread share. It is locked
//! for moments only, and never while a vCPU, a disk or a peer is waited for.

mod control;
mod events;
mod incoming;
mod outgoing;
mod serve;
mod status;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use godwit_migration::driver::{Notifier, Records};
use godwit_migration::metrics::Progress;
use godwit_migration::proto::{MigrationState, Outcome};
use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use uuid::Uuid;

use crate::api::types::{Direction, Role};
use crate::vm::{GuestExit, Vm};

pub use control::Controlled;
pub use events::watch_signals;
pub use incoming::receive_from;
pub use serve::{End, serve};

/// What the main thread is told.
#[derive(Debug)]
enum HostEvent {
    /// A migration is over.
    MigrationEnded(Outcome),
    /// Somebody wants the process to end; with force, at any price.
    End {
        /// Even if that loses pages that are nowhere else.
        force: bool,
    },
    /// A client has seen how the migration ended.
    OutcomeSeen,
}

/// One process's guest, its migrations and its records.
pub struct Host {
    role: Role,
    records: Records,
    events: Notifier<HostEvent>,
    state: Mutex<State>,
    outcome_seen: AtomicBool,
}

#[derive(Default)]
struct State {
    guest: Option<Guest>,
    migration: Option<Migration>,
}

/// The guest that this process holds.
struct Guest {
    id: Uuid,
    vm: Arc<Vm>,
    /// While pages may be missing. Dropping it would let vCPUs go on with zeros, so it outlives
    /// the vCPUs unless all pages are there.
    memory: Option<Arc<GuestUffd<KernelUffd>>>,
    /// The operator paused it: it stays paused wherever it goes.
    paused: bool,
    /// A migration has it: it must not be resumed here.
    leaving: bool,
    /// This process may run it.
    owned: bool,
    /// The last transfer that was tried or done.
    transfer: u64,
    exit: Option<GuestExit>,
    moved_to: Option<String>,
    tsc_khz: u32,
}

/// The latest migration of the guest.
struct Migration {
    direction: Direction,
    progress: Arc<Progress>,
    levers: Levers,
    thread: Option<JoinHandle<()>>,
    paused_tsc: Option<Vec<u64>>,
}

/// What can be done to a migration from outside.
enum Levers {
    Outgoing { give_up: Box<dyn Fn(String) + Send> },
    Incoming { guest_ended: Box<dyn Fn() + Send>, stop: Box<dyn Fn() + Send> },
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Migration {
    fn state(&self) -> MigrationState {
        self.progress.report().state
    }

    /// Its thread is at work: it has not ended, or has lost its peer and keeps the faults.
    fn active(&self) -> bool {
        self.thread.is_some()
    }
}

impl Host {
    /// A process without a guest.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(role: Role, records: Records) -> std::io::Result<Arc<Host>> {
        Ok(Arc::new(Host {
            role,
            records,
            events: Notifier::new()?,
            state: Mutex::new(State::default()),
            outcome_seen: AtomicBool::new(false),
        }))
    }

    /// Takes over a guest that was booted here; `transfer` is the last one known of it.
    pub fn adopt(&self, id: Uuid, vm: Arc<Vm>, transfer: u64) {
        let tsc_khz = vm.tsc_khz();
        let guest = Guest { owned: true, ..Guest::new(id, vm, transfer, tsc_khz) };
        self.state().guest = Some(guest);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread of a migration. The state stays locked until the migration is in it, so
    /// that the thread and those who hear of its end find it there.
    fn begin_migration(
        self: &Arc<Host>,
        direction: Direction,
        progress: Arc<Progress>,
        levers: Levers,
        run: impl FnOnce() -> Outcome + Send + 'static,
    ) -> std::io::Result<()> {
        let name = match direction {
            Direction::Outgoing => "godwit-source",
            Direction::Incoming => "godwit-faults",
        };
        let host = Arc::clone(self);
        let run = move || {
            if let Err(error) = crate::kvm::prefer_short_delays() {
                tracing::debug!(%error, "faults are served with ordinary delays");
            }
            host.events.send(HostEvent::MigrationEnded(run()));
        };
        let mut state = self.state();
        let thread = Some(std::thread::Builder::new().name(name.into()).spawn(run)?);
        self.outcome_seen.store(false, Ordering::Release);
        state.migration = Some(Migration { direction, progress, levers, thread, paused_tsc: None });
        Ok(())
    }
}

impl Guest {
    fn new(id: Uuid, vm: Arc<Vm>, transfer: u64, tsc_khz: u32) -> Guest {
        Guest {
            id,
            vm,
            memory: None,
            paused: false,
            leaving: false,
            owned: false,
            transfer,
            exit: None,
            moved_to: None,
            tsc_khz,
        }
    }
}

/// An error and its causes in one line, for a peer or a log.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
