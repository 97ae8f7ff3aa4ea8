//! Model-specific registers: which are saved, and in what order they are restored.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

use crate::kvm::{KvmError, Vcpu, failed};

/// The time stamp counter.
pub const TSC: u32 = 0x10;

/// The deadline of the LAPIC timer, in units of the TSC. A write is lost unless the TSC and the
/// timer's mode, which is part of the LAPIC's state, are restored before.
pub const TSC_DEADLINE: u32 = 0x6e0;

const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;

/// The indices of all MSRs that KVM wants to have saved and that this vCPU can read, the TSC first
/// and its deadline last.
///
/// # Errors
/// [`KvmError::Call`].
pub(crate) fn saved_indices(kvm: &Kvm, vcpu: &Vcpu) -> Result<Vec<u32>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices = list.as_slice().to_vec();
    indices.sort_unstable();
    indices.dedup();
    // KVM reads until it meets one that it cannot; leave that out and go on.
    loop {
        let mut msrs = entries(&indices, |_| 0);
        let read = vcpu.fd().get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        if read >= indices.len() {
            break;
        }
        indices.remove(read);
    }
    indices.sort_by_key(|index| restore_order(*index));
    Ok(indices)
}

/// Sorts a list of MSRs into the order in which they are restored.
pub(crate) fn restore_order(index: u32) -> (u8, u32) {
    match index {
        TSC => (0, index),
        TSC_DEADLINE => (2, index),
        _ => (1, index),
    }
}

/// Reads the MSRs `indices`.
///
/// # Errors
/// [`KvmError::Call`].
pub(crate) fn read(vcpu: &Vcpu, indices: &[u32]) -> Result<Msrs, KvmError> {
    let mut msrs = entries(indices, |_| 0);
    let read = vcpu.fd().get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    if read == indices.len() { Ok(msrs) } else { Err(incomplete("KVM_GET_MSRS")) }
}

/// Builds a list for KVM.
///
/// # Panics
/// If there are more MSRs than KVM takes at once, which its own list never has.
pub(crate) fn entries(indices: &[u32], value: impl Fn(usize) -> u64) -> Msrs {
    let entry = |(at, index): (usize, &u32)| kvm_msr_entry {
        index: *index,
        data: value(at),
        ..Default::default()
    };
    let list: Vec<kvm_msr_entry> = indices.iter().enumerate().map(entry).collect();
    Msrs::from_entries(&list).expect("no more MSRs than KVM takes at once")
}

/// The guest's time stamp counter.
///
/// # Errors
/// [`KvmError::Call`].
pub(crate) fn read_tsc(vcpu: &Vcpu) -> Result<u64, KvmError> {
    Ok(read(vcpu, &[TSC])?.as_slice()[0].data)
}

/// The frequency of the guest's time stamp counter in kHz.
///
/// # Errors
/// [`KvmError::Call`].
pub(crate) fn tsc_khz(vcpu: &Vcpu) -> Result<u32, KvmError> {
    vcpu.fd().get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
}

/// What firmware leaves in the MSRs: fast string operations, and write-back as the type of memory
/// that no range register describes.
pub(super) fn set_boot_values(vcpu: &Vcpu) -> Result<(), KvmError> {
    for (index, value) in [(MISC_ENABLE, 1), (MTRR_DEFAULT_TYPE, 0x806)] {
        let msrs = entries(&[index], |_| value);
        vcpu.fd().set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    }
    Ok(())
}

fn incomplete(call: &'static str) -> KvmError {
    KvmError::Call { call, source: std::io::Error::from(std::io::ErrorKind::UnexpectedEof) }
}
