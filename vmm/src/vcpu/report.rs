//! The last words of a vCPU that cannot go on.

use std::fmt::Write;

use kvm_bindings::{kvm_regs, kvm_sregs2};

use crate::kvm::Vcpu;

/// What happened, with the registers as far as they can be read.
pub(super) fn crash(index: usize, vcpu: &Vcpu, what: &str) -> String {
    let mut text = format!("vcpu {index}: {what}");
    match (vcpu.fd().get_regs(), vcpu.get_sregs2()) {
        (Ok(regs), Ok(sregs)) => describe(&mut text, &regs, &sregs),
        _ => text.push_str("; its registers cannot be read"),
    }
    text
}

fn describe(text: &mut String, regs: &kvm_regs, sregs: &kvm_sregs2) {
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "; rip {:#x} rflags {:#x} rsp {:#x} rbp {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} \
         rsi {:#x} rdi {:#x} r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} \
         r15 {:#x}",
        regs.rip,
        regs.rflags,
        regs.rsp,
        regs.rbp,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
    );
    let _ = write!(
        text,
        " cs {:#x} dpl {} ss {:#x} tr {:#x} gdt {:#x} idt {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} \
         cr4 {:#x} efer {:#x}",
        sregs.cs.selector,
        sregs.cs.dpl,
        sregs.ss.selector,
        sregs.tr.selector,
        sregs.gdt.base,
        sregs.idt.base,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
    );
}
