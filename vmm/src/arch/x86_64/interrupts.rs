//! The pins of the local APIC.

use kvm_bindings::kvm_lapic_state;

use crate::kvm::{KvmError, Vcpu, failed};

/// Connects the interrupt controller to LINT0 and NMI to LINT1, as firmware does.
pub(super) fn connect(vcpu: &Vcpu) -> Result<(), KvmError> {
    let mut lapic = vcpu.fd().get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, EXTERNAL_INTERRUPT);
    set_delivery_mode(&mut lapic, LVT_LINT1, NMI);
    vcpu.fd().set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}

/// Sets bits 8 to 10 of an entry of the local vector table, and takes its mask away.
fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes: [u8; 4] = std::array::from_fn(|i| lapic.regs[register + i].cast_unsigned());
    let value = u32::from_le_bytes(bytes) & !(MODE_MASK | MASKED) | mode << MODE_SHIFT;
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + i] = byte.cast_signed();
    }
}

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const MODE_SHIFT: u32 = 8;
const MODE_MASK: u32 = 0x700;
const MASKED: u32 = 1 << 16;
const NMI: u32 = 4;
const EXTERNAL_INTERRUPT: u32 = 7;
