//! The main thread: waits for the guest to end, for migrations, for the operator.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_migration::driver::Receiver;
use godwit_migration::proto::{Outcome, Phase};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::status::vm_info;
use super::{Host, HostEvent, Migration, Moved, receive_from};
use crate::api::types::{Direction, Role};
use crate::vm::{GuestExit, Vm};

/// How long a process whose guest has moved away stays to tell its operator.
const TELL_WITHIN: Duration = Duration::from_secs(2);
/// How long it stays once somebody was told: whoever waits for the end asks more often than this.
const TELL_OTHERS_WITHIN: Duration = Duration::from_millis(500);

/// Why a process has nothing left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest ended.
    Guest(GuestExit),
    /// The guest moved to another host, which has all of it.
    Moved,
    /// The operator ended it.
    Operator,
}

/// What the main thread remembers between two events.
#[derive(Default)]
struct Intent {
    /// The operator wants the process to end.
    end: bool,
    /// At once, even if pages are lost.
    force: bool,
    /// How the guest ended; what is left is the end of its migration.
    exit: Option<GuestExit>,
    /// The guest has moved: until then somebody may ask how.
    tell_until: Option<Instant>,
}

/// Serves until there is nothing left to do. A receiver listens again whenever there is no guest.
///
/// # Errors
/// The descriptors cannot be polled.
pub fn serve(host: &Arc<Host>) -> std::io::Result<End> {
    let mut intent = Intent::default();
    let receiver = host.receiver.as_ref();
    loop {
        let vm = host.state().guest.as_ref().map(|guest| Arc::clone(&guest.vm));
        let watch_exit = vm.as_ref().filter(|_| intent.exit.is_none());
        let [event, exit, arrival] = wait(host, watch_exit, receiver, intent.tell_until)?;
        if exit && let Some(vm) = watch_exit {
            host.guest_ended(vm, &mut intent);
        }
        if arrival && let Some(receiver) = receiver {
            host.take_arrivals(receiver);
        }
        if event {
            for event in host.events.take() {
                host.handle(event, &mut intent, receiver);
            }
        }
        if let Some(end) = host.ended(&intent) {
            return Ok(end);
        }
    }
}

fn wait(
    host: &Host,
    vm: Option<&Arc<Vm>>,
    receiver: Option<&Arc<Receiver>>,
    deadline: Option<Instant>,
) -> std::io::Result<[bool; 3]> {
    let event = host.events.as_fd();
    // A descriptor that is not to be polled is left out by polling another one twice.
    let exit: BorrowedFd<'_> = vm.map_or(event, |vm| vm.exits().as_fd());
    let arrival = receiver.map_or(event, |receiver| receiver.arrivals().as_fd());
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    let mut fds = [event, exit, arrival].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; 3]),
        Err(error) => Err(error.into()),
    }
}

impl Host {
    fn migrating(&self) -> bool {
        self.state().migration.as_ref().is_some_and(Migration::active)
    }

    fn guest_ended(&self, vm: &Arc<Vm>, intent: &mut Intent) {
        let Some(exit) = vm.exits().take() else { return };
        tracing::info!("the guest {exit}");
        if let Some(guest) = &mut self.state().guest {
            guest.exit = Some(exit.clone());
        }
        self.end_migration(&format!("the guest {exit}"), false);
        intent.exit = Some(exit);
    }

    fn take_arrivals(self: &Arc<Host>, receiver: &Arc<Receiver>) {
        for arrival in receiver.arrivals().take() {
            let peer = arrival.peer().to_owned();
            tracing::info!(peer, "a guest wants to come");
            if let Err(error) = receive_from(self, arrival, receiver) {
                tracing::error!(peer, %error, "it could not be received");
                receiver.open();
            }
        }
    }

    fn handle(&self, event: HostEvent, intent: &mut Intent, receiver: Option<&Arc<Receiver>>) {
        match event {
            HostEvent::MigrationEnded(outcome) => self.migration_ended(&outcome, intent, receiver),
            HostEvent::End { force } => self.end(force, intent),
            HostEvent::OutcomeSeen => {
                // Others may look as well, and each looks again and again.
                let soon = Instant::now() + TELL_OTHERS_WITHIN;
                intent.tell_until = intent.tell_until.map(|until| until.min(soon));
            }
            // The next wait includes its end.
            HostEvent::GuestCame => {}
            HostEvent::SnapshotEnded => self.snapshot_ended(),
        }
    }

    fn migration_ended(
        &self,
        outcome: &Outcome,
        intent: &mut Intent,
        receiver: Option<&Arc<Receiver>>,
    ) {
        let Some((direction, peer)) = self.join_migration() else { return };
        self.follow_up(direction, &peer, outcome, intent, receiver);
        if let Some(migration) = &mut self.state().migration {
            migration.over = true;
            migration.levers = None;
            migration.progress.show_end();
        }
        self.over.notify_all();
    }

    /// What follows from the end of a migration.
    fn follow_up(
        &self,
        direction: Direction,
        peer: &str,
        outcome: &Outcome,
        intent: &mut Intent,
        receiver: Option<&Arc<Receiver>>,
    ) {
        match (direction, outcome) {
            (Direction::Outgoing, Outcome::Completed) => {
                self.guest_moved(peer);
                match receiver {
                    Some(receiver) => receiver.open(),
                    None => intent.tell_until = Some(Instant::now() + TELL_WITHIN),
                }
            }
            (Direction::Outgoing, Outcome::Aborted { reason }) => {
                tracing::warn!(peer, reason, "migration failed; the guest runs on here");
            }
            (Direction::Outgoing, Outcome::Cancelled) => {
                tracing::info!(peer, "migration cancelled; the guest runs on here");
            }
            (Direction::Outgoing, Outcome::Lost { reason }) => {
                tracing::error!(peer, reason, "the guest is lost; it is not run here again");
            }
            (Direction::Incoming, Outcome::Cancelled) => {
                unreachable!("a destination is told of an abort")
            }
            (Direction::Incoming, Outcome::Aborted { reason }) => {
                // Before it is said: whoever reads it may come at once.
                if let Some(receiver) = receiver {
                    receiver.open();
                }
                tracing::warn!(peer, reason, "no guest came; listening again");
            }
            (Direction::Incoming, Outcome::Completed) if intent.end || intent.exit.is_some() => {
                tracing::info!(peer, "the guest has ended and needs no more pages");
            }
            (Direction::Incoming, Outcome::Completed) => {
                tracing::info!(peer, "the guest is here with all its pages");
                if let (Some(receiver), Some(id)) = (receiver, self.guest_id()) {
                    receiver.close(format!("guest {id} runs here already"));
                }
            }
            (Direction::Incoming, Outcome::Lost { reason }) => {
                tracing::error!(peer, reason, "the guest is lost: it ends without all its pages");
            }
        }
    }

    /// Joins the thread of the migration that has ended: its direction and its peer.
    fn join_migration(&self) -> Option<(Direction, String)> {
        let (thread, direction, peer) = {
            let mut state = self.state();
            let migration = state.migration.as_mut()?;
            let thread = migration.thread.take()?;
            (thread, migration.direction, migration.progress.report().peer)
        };
        if thread.join().is_err() {
            tracing::error!(peer, "the migration thread panicked");
        }
        Some((direction, peer))
    }

    fn guest_id(&self) -> Option<uuid::Uuid> {
        self.state().guest.as_ref().map(|guest| guest.id)
    }

    /// The destination has all pages: nothing of the guest is needed here.
    fn guest_moved(&self, peer: &str) {
        let guest = {
            let mut state = self.state();
            let Some(guest) = state.guest.take() else { return };
            let (id, transfer, vm) = (guest.id, guest.transfer, vm_info(&guest));
            state.moved = Some(Moved { id, to: peer.to_owned(), transfer, vm });
            guest
        };
        guest.vm.shutdown();
        drop(guest);
        tracing::info!(peer, "the guest has moved");
    }

    fn end(&self, force: bool, intent: &mut Intent) {
        if force {
            (intent.end, intent.force) = (true, true);
            return self.end_migration("the operator ends this process", true);
        }
        if let Some(reason) = self.keeps_pages_of_a_lost_peer() {
            return tracing::warn!("{reason}; ask again to give the guest up for good");
        }
        intent.end = true;
        if self.draining() {
            return tracing::warn!(
                "pages of the guest are only here: finishing the migration first; \
                 ask again to end at once and lose the guest"
            );
        }
        self.end_migration("the operator ends this process", false);
    }

    /// Whether nothing is left to do. The guest is put away then.
    fn ended(&self, intent: &Intent) -> Option<End> {
        let told = intent.tell_until.is_some_and(|until| Instant::now() >= until);
        if told && self.role != Role::Receive {
            return Some(End::Moved);
        }
        let wanted = intent.end || intent.exit.is_some();
        if !wanted || (self.migrating() && !intent.force) {
            return None;
        }
        self.end_snapshot();
        self.end_restore();
        let (vm, id) = {
            let state = self.state();
            match &state.guest {
                Some(guest) => (Some(Arc::clone(&guest.vm)), guest.owned.then_some(guest.id)),
                None => (None, None),
            }
        };
        if let Some(vm) = vm {
            vm.shutdown();
        }
        if let Some(id) = id.filter(|_| !self.lost()) {
            // The guest is over: nobody needs to know any more who owned it.
            if let Err(error) = self.records.forget(id) {
                tracing::warn!(%error, "the guest's record stays");
            }
        }
        Some(intent.exit.clone().map_or(End::Operator, End::Guest))
    }

    fn lost(&self) -> bool {
        let state = self.state();
        let lost = |m: &Migration| {
            m.state().is_interrupted() || m.progress.reached_at(Phase::Lost).is_some()
        };
        state.migration.as_ref().is_some_and(lost)
    }
}
