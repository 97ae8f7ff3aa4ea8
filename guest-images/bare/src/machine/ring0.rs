//! The other side of `ring0.S`: its services, and the data that it shares with Rust.

// UNSAFETY: the start-up code is assembly, and exceptions are calls.
#![expect(unsafe_code)]

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

global_asm!(include_str!("../ring0.S"), options(att_syntax, raw));

// SAFETY: `ring0.S` defines each of these with this type and this meaning.
unsafe extern "C" {
    /// The index that the next vCPU to start will have.
    pub safe static ap_index: AtomicU32;
    /// Timer interrupts since the start.
    safe static timer_ticks: AtomicU64;
    safe static faults_served: AtomicU64;
    /// The first address of the fault window.
    pub safe static fault_window: AtomicU64;
    /// Pages in the fault window and in its pool.
    pub safe static fault_pages: AtomicU64;
    /// Physical address of the pool.
    pub safe static fault_pool: AtomicU64;
    /// Address of the page-table entry of the window's first page; the others follow.
    pub safe static fault_table: AtomicU64;
    /// The top of the page tables.
    pub safe static page_map: [AtomicU64; 512];
    /// The page directories of the first 4 GiB.
    pub safe static page_directories_low: [[AtomicU64; 512]; 4];
    /// The page directories of the GiBs from 4 to 63.
    pub safe static page_directories_high: [[AtomicU64; 512]; 60];

    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// Where ring0.S leaves every vCPU, in ring 3 on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn ring3_start(index: u32, information: u64, linux64: u32) -> ! {
    crate::start(index, information, linux64 != 0)
}

/// Stops this vCPU until an interrupt has been served.
pub fn sleep() {
    // SAFETY: the breakpoint handler keeps all registers; service 0 halts and comes back.
    unsafe { asm!("int3", in("eax") 0, options(nostack)) };
}

/// Stops this vCPU for good, but for serving interrupts.
pub fn sleep_for_ever() -> ! {
    loop {
        sleep();
    }
}

/// Makes this vCPU forget what its TLB knows about the page tables.
pub fn forget_translations() {
    // SAFETY: the breakpoint handler keeps all registers; service 1 reloads cr3.
    unsafe { asm!("int3", in("eax") 1, options(nostack)) };
}

/// Timer interrupts since the start.
pub fn ticks() -> u64 {
    timer_ticks.load(Relaxed)
}

/// Page faults that ring 0 has served from the pool.
pub fn faults() -> u64 {
    faults_served.load(Relaxed)
}

/// The 16-bit code that other vCPUs start in.
pub fn trampoline() -> &'static [u8] {
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: ring0.S defines both around the code, in this order, and never writes it.
    unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
}
