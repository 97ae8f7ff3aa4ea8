//! Memslots.

// UNSAFETY: KVM is told to use a range of our address space as the guest's memory.
#![expect(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::{KvmError, failed};
use crate::memory::{GuestMemory, Region};

/// Makes guest memory visible to the guest, one memslot a region.
///
/// # Errors
/// [`KvmError::Call`] if the kernel refuses it.
pub fn add_memory(vm: &VmFd, memory: &Arc<GuestMemory>) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.regions()) {
        // SAFETY: every vCPU thread holds a reference to the memory until it ends.
        unsafe { set_memslot(vm, slot, region, 0) }?;
    }
    Ok(())
}

/// Switches the dirty log of all memslots that [`add_memory`] made on or off. If switching it off
/// fails for one, the others are switched off nevertheless.
///
/// # Errors
/// [`KvmError::Call`] if the kernel refuses it.
pub(super) fn log_writes(vm: &VmFd, memory: &Arc<GuestMemory>, on: bool) -> Result<(), KvmError> {
    let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    let mut result = Ok(());
    for (slot, region) in (0..).zip(memory.regions()) {
        // SAFETY: as above; the memslot is as it was but for the flag.
        let switched = unsafe { set_memslot(vm, slot, region, flags) };
        result = result.and(switched);
        if on && result.is_err() {
            break;
        }
    }
    result
}

/// Makes a region of guest memory visible to the guest as memslot `slot`, or changes its flags.
///
/// # Errors
/// [`KvmError::Call`] if the kernel refuses it.
///
/// # Safety
/// The region stays mapped as long as a vCPU of `vm` can run.
unsafe fn set_memslot(vm: &VmFd, slot: u32, region: &Region, flags: u32) -> Result<(), KvmError> {
    let request = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.gpa.0,
        memory_size: region.bytes,
        userspace_addr: region.hva.0,
    };
    // SAFETY: the caller keeps the region mapped for as long as the guest can use it.
    unsafe { vm.set_user_memory_region(request) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
}
