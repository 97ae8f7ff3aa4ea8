//! Memslots.

// UNSAFETY: KVM is told to use a range of our address space as the guest's memory.
#![expect(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
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
        unsafe { add_memslot(vm, slot, region) }?;
    }
    Ok(())
}

/// Makes a region of guest memory visible to the guest as memslot `slot`.
///
/// # Errors
/// [`KvmError::Call`] if the kernel refuses it.
///
/// # Safety
/// The region stays mapped as long as a vCPU of `vm` can run.
unsafe fn add_memslot(vm: &VmFd, slot: u32, region: &Region) -> Result<(), KvmError> {
    let request = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.gpa.0,
        memory_size: region.bytes,
        userspace_addr: region.hva.0,
    };
    // SAFETY: the caller keeps the region mapped for as long as the guest can use it.
    unsafe { vm.set_user_memory_region(request) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
}
