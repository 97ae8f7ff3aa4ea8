//! Saving and restoring one vCPU. The order of the calls matters, in both directions.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_mp_state,
    kvm_regs, kvm_sregs2, kvm_vcpu_events,
};

use crate::Error;
use crate::arch::x86_64::msr;
use crate::kvm::{Capabilities, KvmError, Vcpu, failed};
use crate::state::vcpu_convert as convert;
use crate::state::{Blob, Leaf, Msr, StateError, VcpuState, check_count};

/// Reads everything that a vCPU holds.
pub(super) fn save_vcpu(vcpu: &mut Vcpu, msr_indices: &[u32]) -> Result<VcpuState, KvmError> {
    // First: it makes KVM act on an INIT or SIPI that has arrived, which changes registers.
    let mp_state = vcpu.fd().get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let events = vcpu.fd().get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    let regs = vcpu.fd().get_regs().map_err(failed("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs2()?;
    let xsave = vcpu.get_xsave()?;
    let xcrs = vcpu.fd().get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let debug = vcpu.fd().get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.fd().get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let msrs = msr::read(vcpu, msr_indices)?;
    let msrs = msrs.as_slice().iter().map(|entry| Msr { index: entry.index, value: entry.data });
    Ok(VcpuState {
        cpuid: vcpu.cpuid().iter().map(Leaf::from).collect(),
        mp_state: mp_state.mp_state,
        registers: (&regs).into(),
        system: (&sregs).into(),
        xsave: Blob(xsave),
        xcrs: convert::xcrs_to_saved(&xcrs),
        msrs: msrs.collect(),
        lapic: convert::lapic_to_saved(&lapic),
        events: (&events).into(),
        debug: (&debug).into(),
    })
}

/// Refuses a vCPU's state that has a list of an impossible length, before anything is changed.
pub(super) fn check_vcpu(state: &VcpuState, host: &Capabilities) -> Result<(), StateError> {
    check_count("the list of cpuid leaves", state.cpuid.len(), KVM_MAX_CPUID_ENTRIES)?;
    check_count("the list of msrs", state.msrs.len(), KVM_MAX_MSR_ENTRIES)?;
    convert::xcrs_from_saved(&state.xcrs)?;
    convert::lapic_from_saved(&state.lapic)?;
    let bytes = state.xsave.0.len();
    if bytes > host.xsave_bytes {
        return Err(StateError::XsaveTooLarge { guest: bytes, here: host.xsave_bytes });
    }
    if bytes < XSAVE_BYTES_MIN || !bytes.is_multiple_of(4) {
        let what = "the extended processor state";
        return Err(StateError::Length { what, bytes, wanted: XSAVE_BYTES_MIN });
    }
    Ok(())
}

/// Writes everything that a vCPU holds.
pub(super) fn restore_vcpu(vcpu: &mut Vcpu, state: &VcpuState, tsc_khz: u32) -> Result<(), Error> {
    restore_cpuid(vcpu, &state.cpuid)?;
    if msr::tsc_khz(vcpu)? != tsc_khz {
        vcpu.fd().set_tsc_khz(tsc_khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
    }
    vcpu.set_sregs2(&kvm_sregs2::from(&state.system))?;
    vcpu.fd().set_regs(&kvm_regs::from(&state.registers)).map_err(failed("KVM_SET_REGS"))?;
    let xcrs = convert::xcrs_from_saved(&state.xcrs)?;
    vcpu.fd().set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
    vcpu.set_xsave(&state.xsave.0)?;
    // Behind the system registers, which hold the base of the APIC, and before the MSRs, of which
    // the timer's deadline needs the APIC's mode.
    let lapic = convert::lapic_from_saved(&state.lapic)?;
    vcpu.fd().set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
    restore_msrs(vcpu, &state.msrs)?;
    let events = kvm_vcpu_events::from(&state.events);
    vcpu.fd().set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    let mp_state = kvm_mp_state { mp_state: state.mp_state };
    vcpu.fd().set_mp_state(mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
    let debug = kvm_debugregs::from(&state.debug);
    vcpu.fd().set_debug_regs(&debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
    tell_that_time_stood_still(vcpu)
}

/// Most guests come to a host like their own: compare before setting, which costs more.
fn restore_cpuid(vcpu: &mut Vcpu, leaves: &[Leaf]) -> Result<(), KvmError> {
    if vcpu.cpuid().iter().map(Leaf::from).eq(leaves.iter().cloned()) {
        return Ok(());
    }
    vcpu.set_cpuid(leaves.iter().map(kvm_cpuid_entry2::from).collect())
}

fn restore_msrs(vcpu: &Vcpu, saved: &[Msr]) -> Result<(), Error> {
    let mut saved: Vec<&Msr> = saved.iter().collect();
    saved.sort_by_key(|msr| msr::restore_order(msr.index));
    let indices: Vec<u32> = saved.iter().map(|msr| msr.index).collect();
    let msrs = msr::entries(&indices, |at| saved[at].value);
    let written = vcpu.fd().set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    match saved.get(written) {
        None => Ok(()),
        Some(msr) => Err(StateError::MsrRefused { index: msr.index, value: msr.value }.into()),
    }
}

/// A guest with kvm-clock learns that it was stopped, so that its watchdogs do not bark.
fn tell_that_time_stood_still(vcpu: &Vcpu) -> Result<(), Error> {
    match vcpu.fd().kvmclock_ctrl() {
        Ok(()) => Ok(()),
        // The guest does not use kvm-clock.
        Err(errno) if errno.errno() == libc::EINVAL => Ok(()),
        Err(errno) => Err(failed("KVM_KVMCLOCK_CTRL")(errno).into()),
    }
}

const XSAVE_BYTES_MIN: usize = 4096;
