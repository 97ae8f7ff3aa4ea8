//! The life of one process that holds a guest: launched or received, controlled, moved on, ended.
//!
//! [`Host`] is what the control API, the migration threads and the main thread share. It is locked
//! for moments only, and never while a vCPU, a disk or a peer is waited for.

mod allowed;
mod base;
mod control;
mod dirty;
mod event_log;
mod events;
mod incoming;
mod outgoing;
mod restoring;
mod saving;
mod serve;
mod status;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_migration::driver::{Command, Notifier, Receiver, Records, in_full};
use godwit_migration::limits::PEER_TIMEOUT;
use godwit_migration::metrics::Progress;
use godwit_migration::proto::{MigrationState, Outcome, Phase};
use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use uuid::Uuid;

use crate::api::types::{Direction, Role, VmInfo};
use crate::vm::{GuestExit, Vm};

use restoring::Restore;
use saving::Saving;

pub use base::Welcome;
pub use control::Controlled;
pub use event_log::EventLog;
pub use events::watch_signals;
pub use incoming::receive_from;
pub use restoring::{Record, RestoreError, RestorePlan, restore};
pub use serve::{End, serve};

/// How long the end of a migration that has all its pages may take: the source may be silent.
const END_WITHIN: Duration = Duration::from_secs(15);

const _: () = assert!(END_WITHIN.as_secs() > PEER_TIMEOUT.as_secs());

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
    /// There is a guest now whose end is to be waited for.
    GuestCame,
    /// A snapshot was taken, or was not.
    SnapshotEnded,
}

/// One process's guest, its migrations and its records.
pub struct Host {
    role: Role,
    records: Records,
    events: Notifier<HostEvent>,
    /// Where guests come in; none in a process that only launched one.
    receiver: Option<Arc<Receiver>>,
    /// What guests that come in may bring.
    welcome: Welcome,
    state: Mutex<State>,
    /// A migration is over.
    over: Condvar,
    outcome_seen: AtomicBool,
    /// Where events of migrations are told.
    event_log: OnceLock<Arc<EventLog>>,
}

#[derive(Default)]
struct State {
    guest: Option<Guest>,
    /// The guest that was here last, if it has moved away and no other came.
    moved: Option<Moved>,
    migration: Option<Migration>,
    saving: Option<Saving>,
    restore: Option<Restore>,
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
    /// Its memory is being read for a snapshot: it must not be resumed.
    held: bool,
    /// This process may run it.
    owned: bool,
    /// The last transfer that was tried or done.
    transfer: u64,
    exit: Option<GuestExit>,
    tsc_khz: u32,
}

/// What is still known of a guest that is elsewhere. Its machine and its memory are given back.
struct Moved {
    id: Uuid,
    to: String,
    transfer: u64,
    vm: VmInfo,
}

/// The latest migration of the guest.
struct Migration {
    direction: Direction,
    progress: Arc<Progress>,
    /// Gone when it is over, with the descriptor behind them.
    levers: Option<Levers>,
    thread: Option<JoinHandle<()>>,
    /// Its thread has ended, and what follows from that is done.
    over: bool,
    paused_tsc: Option<Vec<u64>>,
}

/// What can be done to a migration from outside.
enum Levers {
    Outgoing { command: Box<dyn Fn(Command) + Send> },
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

    /// To whom the guest was granted, from the record of that until the destination has all of it
    /// or has refused: until then the destination may run it, and this process must not.
    fn granted_to(&self) -> Option<String> {
        let granted = self.progress.reached_at(Phase::Granted).is_some();
        // A guest that is lost must not be run here either.
        let lost = self.progress.reached_at(Phase::Lost).is_some();
        let report = self.progress.report();
        let open = lost || !report.state.is_final();
        (self.direction == Direction::Outgoing && granted && open).then_some(report.peer)
    }

    /// It has not ended.
    fn active(&self) -> bool {
        !self.over
    }

    /// It will be over soon, whatever the peer does.
    fn ending(&self) -> bool {
        let all_here = self.direction == Direction::Incoming
            && self.progress.reached_at(Phase::LastPage).is_some();
        self.active() && !self.state().is_interrupted() && (all_here || self.progress.has_ended())
    }
}

impl Host {
    /// A process without a guest.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(
        role: Role,
        records: Records,
        receiver: Option<Arc<Receiver>>,
        welcome: Welcome,
    ) -> std::io::Result<Arc<Host>> {
        Ok(Arc::new(Host {
            role,
            records,
            receiver,
            welcome,
            events: Notifier::new()?,
            state: Mutex::new(State::default()),
            over: Condvar::new(),
            outcome_seen: AtomicBool::new(false),
            event_log: OnceLock::new(),
        }))
    }

    /// Takes over a guest that was booted here; `transfer` is the last one known of it.
    pub fn adopt(&self, id: Uuid, vm: Arc<Vm>, transfer: u64) {
        let tsc_khz = vm.tsc_khz();
        self.keep(Guest { owned: true, ..Guest::new(id, vm, transfer, tsc_khz) });
    }

    fn keep(&self, guest: Guest) {
        let mut state = self.state();
        state.guest = Some(guest);
        state.moved = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once a migration that is about to be over is so: whoever was told that it has
    /// ended may begin the next one at once.
    fn state_after_ending(&self) -> MutexGuard<'_, State> {
        let ending = |state: &mut State| state.migration.as_ref().is_some_and(Migration::ending);
        let waited = self.over.wait_timeout_while(self.state(), END_WITHIN, ending);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells `log` of all migrations that begin from now on. The first that is given counts.
    pub fn tell(&self, log: Arc<EventLog>) {
        self.event_log.get_or_init(|| log);
    }

    /// The progress of a migration that begins.
    fn progress(&self, direction: Direction, peer: String) -> Arc<Progress> {
        let progress = Progress::new(peer);
        Arc::new(match self.event_log.get().map(Arc::clone) {
            Some(log) => {
                progress.watched_by(move |change, report| log.tell(direction, change, report))
            }
            None => progress,
        })
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
        let (levers, over, paused_tsc) = (Some(levers), false, None);
        state.migration = Some(Migration { direction, progress, levers, thread, over, paused_tsc });
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
            held: false,
            owned: false,
            transfer,
            exit: None,
            tsc_khz,
        }
    }
}
