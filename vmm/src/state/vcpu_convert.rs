//! From the kernel's types to the saved types and back.

use kvm_bindings::{
    kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs,
};

use super::{
    Blob, DebugRegisters, Events, ExtendedControl, Registers, Segment, StateError, SystemRegisters,
    Table,
};
use crate::kvm::VCPU_EVENTS_FLAGS_KNOWN;

/// Writes both conversions of two types whose fields have the same names.
macro_rules! same_fields {
    ($saved:ident, $kernel:ident, { $($field:ident),* $(,)? } $(, $rest:expr)?) => {
        impl From<&$kernel> for $saved {
            fn from(kernel: &$kernel) -> $saved {
                $saved { $($field: kernel.$field),* }
            }
        }

        impl From<&$saved> for $kernel {
            fn from(saved: &$saved) -> $kernel {
                $kernel { $($field: saved.$field,)* $(..$rest)? }
            }
        }
    };
}

same_fields!(Registers, kvm_regs, {
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
});

same_fields!(Table, kvm_dtable, { base, limit }, Default::default());

same_fields!(DebugRegisters, kvm_debugregs, { db, dr6, dr7, flags }, Default::default());

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Segment {
        Segment {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            kind: segment.type_,
            present: segment.present,
            dpl: segment.dpl,
            db: segment.db,
            s: segment.s,
            l: segment.l,
            g: segment.g,
            avl: segment.avl,
            unusable: segment.unusable,
        }
    }
}

impl From<&Segment> for kvm_segment {
    fn from(segment: &Segment) -> kvm_segment {
        kvm_segment {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            type_: segment.kind,
            present: segment.present,
            dpl: segment.dpl,
            db: segment.db,
            s: segment.s,
            l: segment.l,
            g: segment.g,
            avl: segment.avl,
            unusable: segment.unusable,
            padding: 0,
        }
    }
}

impl From<&kvm_sregs2> for SystemRegisters {
    fn from(sregs: &kvm_sregs2) -> SystemRegisters {
        SystemRegisters {
            cs: (&sregs.cs).into(),
            ds: (&sregs.ds).into(),
            es: (&sregs.es).into(),
            fs: (&sregs.fs).into(),
            gs: (&sregs.gs).into(),
            ss: (&sregs.ss).into(),
            tr: (&sregs.tr).into(),
            ldt: (&sregs.ldt).into(),
            gdt: (&sregs.gdt).into(),
            idt: (&sregs.idt).into(),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            pdptrs: (sregs.flags & PDPTRS_VALID != 0).then_some(sregs.pdptrs),
        }
    }
}

impl From<&SystemRegisters> for kvm_sregs2 {
    fn from(system: &SystemRegisters) -> kvm_sregs2 {
        kvm_sregs2 {
            cs: (&system.cs).into(),
            ds: (&system.ds).into(),
            es: (&system.es).into(),
            fs: (&system.fs).into(),
            gs: (&system.gs).into(),
            ss: (&system.ss).into(),
            tr: (&system.tr).into(),
            ldt: (&system.ldt).into(),
            gdt: (&system.gdt).into(),
            idt: (&system.idt).into(),
            cr0: system.cr0,
            cr2: system.cr2,
            cr3: system.cr3,
            cr4: system.cr4,
            cr8: system.cr8,
            efer: system.efer,
            apic_base: system.apic_base,
            flags: system.pdptrs.map_or(0, |_| PDPTRS_VALID),
            pdptrs: system.pdptrs.unwrap_or_default(),
        }
    }
}

impl From<&kvm_vcpu_events> for Events {
    fn from(events: &kvm_vcpu_events) -> Events {
        Events {
            flags: events.flags & VCPU_EVENTS_FLAGS_KNOWN,
            exception_injected: events.exception.injected,
            exception_nr: events.exception.nr,
            exception_has_error_code: events.exception.has_error_code,
            exception_pending: events.exception.pending,
            exception_error_code: events.exception.error_code,
            exception_has_payload: events.exception_has_payload,
            exception_payload: events.exception_payload,
            interrupt_injected: events.interrupt.injected,
            interrupt_nr: events.interrupt.nr,
            interrupt_soft: events.interrupt.soft,
            interrupt_shadow: events.interrupt.shadow,
            nmi_injected: events.nmi.injected,
            nmi_pending: events.nmi.pending,
            nmi_masked: events.nmi.masked,
            sipi_vector: events.sipi_vector,
        }
    }
}

impl From<&Events> for kvm_vcpu_events {
    fn from(events: &Events) -> kvm_vcpu_events {
        let mut kernel = kvm_vcpu_events {
            sipi_vector: events.sipi_vector,
            flags: events.flags & VCPU_EVENTS_FLAGS_KNOWN,
            exception_has_payload: events.exception_has_payload,
            exception_payload: events.exception_payload,
            ..Default::default()
        };
        kernel.exception.injected = events.exception_injected;
        kernel.exception.nr = events.exception_nr;
        kernel.exception.has_error_code = events.exception_has_error_code;
        kernel.exception.pending = events.exception_pending;
        kernel.exception.error_code = events.exception_error_code;
        kernel.interrupt.injected = events.interrupt_injected;
        kernel.interrupt.nr = events.interrupt_nr;
        kernel.interrupt.soft = events.interrupt_soft;
        kernel.interrupt.shadow = events.interrupt_shadow;
        kernel.nmi.injected = events.nmi_injected;
        kernel.nmi.pending = events.nmi_pending;
        kernel.nmi.masked = events.nmi_masked;
        kernel
    }
}

/// The extended control registers that a vCPU has.
pub(crate) fn xcrs_to_saved(xcrs: &kvm_xcrs) -> Vec<ExtendedControl> {
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    let saved = |xcr: &kvm_bindings::kvm_xcr| ExtendedControl { index: xcr.xcr, value: xcr.value };
    xcrs.xcrs[..count].iter().map(saved).collect()
}

/// The extended control registers for KVM.
///
/// # Errors
/// [`StateError::TooLong`] if there are more than KVM takes.
pub(crate) fn xcrs_from_saved(saved: &[ExtendedControl]) -> Result<kvm_xcrs, StateError> {
    let mut xcrs = kvm_xcrs::default();
    let limit = xcrs.xcrs.len();
    if saved.len() > limit {
        let what = "the list of extended control registers";
        return Err(StateError::TooLong { what, bytes: saved.len(), limit });
    }
    for (xcr, saved) in xcrs.xcrs.iter_mut().zip(saved) {
        xcr.xcr = saved.index;
        xcr.value = saved.value;
        xcrs.nr_xcrs += 1;
    }
    Ok(xcrs)
}

/// The local APIC's registers as bytes.
pub(crate) fn lapic_to_saved(lapic: &kvm_lapic_state) -> Blob {
    Blob(lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect())
}

/// The local APIC's registers for KVM.
///
/// # Errors
/// [`StateError::Length`].
pub(crate) fn lapic_from_saved(saved: &Blob) -> Result<kvm_lapic_state, StateError> {
    let bytes: &[u8; LAPIC_BYTES] = saved.array("the local apic")?;
    Ok(kvm_lapic_state { regs: bytes.map(u8::cast_signed) })
}

/// `kvm_sregs2::flags`: the table entries are valid.
const PDPTRS_VALID: u64 = 1;
const LAPIC_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_both_ways() {
        let regs = Registers { rax: 1, r15: 2, rip: 3, rflags: 2, ..Default::default() };
        assert_eq!(Registers::from(&kvm_regs::from(&regs)), regs);
        let segment =
            Segment { base: 1, limit: 2, selector: 3, kind: 4, dpl: 3, ..Default::default() };
        let system = SystemRegisters {
            cs: segment.clone(),
            ldt: segment,
            cr3: 0x1000,
            pdptrs: Some([1, 2, 3, 4]),
            ..Default::default()
        };
        assert_eq!(SystemRegisters::from(&kvm_sregs2::from(&system)), system);
        let events = Events { flags: 1, exception_nr: 14, nmi_masked: 1, ..Default::default() };
        assert_eq!(Events::from(&kvm_vcpu_events::from(&events)), events);
        let debug = DebugRegisters { db: [1, 2, 3, 4], dr7: 0x400, ..Default::default() };
        assert_eq!(DebugRegisters::from(&kvm_debugregs::from(&debug)), debug);
    }

    #[test]
    fn unknown_event_flags_are_dropped() {
        let events = Events { flags: u32::MAX, ..Default::default() };
        assert_eq!(kvm_vcpu_events::from(&events).flags, VCPU_EVENTS_FLAGS_KNOWN);
    }

    #[test]
    fn too_many_registers_are_refused() {
        let saved = vec![ExtendedControl { index: 0, value: 7 }; 17];
        assert!(matches!(xcrs_from_saved(&saved), Err(StateError::TooLong { .. })));
        assert_eq!(xcrs_to_saved(&xcrs_from_saved(&saved[..2]).unwrap()), saved[..2]);
        assert!(lapic_from_saved(&Blob(vec![0; 1023])).is_err());
    }
}
