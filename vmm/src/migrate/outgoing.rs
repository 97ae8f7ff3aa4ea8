//! The guest as the source of a migration.

use std::sync::Arc;
use std::time::Duration;

use godwit_migration::driver::{DirtyLog, Outgoing, OutgoingVm, Plan, PushOptions};
use godwit_migration::limits::bandwidth_min;
use godwit_migration::provider::GuestPages;
use godwit_migration::schedule::{OnTimeout, RoundLimits};
use godwit_migration::transport::TlsConnector;
use godwit_migration::wire::{MemslotLayout, Mode, Offer, Section};
use godwit_uffd::page::PageSize;

use super::{Guest, Host, Levers, Migration, Saving, base, in_full};
use crate::api::ControlError;
use crate::api::types::{Direction, MigrateRequest, MigrationMode, Problem, TimeoutStrategy};
use crate::memory::copy_readable;
use crate::vm::Vm;

/// What travels beside the sections of the VM: what its operator wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct OperatorState {
    pub paused: bool,
}

/// The id of the section with the [`OperatorState`]. The VM's own sections are below 0x8000.
pub(super) const OPERATOR_SECTION: u16 = 0x8000;
/// Its only version.
pub(super) const OPERATOR_VERSION: u16 = 1;

/// The guest while it leaves.
struct Leaving {
    host: Arc<Host>,
    vm: Arc<Vm>,
}

impl OutgoingVm for Leaving {
    fn pause(&self) -> Result<(), String> {
        if let Some(guest) = &mut self.host.state().guest {
            guest.leaving = true;
        }
        self.vm.pause().map_err(|e| in_full(&e))
    }

    fn save(&self) -> Result<Vec<Section>, String> {
        let tsc = self.vm.guest_tsc().ok();
        let sections = self.vm.save().map_err(|e| in_full(&e))?;
        let paused = {
            let mut state = self.host.state();
            if let Some(migration) = &mut state.migration {
                migration.paused_tsc = tsc;
            }
            state.guest.as_ref().is_some_and(|guest| guest.paused)
        };
        let bytes = postcard::to_stdvec(&OperatorState { paused }).map_err(|e| in_full(&e))?;
        let operator = Section { id: OPERATOR_SECTION, version: OPERATOR_VERSION, bytes };
        Ok(sections.into_iter().chain([operator]).collect())
    }

    fn granted(&self) {
        if let Err(error) = self.vm.release_disks() {
            tracing::error!(error = in_full(&error), "the guest's disks stay locked here");
        }
    }

    fn resume(&self) {
        let mut state = self.host.state();
        let Some(guest) = &mut state.guest else { return };
        guest.leaving = false;
        if guest.paused {
            return;
        }
        if let Err(error) = guest.vm.resume() {
            tracing::warn!(error = in_full(&error), "the guest could not be resumed");
        }
    }

    fn pages(&self) -> GuestPages {
        let memory = self.vm.memory();
        GuestPages::new(Arc::new(memory.inner().clone()), memory.page_size(), copy_readable)
    }

    fn dirty_log(&self) -> &dyn DirtyLog {
        &*self.vm
    }
}

impl Host {
    /// Starts to move the guest; its thread goes on by itself.
    pub(super) fn start_migration(
        self: &Arc<Host>,
        request: MigrateRequest,
    ) -> Result<(), ControlError> {
        let tls = match &request.tls_dir {
            Some(dir) => Some(TlsConnector::load(dir).map_err(|e| {
                let hint = Some("the guest runs on here; nothing was sent");
                ControlError::failed("migrate", &e, hint)
            })?),
            None => None,
        };
        let base = request.base.as_deref().map(base::open).transpose()?;
        let mut state = self.state_after_ending();
        if state.migration.as_ref().is_some_and(Migration::active) {
            let hint = Some("wait for it; `godwit status` shows how it goes");
            return Err(ControlError::wrong_state("migrate", "a migration is under way", hint));
        }
        if let Some(peer) = state.migration.as_ref().and_then(Migration::granted_to) {
            let why = format!("the guest was granted to {peer}, which may be running it");
            let hint = Some("`godwit status` on both hosts tells which of them has it");
            return Err(ControlError::wrong_state("migrate", &why, hint));
        }
        if state.saving.as_ref().is_some_and(Saving::active) {
            let hint = Some("wait for it, or cancel it");
            return Err(ControlError::wrong_state("migrate", "a snapshot is being taken", hint));
        }
        let guest = state.guest.as_mut().filter(|guest| guest.owned && guest.exit.is_none());
        let guest = guest.ok_or_else(|| {
            ControlError::wrong_state("migrate", "this process has no guest to move", None)
        })?;
        if guest.vm.memory().is_incomplete() {
            let why = "pages of the guest are still being restored";
            let hint = Some("wait until `godwit status` says that it is resident");
            return Err(ControlError::wrong_state("migrate", why, hint));
        }
        check_bandwidth(request.bandwidth_bytes_per_s, guest.vm.memory().page_size())?;
        guest.transfer += 1;
        let mut offer = offer(guest, &request);
        if let Some(base) = &base {
            offer = base::with(offer, base)?;
        }
        offer.check_connections().map_err(|why| {
            let hint = Some("choose from 1 to 32 connections");
            ControlError::BadRequest(Problem::new("migrate", why, hint))
        })?;
        let leaving = Leaving { host: Arc::clone(self), vm: Arc::clone(&guest.vm) };
        drop(state);
        self.spawn_outgoing(Plan { base, ..plan(request, tls) }, offer, leaving)
            .map_err(|e| ControlError::failed("migrate", &e, None))
    }

    fn spawn_outgoing(
        self: &Arc<Host>,
        plan: Plan,
        offer: Offer,
        leaving: Leaving,
    ) -> std::io::Result<()> {
        let progress = self.progress(Direction::Outgoing, plan.address.to_string());
        let records = self.records.clone();
        let outgoing = Outgoing::new(plan, offer, records, Arc::clone(&progress))?;
        let levers = Levers::Outgoing { command: Box::new(outgoing.commands()) };
        self.begin_migration(Direction::Outgoing, progress, levers, move || outgoing.run(&leaving))
    }
}

/// A cap must let a run of pages pass while the peer still has patience.
fn check_bandwidth(bytes_per_s: Option<u64>, page_size: PageSize) -> Result<(), ControlError> {
    let least = bandwidth_min(page_size);
    match bytes_per_s {
        Some(rate) if rate < least => {
            let why = format!(
                "a bandwidth of {rate} bytes a second: with pages of {page_size} the least is \
                 {least}"
            );
            Err(ControlError::BadRequest(Problem::new("migrate", &why, None)))
        }
        _ => Ok(()),
    }
}

fn plan(request: MigrateRequest, tls: Option<TlsConnector>) -> Plan {
    let limits = RoundLimits {
        downtime: Duration::from_millis(request.downtime_ms.into()),
        timeout: Duration::from_secs(request.timeout_s.into()),
        on_timeout: match request.timeout_strategy {
            TimeoutStrategy::Cancel => OnTimeout::Cancel,
            TimeoutStrategy::Ignore => OnTimeout::Ignore,
            TimeoutStrategy::Switch => OnTimeout::Switch,
        },
    };
    let push = PushOptions {
        compression: request.compression,
        bandwidth_bytes_per_s: request.bandwidth_bytes_per_s,
    };
    let (address, tracking) = (request.destination_url, request.dirty_tracking);
    Plan { address, tls, limits, tracking, push, base: None }
}

fn offer(guest: &Guest, request: &MigrateRequest) -> Offer {
    let slot =
        |region: &crate::memory::Region| MemslotLayout { gpa: region.gpa.0, bytes: region.bytes };
    let memory = guest.vm.memory();
    Offer {
        guest: guest.id,
        transfer: guest.transfer,
        page_bytes: u32::try_from(memory.page_size().bytes()).expect("2 MiB at most"),
        mode: match request.mode {
            MigrationMode::Postcopy => Mode::Postcopy,
            MigrationMode::Precopy => Mode::Precopy,
            MigrationMode::Hybrid => Mode::Hybrid,
        },
        connections: request.connections,
        memslots: memory.regions().iter().map(slot).collect(),
        config: postcard::to_stdvec(guest.vm.config()).expect("plain data serializes"),
        requirements: guest.vm.requirements(),
        base: None,
    }
}
