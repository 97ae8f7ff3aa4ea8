//! This process as the destination of a migration.

use std::sync::Arc;

use godwit_migration::driver::{Arrival, Incoming, IncomingHost, IncomingVm, Receiver};
use godwit_migration::page::Paging;
use godwit_migration::snapshot::Base;
use godwit_migration::wire::{MemslotLayout, Offer, Section};
use godwit_uffd::guest::GuestUffd;
use godwit_uffd::guest::fallback::Moving;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::PageRun;

use super::outgoing::{OPERATOR_SECTION, OPERATOR_VERSION, OperatorState};
use super::{Guest, Host, HostEvent, Levers, allowed, in_full};
use crate::api::types::Direction;
use crate::memory::{GuestMemory, available_bytes, page_size_word};
use crate::vm::{Vm, VmConfig};

/// Begins to receive the guest of `arrival`; its thread goes on by itself.
///
/// # Errors
/// No descriptor or thread to be had; the source is turned away.
pub fn receive_from(
    host: &Arc<Host>,
    arrival: Arrival,
    receiver: &Arc<Receiver>,
) -> std::io::Result<()> {
    let progress = host.progress(Direction::Incoming, arrival.peer().to_owned());
    let incoming = Incoming::new(host.records.clone(), Arc::clone(&progress))?;
    let levers = Levers::Incoming {
        guest_ended: Box::new(incoming.guest_ended()),
        stop: Box::new(incoming.stop()),
    };
    let builder = Builder { host: Arc::clone(host) };
    let receiver = Arc::clone(receiver);
    let run = move || incoming.run(arrival, &receiver, &builder);
    host.begin_migration(Direction::Incoming, progress, levers, run)
}

/// Builds machines for guests that want to come.
struct Builder {
    host: Arc<Host>,
}

/// The guest while its pages are still coming.
struct Arriving {
    host: Arc<Host>,
    vm: Arc<Vm>,
    memory: Arc<GuestUffd<KernelUffd>>,
    base: Option<Base>,
}

impl IncomingHost for Builder {
    fn prepare(&self, offer: &Offer, paging: Paging) -> Result<Arc<dyn IncomingVm>, String> {
        Vm::check(&offer.requirements).map_err(|e| in_full(&e))?;
        let config: VmConfig = postcard::from_bytes(&offer.config)
            .map_err(|e| format!("the guest's configuration cannot be read: {e}"))?;
        self.check_memory(&config, paging)?;
        let welcome = &self.host.welcome;
        allowed::check(&config.devices, &welcome.disk_dirs)?;
        let base = welcome.base_of(offer)?;
        let vm = Vm::create(&config, Box::new(std::io::stdout())).map_err(|e| in_full(&e))?;
        let memory = Arc::new(register(vm.memory(), &offer.memslots)?);
        let tsc_khz = vm.tsc_khz();
        let vm = Arc::new(vm);
        let mut guest = Guest::new(offer.guest, Arc::clone(&vm), offer.transfer, tsc_khz);
        guest.memory = Some(Arc::clone(&memory));
        self.host.keep(guest);
        self.host.events.send(HostEvent::GuestCame);
        Ok(Arc::new(Arriving { host: Arc::clone(&self.host), vm, memory, base }))
    }
}

impl Builder {
    /// Whether the memory that is offered is that of the configuration, and welcome here.
    fn check_memory(&self, config: &VmConfig, paging: Paging) -> Result<(), String> {
        let (promised, said) = (paging.bytes(), config.memory_bytes);
        if said != promised {
            return Err(format!("the guest has {promised} bytes of memory but {said} configured"));
        }
        let (promised, said) = (paging.size, config.backing.page_size());
        if said != promised {
            return Err(format!(
                "the guest's memory has pages of {promised} but {said} configured"
            ));
        }
        match self.host.welcome.page_size {
            Some(wanted) if wanted != said => Err(format!(
                "the guest's memory has pages of {said}, and this receiver takes only guests with \
                 pages of {wanted}: start `godwit receive` with --page-size {}, or the guest with \
                 --page-size {}",
                page_size_word(said),
                page_size_word(wanted),
            )),
            _ => Ok(()),
        }
    }
}

/// Registers all of `memory`, which is empty, for missing faults.
fn register(
    memory: &GuestMemory,
    memslots: &[MemslotLayout],
) -> Result<GuestUffd<KernelUffd>, String> {
    let regions = memory.regions();
    let same = |(slot, region): (&MemslotLayout, &crate::memory::Region)| {
        slot.gpa == region.gpa.0 && slot.bytes == region.bytes
    };
    if regions.len() != memslots.len() || !memslots.iter().zip(regions).all(same) {
        return Err(
            "the guest's memory is laid out in a way that this version does not know".into()
        );
    }
    memory.register_missing().map_err(|e| in_full(&e))
}

impl Arriving {
    fn unregister(&self) {
        if let Err(error) = self.memory.unregister_all() {
            tracing::warn!(error = in_full(&error), "guest memory could not be unregistered");
        }
    }
}

impl IncomingVm for Arriving {
    fn memory(&self) -> Arc<GuestUffd<KernelUffd>> {
        Arc::clone(&self.memory)
    }

    fn staged_bytes_max(&self) -> usize {
        let memory = self.vm.memory();
        if self.memory.methods(memory.kind()).moving != Moving::Move {
            return 0;
        }
        // Pages that are staged and those that faults bring in may exist at the same time, so no
        // more is staged than half of what the host has beyond the guest.
        let spare = available_bytes().unwrap_or(0).saturating_sub(memory.bytes());
        usize::try_from(spare / 2).unwrap_or(usize::MAX)
    }

    fn base(&self) -> Option<Base> {
        self.base.clone()
    }

    fn empty(&self, pages: PageRun) -> Result<(), String> {
        self.vm.memory().empty(pages).map_err(|e| in_full(&e))
    }

    fn load(&self, mut sections: Vec<Section>) -> Result<(), String> {
        let operator = sections.iter().position(|section| section.id == OPERATOR_SECTION);
        let operator = operator.ok_or("the state of the operator is missing")?;
        let operator = sections.swap_remove(operator);
        if operator.version != OPERATOR_VERSION {
            let version = operator.version;
            return Err(format!("the state of the operator has unknown version {version}"));
        }
        let OperatorState { paused } = postcard::from_bytes(&operator.bytes)
            .map_err(|e| format!("the state of the operator cannot be read: {e}"))?;
        self.vm.restore(&sections).map_err(|e| in_full(&e))?;
        if let Some(guest) = &mut self.host.state().guest {
            guest.paused = paused;
        }
        Ok(())
    }

    fn start(&self) {
        let mut state = self.host.state();
        let Some(guest) = &mut state.guest else { return };
        guest.owned = true;
        if !guest.paused {
            guest.vm.start();
        }
    }

    fn settle(&self) {
        self.unregister();
        if let Err(error) = self.vm.memory().set_complete() {
            tracing::warn!(error = in_full(&error), "guest memory keeps its small pages");
        }
        if let Some(guest) = &mut self.host.state().guest {
            guest.memory = None;
        }
    }

    fn discard(&self) {
        // Whoever loads state and waits for a page goes on; the vCPUs never ran and never will.
        self.unregister();
        self.vm.shutdown();
        self.host.state().guest = None;
    }
}
