//! x86-64: CPUID, MSRs, interrupt pins and the registers with which a kernel begins.

pub mod cpuid;
pub mod features;
mod interrupts;
pub mod msr;
mod registers;

pub use registers::Entry;

use crate::kvm::{KvmError, Vcpu};

/// Puts a vCPU where the kernel begins: the first one at the entry, the others waiting for INIT and
/// SIPI, as they are after a reset.
///
/// # Errors
/// [`KvmError::Call`].
pub(crate) fn set_up_for_boot(vcpu: &Vcpu, index: usize, entry: &Entry) -> Result<(), KvmError> {
    interrupts::connect(vcpu)?;
    if index == 0 {
        msr::set_boot_values(vcpu)?;
        registers::enter_at(vcpu, entry)?;
    }
    Ok(())
}
