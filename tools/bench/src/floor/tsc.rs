//! The time-stamp counter: what the guest's lines are dated with.

// UNSAFETY: the instruction has no safe name in the standard library.
#![expect(unsafe_code)]

use std::arch::x86_64::_rdtsc;

use kvm_ioctls::Kvm;

use crate::error::Error;

/// The counter now, in cycles.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets user space execute it.
    unsafe { _rdtsc() }
}

/// Cycles in a millisecond, as KVM gives them.
///
/// # Errors
///
/// [`Error::Kvm`] if there is no KVM.
pub fn khz() -> Result<u64, Error> {
    let kvm = Kvm::new().map_err(Error::kvm("opening /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(Error::kvm("creating a VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(Error::kvm("creating a vCPU"))?;
    let khz = vcpu.get_tsc_khz().map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
    Ok(u64::from(khz))
}
