//! The guest as its driver sees it, at either side.

use std::sync::Arc;

use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::PageRun;

use super::dirty::DirtyLog;
use crate::page::Paging;
use crate::provider::GuestPages;
use crate::snapshot::Base;
use crate::wire::{Offer, Section};

/// The guest as its source sees it.
pub trait OutgoingVm: Send + Sync {
    /// Stops all vCPUs and drains the devices.
    ///
    /// # Errors
    /// What went wrong, in a line. The guest may be paused then.
    fn pause(&self) -> Result<(), String>;
    /// The state of vCPUs and devices of the paused guest.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn save(&self) -> Result<Vec<Section>, String>;
    /// It is recorded that the guest belongs to the destination, which has not been told yet: what
    /// only one host may hold is given up here. [`OutgoingVm::resume`] may follow nevertheless, if
    /// the destination refuses it.
    fn granted(&self);
    /// Lets the guest run on, unless it was paused by its operator before.
    fn resume(&self);
    /// Its memory.
    fn pages(&self) -> GuestPages;
    /// What it writes while it runs.
    fn dirty_log(&self) -> &dyn DirtyLog;
}

/// The host that a guest comes to: makes the machine.
pub trait IncomingHost: Send + Sync {
    /// Builds the machine of `offer`, which has these pages, with its memory registered for missing
    /// faults and empty. Nothing outside this process is touched.
    ///
    /// # Errors
    /// Why this host cannot run it, in a line that the source's operator will read.
    fn prepare(&self, offer: &Offer, paging: Paging) -> Result<Arc<dyn IncomingVm>, String>;
}

/// The guest as its destination sees it.
pub trait IncomingVm: Send + Sync {
    /// Its memory.
    fn memory(&self) -> Arc<GuestUffd<KernelUffd>>;
    /// Bytes of pages that may be allocated ahead, to be moved into its memory. 0 if its memory
    /// takes none, or the host has too little to spare.
    fn staged_bytes_max(&self) -> usize;
    /// The base that the guest comes with, which was offered and is here.
    fn base(&self) -> Option<Base>;
    /// Empties pages that hold what is old: their next access waits for the source again. Nobody
    /// installs any of them meanwhile.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn empty(&self, pages: PageRun) -> Result<(), String>;
    /// Loads the state of vCPUs and devices. May touch guest memory, which is served meanwhile.
    ///
    /// # Errors
    /// What is wrong with the state, in a line.
    fn load(&self, sections: Vec<Section>) -> Result<(), String>;
    /// Lets the vCPUs run: the guest is ours.
    fn start(&self);
    /// All pages are here: the memory is ordinary again.
    fn settle(&self);
    /// The guest never ran here and never will: everything is given back.
    fn discard(&self);
}
