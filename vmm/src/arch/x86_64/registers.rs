//! The registers with which a kernel begins.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs2};

use crate::boot::layout;
use crate::kvm::{KvmError, Vcpu, failed};

/// Where and how a kernel begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32 bits, no paging, `start_info` in EBX.
    Pvh {
        /// The address of the first instruction.
        rip: u64,
    },
    /// The 64-bit Linux boot protocol: long mode, zero page in RSI.
    Linux64 {
        /// The address of the first instruction.
        rip: u64,
    },
}

/// Sets all registers of the boot vCPU. Descriptor and page tables are in guest memory already.
pub(super) fn enter_at(vcpu: &Vcpu, entry: &Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs2()?;
    let regs = match *entry {
        Entry::Pvh { rip } => {
            protected_mode(&mut sregs);
            kvm_regs { rip, rbx: layout::PVH_START_INFO.0, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Linux64 { rip } => {
            long_mode(&mut sregs);
            kvm_regs { rip, rsi: layout::ZERO_PAGE.0, rflags: RFLAGS, ..Default::default() }
        }
    };
    vcpu.set_sregs2(&sregs)?;
    vcpu.fd().set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

fn protected_mode(sregs: &mut kvm_sregs2) {
    sregs.cs = kvm_segment { selector: layout::CODE32, db: 1, ..CODE };
    set_data_segments(sregs, layout::DATA);
    set_tables(sregs);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn long_mode(sregs: &mut kvm_sregs2) {
    sregs.cs = kvm_segment { selector: layout::CODE64, l: 1, ..CODE };
    set_data_segments(sregs, layout::DATA);
    set_tables(sregs);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn set_data_segments(sregs: &mut kvm_sregs2, selector: u16) {
    let data = kvm_segment { selector, ..DATA };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

fn set_tables(sregs: &mut kvm_sregs2) {
    sregs.tr = kvm_segment { selector: layout::TASK, ..TASK };
    sregs.gdt =
        kvm_dtable { base: layout::GDT.0, limit: layout::GDT_BYTES - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
}

const FLAT: kvm_segment = kvm_segment {
    base: 0,
    limit: u32::MAX,
    selector: 0,
    type_: 0,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 0,
    g: 1,
    avl: 0,
    unusable: 0,
    padding: 0,
};

/// Execute, read, accessed.
const CODE: kvm_segment = kvm_segment { type_: 11, ..FLAT };

/// Read, write, accessed.
const DATA: kvm_segment = kvm_segment { type_: 3, db: 1, ..FLAT };

/// A busy 32-bit task state, which nobody uses but which must be there.
const TASK: kvm_segment = kvm_segment { type_: 11, limit: 0x67, s: 0, g: 0, ..FLAT };

/// Bit 1 is always set.
const RFLAGS: u64 = 2;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
