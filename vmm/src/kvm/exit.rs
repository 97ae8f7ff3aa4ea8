//! What KVM says when it comes back from the guest, translated once.

// UNSAFETY: the page that the kernel shares with us holds a union and data behind it.
#![expect(unsafe_code)]

use std::ptr::from_mut;
use std::slice;

use godwit_uffd::page::Hva;
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};

/// The direction of a port access, as seen by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDirection {
    /// The guest reads: the data must be filled in.
    In,
    /// The guest writes.
    Out,
}

/// Why KVM_RUN came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads or writes a port; `data` holds one or more accesses of `size` bytes.
    Io {
        /// The first port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// Who has to fill `data`.
        direction: IoDirection,
        /// What is written, or where what is read must be put.
        data: &'a mut [u8],
    },
    /// The guest reads or writes an address without a memslot - or one with a memslot that KVM's
    /// interpreter could not reach, see [`crate::vcpu`].
    Mmio {
        /// The guest physical address.
        gpa: u64,
        /// Whether the guest writes.
        write: bool,
        /// What is written, or where what is read must be put; at most 8 bytes.
        data: &'a mut [u8],
    },
    /// A signal or `immediate_exit` came first.
    Interrupted,
    /// KVM could not reach memory that the guest uses.
    Fault,
    /// The guest touched the poisoned page at this address of ours. The instruction has had no
    /// effect.
    Poisoned(Hva),
    /// KVM's interpreter could not go on. The instruction has had no effect.
    EmulationFailed,
    /// The guest gave up: a triple fault.
    Shutdown,
    /// The vCPU is idle and nothing in the kernel will wake it.
    Halted,
    /// Nothing to do but enter the guest again.
    Again,
    /// Something that a guest of this machine cannot cause in order.
    Unexpected(String),
}

/// Reads the reason for an exit from the shared page, after a KVM_RUN that returned 0.
pub(super) fn decode(run: &mut kvm_run, page_bytes: usize) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => decode_io(run, page_bytes),
        KVM_EXIT_MMIO => decode_mmio(run),
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Again,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_HLT => Exit::Halted,
        KVM_EXIT_INTERNAL_ERROR => decode_internal(run),
        KVM_EXIT_FAIL_ENTRY => decode_fail_entry(run),
        other => Exit::Unexpected(format!("exit reason {other}")),
    }
}

fn decode_io(run: &mut kvm_run, page_bytes: usize) -> Exit<'_> {
    // SAFETY: the exit reason says that the kernel filled this member.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let bytes = size.saturating_mul(io.count as usize);
    let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
    if offset.checked_add(bytes).is_none_or(|end| end > page_bytes) {
        return Exit::Unexpected(format!("port data of {bytes} bytes at offset {offset:#x}"));
    }
    let base = from_mut(run).cast::<u8>();
    // SAFETY: the range lies inside the mapping that `run` is the start of, as just checked, and
    // behind `kvm_run` itself; the exclusive borrow of `run` covers it.
    let data = unsafe { slice::from_raw_parts_mut(base.add(offset), bytes) };
    let direction = match u32::from(io.direction) {
        KVM_EXIT_IO_IN => IoDirection::In,
        _ => IoDirection::Out,
    };
    Exit::Io { port: io.port, size, direction, data }
}

fn decode_mmio(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: the exit reason says that the kernel filled this member.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let bytes = (mmio.len as usize).min(mmio.data.len());
    Exit::Mmio { gpa: mmio.phys_addr, write: mmio.is_write != 0, data: &mut mmio.data[..bytes] }
}

fn decode_internal(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: the exit reason says that the kernel filled this member.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
        return Exit::EmulationFailed;
    }
    let words = (internal.ndata as usize).min(internal.data.len());
    Exit::Unexpected(format!(
        "internal error {} of KVM, with {:#x?}",
        internal.suberror,
        &internal.data[..words]
    ))
}

fn decode_fail_entry(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: the exit reason says that the kernel filled this member.
    let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
    Exit::Unexpected(format!("the processor refused to enter the guest, reason {reason:#x}"))
}

/// The bytes of the memory-mapped access that is under way.
pub(super) fn mmio_data(run: &mut kvm_run) -> &mut [u8; 8] {
    // SAFETY: every bit pattern is a valid array of bytes, whichever member is in use.
    unsafe { &mut run.__bindgen_anon_1.mmio.data }
}
