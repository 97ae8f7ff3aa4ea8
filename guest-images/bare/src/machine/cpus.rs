//! The local APIC: starting the other vCPUs, and letting the PIC's interrupts through.

// UNSAFETY: the local APIC is memory-mapped, and start-up code must lie at a fixed address.
#![expect(unsafe_code)]

use core::ptr;
use core::sync::atomic::Ordering::SeqCst;

use super::{ring0, tsc};

/// Puts the start-up code where a start-up IPI can point. The loader's information may lie there:
/// to be called when it has been read.
pub fn prepare() {
    let code = ring0::trampoline();
    // SAFETY: the page is RAM in every machine with a BIOS area, mapped, and used by nobody once
    // the loader's information has been read.
    unsafe { ptr::copy(code.as_ptr(), TRAMPOLINE as *mut u8, code.len()) };
    write(SPURIOUS, read(SPURIOUS) | SOFTWARE_ENABLE | 0xff);
}

/// Sends the signals that start vCPU `index`, whose APIC has the same number.
pub fn start(index: u32, cycles_per_ms: u64) {
    ring0::ap_index.store(index, SeqCst);
    send(index, INIT);
    wait(cycles_per_ms);
    for _ in 0..2 {
        send(index, STARTUP | (TRAMPOLINE >> 12) as u32);
        wait(cycles_per_ms / 4);
    }
}

/// Lets interrupts of the PIC through to this vCPU.
pub fn accept_pic() {
    write(SPURIOUS, read(SPURIOUS) | SOFTWARE_ENABLE | 0xff);
    write(LVT_LINT0, EXTERNAL);
}

fn send(index: u32, command: u32) {
    write(COMMAND_HIGH, index << 24);
    write(COMMAND_LOW, command);
    while read(COMMAND_LOW) & PENDING != 0 {}
}

fn wait(cycles: u64) {
    let start = tsc();
    while tsc().wrapping_sub(start) < cycles {
        core::hint::spin_loop();
    }
}

fn read(register: u64) -> u32 {
    // SAFETY: ring0.S maps the page of the local APIC, uncached; its registers are 32 bits wide.
    unsafe { ptr::read_volatile((APIC + register) as *const u32) }
}

fn write(register: u64, value: u32) {
    // SAFETY: as in `read`; the registers written here touch no memory.
    unsafe { ptr::write_volatile((APIC + register) as *mut u32, value) };
}

const APIC: u64 = 0xfee0_0000;
const SPURIOUS: u64 = 0xf0;
const SOFTWARE_ENABLE: u32 = 0x100;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LVT_LINT0: u64 = 0x350;
const EXTERNAL: u32 = 0x700;
const PENDING: u32 = 0x1000;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// Below 640 KiB, and behind what loaders put into the lowest pages.
const TRAMPOLINE: u64 = 0x8000;
