//! The machine under the workloads: everything that needs unsafe code.
//!
//! What this module hands out is safe: port writes that no Rust object depends on, and memory as
//! `'static` slices of atomics that lie in RAM, behind the image, for ever.

// UNSAFETY: port I/O and the TSC are instructions without a safe form.
#![expect(unsafe_code)]

pub mod boot;
pub mod cpus;
pub mod device;
pub mod memory;
pub mod once;
pub mod paging;
pub mod ring0;
pub mod timer;

mod mem_functions;

use core::arch::asm;

/// Reads the time-stamp counter, after everything before and before everything behind it.
#[inline(always)]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; a fence and rdtsc are allowed in ring 3.
    // Not `nomem`: reads of memory must stay on their side of it.
    unsafe { asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes one byte to a port.
#[inline(always)]
pub fn out8(port: u16, value: u8) {
    // SAFETY: the I/O bitmap of ring0.S lets every port through, and no device of this machine
    // writes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads one byte from a port.
#[inline(always)]
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Ends the guest with an exit code. Does not come back, even where nothing listens at the port.
pub fn exit(code: u8) -> ! {
    out8(EXIT_PORT, code);
    ring0::sleep_for_ever()
}

const EXIT_PORT: u16 = 0xf4;
