//! One instruction that loads or stores a byte, and the way out if it ends in a signal.
//!
//! The signal's handler looks only at the instruction pointer. If it points at one of the probes,
//! the handler puts what it knows into the registers of the interrupted thread and lets it go on
//! behind the access. So neither thread-local storage nor a jump across frames is needed.

// UNSAFETY: accesses that may fault by design, and a signal's handler.
#![expect(unsafe_code)]

use std::arch::global_asm;

use crate::world::Signal;

global_asm!(
    ".text",
    ".p2align 4",
    ".global godwit_probe_load",
    ".hidden godwit_probe_load",
    "godwit_probe_load:",
    "movzx eax, byte ptr [rdi]",
    "xor edx, edx",
    "ret",
    ".global godwit_probe_store",
    ".hidden godwit_probe_store",
    "godwit_probe_store:",
    "mov byte ptr [rdi], sil",
    "xor edx, edx",
    "ret",
    ".global godwit_probe_end",
    ".hidden godwit_probe_end",
    "godwit_probe_end:",
    "ret",
);

/// What a probe leaves in rax and rdx.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Probed {
    /// The byte that was loaded, or `si_addr`.
    pub(super) value: u64,
    /// 0, or the signal's number in the upper half and its code in the lower.
    pub(super) signal: u64,
}

// SAFETY: the three are defined right above, in the form of C functions.
unsafe extern "C" {
    fn godwit_probe_load(address: u64) -> Probed;
    fn godwit_probe_store(address: u64, byte: u64) -> Probed;
    fn godwit_probe_end();
}

/// Loads the byte at any address.
///
/// # Safety
/// The handlers are installed.
pub(super) unsafe fn load(address: u64) -> Probed {
    // SAFETY: a load changes nothing, and the handler ends one that faults.
    unsafe { godwit_probe_load(address) }
}

/// Stores a byte at any address.
///
/// # Safety
/// The handlers are installed, and nothing of this program is at the address.
pub(super) unsafe fn store(address: u64, byte: u64) -> Probed {
    // SAFETY: the caller says that nothing of ours is there; the handler ends one that faults.
    unsafe { godwit_probe_store(address, byte) }
}

/// Installs the handlers in this process.
///
/// # Safety
/// This process is an agent: nothing else in it relies on these signals.
pub(super) unsafe fn install_handlers() {
    let faults = on_fault as *const () as usize;
    let nudge = on_nudge as *const () as usize;
    for (signal, handler) in [(libc::SIGSEGV, faults), (libc::SIGBUS, faults), (NUDGE, nudge)] {
        // SAFETY: all zero is a valid value of this plain structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // SAFETY: the structure is complete. The C library only adds its trampoline here and
        // makes the system call, so this is allowed behind a fork.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// The signal that only ends a sleep.
pub(super) const NUDGE: i32 = libc::SIGUSR1;

extern "C" fn on_nudge(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

extern "C" fn on_fault(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context of the interrupted thread, which is stopped.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let first = godwit_probe_load as *const () as u64;
    let end = godwit_probe_end as *const () as u64;
    let at = registers[libc::REG_RIP as usize].cast_unsigned();
    if !(first..end).contains(&at) {
        // A fault of our own: the default action, when the instruction is repeated.
        // SAFETY: resetting a signal's action touches no memory.
        unsafe { libc::signal(number, libc::SIG_DFL) };
        return;
    }
    // SAFETY: both signals carry an address, and the kernel passes a valid structure.
    let (address, code) = unsafe { ((*info).si_addr() as u64, (*info).si_code) };
    let signal = u64::from(number.cast_unsigned()) << 32 | u64::from(code.cast_unsigned());
    registers[libc::REG_RAX as usize] = address.cast_signed();
    registers[libc::REG_RDX as usize] = signal.cast_signed();
    registers[libc::REG_RIP as usize] = end.cast_signed();
}

/// BUS_MCEERR_AR, the code of an access to a page that is known to be broken.
const BUS_MCEERR_AR: u32 = 4;

/// The signal of a probe, if it ended in one.
pub(super) fn signal_of(probed: Probed) -> Option<Signal> {
    if probed.signal == 0 {
        return None;
    }
    let address = probed.value;
    let number = u32::try_from(probed.signal >> 32).expect("32 bits").cast_signed();
    let code = u32::try_from(probed.signal & u64::from(u32::MAX)).expect("32 bits");
    Some(match number {
        libc::SIGSEGV => Signal::Segv { address },
        libc::SIGBUS if code == BUS_MCEERR_AR => Signal::BusPoison { address },
        _ => Signal::BusAddress { address },
    })
}
