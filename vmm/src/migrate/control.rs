//! The commands of the control API.

use std::sync::Arc;

use godwit_migration::driver::Command;
use godwit_migration::proto::MigrationState;
use godwit_migration::transport::Address;

use super::{Guest, Host, HostEvent, Levers, Migration};
use crate::api::types::{Direction, MigrateRequest, RecoverRequest, SnapshotRequest, Status};
use crate::api::{Control, ControlError};
use crate::vm::Vm;

/// The host as the API's threads see it.
#[derive(Debug)]
pub struct Controlled(pub Arc<Host>);

impl Control for Controlled {
    fn status(&self) -> Status {
        self.0.status()
    }

    fn pause(&self) -> Result<(), ControlError> {
        let vm = self.0.with_own_guest("pause", |guest| {
            guest.paused = true;
            Arc::clone(&guest.vm)
        })?;
        vm.pause().map_err(|error| {
            self.0.forget_pause(&vm);
            ControlError::failed("pause", &error, None)
        })
    }

    fn resume(&self) -> Result<(), ControlError> {
        let result = self.0.with_own_guest("resume", |guest| {
            if guest.held {
                let hint = Some("it goes on by itself when its memory has been read");
                return Err(ControlError::wrong_state("resume", "the guest is being saved", hint));
            }
            guest.paused = false;
            guest.vm.resume().map_err(|e| ControlError::failed("resume", &e, None))
        });
        result?
    }

    fn shutdown(&self, force: bool) -> Result<(), ControlError> {
        if !force && let Some(reason) = self.0.keeps_pages_of_a_lost_peer() {
            let hint = Some("`godwit shutdown --force` gives the guest up for good");
            return Err(ControlError::wrong_state("shutdown", &reason, hint));
        }
        self.0.events.send(HostEvent::End { force });
        Ok(())
    }

    fn migrate(&self, request: MigrateRequest) -> Result<(), ControlError> {
        self.0.start_migration(request)
    }

    fn cancel(&self) -> Result<(), ControlError> {
        if self.0.cancel_snapshot() {
            return Ok(());
        }
        self.0.command_outgoing("cancel", Command::Cancel, |state| {
            use MigrationState::{Active, Device, Setup};
            matches!(state, Setup | Active | Device)
        })
    }

    fn switch_over(&self) -> Result<(), ControlError> {
        self.0.command_outgoing("switch over", Command::SwitchNow, |state| {
            matches!(state, MigrationState::Setup | MigrationState::Active)
        })
    }

    fn recover(&self, request: RecoverRequest) -> Result<(), ControlError> {
        self.0.recover(request.url)
    }

    fn snapshot(&self, request: SnapshotRequest) -> Result<(), ControlError> {
        self.0.start_snapshot(request)
    }
}

impl Host {
    /// Gives the migration that leaves here a command, if its state is one that takes it.
    fn command_outgoing(
        &self,
        step: &str,
        command: Command,
        takes: impl Fn(MigrationState) -> bool,
    ) -> Result<(), ControlError> {
        let state = self.state();
        let migration = state.migration.as_ref().filter(|migration| migration.active());
        let Some(Migration { levers: Some(Levers::Outgoing { command: give }), .. }) = migration
        else {
            let hint = Some("`godwit status` shows the last one");
            return Err(ControlError::wrong_state(step, "no migration leaves here", hint));
        };
        let migration = migration.expect("it has levers");
        let stands = migration.state();
        if let Some(peer) = migration.granted_to() {
            let why = format!("it is too late: the guest was granted to {peer}");
            let hint = Some("`godwit status` on both hosts tells which of them has it");
            if step != "recover" {
                return Err(ControlError::wrong_state(step, &why, hint));
            }
        }
        if !takes(stands) {
            let word = serde_json::to_value(stands).unwrap_or_default();
            let why = format!("the migration is in state {word}");
            return Err(ControlError::wrong_state(step, &why, None));
        }
        give(command);
        Ok(())
    }

    fn recover(&self, url: Option<Address>) -> Result<(), ControlError> {
        let incoming = self.state().migration.as_ref().is_some_and(|migration| {
            migration.active() && migration.direction == Direction::Incoming
        });
        match (incoming, url) {
            (false, url) => self.command_outgoing("recover", Command::Recover(url), |state| {
                state.is_interrupted() || state == MigrationState::PostcopyActive
            }),
            (true, None) => {
                let hint = Some("give an address to listen at as well, or recover at the source");
                Err(ControlError::wrong_state("recover", "the source dials, not this end", hint))
            }
            (true, Some(url)) => {
                let receiver = self.receiver.as_ref().expect("guests come in by it");
                let failed = |e| ControlError::failed("recover", &e, Some("choose another"));
                let address = receiver.listen_also(&url).map_err(failed)?;
                tracing::info!("listening at {address} as well");
                Ok(())
            }
        }
    }

    /// Calls `act` with the guest, if this process may run it and is not handing it over.
    fn with_own_guest<T>(
        &self,
        step: &str,
        act: impl FnOnce(&mut Guest) -> T,
    ) -> Result<T, ControlError> {
        let mut state = self.state();
        let granted_to = state.migration.as_ref().and_then(Migration::granted_to);
        let refuse = |why: &str, hint| Err(ControlError::wrong_state(step, why, hint));
        let moved_to = state.moved.as_ref().map(|moved| moved.to.clone());
        match &mut state.guest {
            None => match moved_to {
                Some(to) => {
                    let hint = Some("ask the process that received it");
                    refuse(&format!("the guest has moved to {to}"), hint)
                }
                None => refuse("there is no guest in this process", None),
            },
            Some(Guest { exit: Some(exit), .. }) => refuse(&format!("the guest {exit}"), None),
            Some(Guest { owned: false, .. }) => {
                refuse("this process does not own the guest", Some("see `godwit status`"))
            }
            Some(guest) => match granted_to {
                Some(peer) => {
                    let hint = Some("`godwit status` on both hosts tells which of them has it");
                    refuse(&format!("the guest was granted to {peer}"), hint)
                }
                None if guest.leaving => {
                    let hint =
                        Some("it runs on at the destination, or here if the migration fails");
                    refuse("the guest is being handed over", hint)
                }
                None => Ok(act(guest)),
            },
        }
    }

    fn forget_pause(&self, vm: &Arc<Vm>) {
        if let Some(guest) = &mut self.state().guest
            && Arc::ptr_eq(&guest.vm, vm)
        {
            guest.paused = vm.is_paused();
        }
    }

    /// What would be lost with this process: pages that a lost peer has not got.
    pub(super) fn keeps_pages_of_a_lost_peer(&self) -> Option<String> {
        let state = self.state();
        let migration = state.migration.as_ref()?;
        let report = migration.progress.report();
        if migration.direction != Direction::Outgoing || !report.state.is_interrupted() {
            return None;
        }
        let (pages, peer) = (report.pages.total, &report.peer);
        Some(format!(
            "the guest was granted to {peer}, which is lost; all {pages} pages are kept here until \
             it is back, and those that {peer} lacks are nowhere else"
        ))
    }

    /// Whether a migration from here is past its switchover and not over.
    pub(super) fn draining(&self) -> bool {
        let state = self.state();
        state.migration.as_ref().is_some_and(|migration| {
            migration.active()
                && migration.direction == Direction::Outgoing
                && matches!(
                    migration.progress.report().state,
                    MigrationState::PostcopyActive | MigrationState::Device
                )
        })
    }

    /// Pulls the lever that ends the migration under way for `reason`: before its switchover at
    /// the source, at any time at the destination.
    /// With `force` also at a source that keeps pages of a lost peer.
    pub(super) fn end_migration(&self, reason: &str, force: bool) {
        let state = self.state();
        if let Some(migration) = state.migration.as_ref().filter(|m| Migration::active(m)) {
            match &migration.levers {
                Some(Levers::Outgoing { command }) => {
                    command(match migration.granted_to() {
                        // The guest ended elsewhere, or nobody wants what is left of it.
                        Some(_) if force => Command::Abandon(reason.to_owned()),
                        _ => Command::GiveUp(reason.to_owned()),
                    });
                }
                Some(Levers::Incoming { guest_ended, stop }) => {
                    guest_ended();
                    stop();
                }
                None => {}
            }
        }
    }
}
