//! The identity map beyond the first GiB, and the window whose pages appear when they are touched.

// UNSAFETY: pages of the fault window exist only because ring 0 maps them.
#![expect(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, fence};

use godwit_guest::page::{PAGE_BYTES, Page};
use godwit_guest::ram::Ram;

use super::memory;
use super::ring0;

/// Maps all memory of `ram` where it is, in pages of 2 MiB.
pub fn map_identity(ram: &Ram) {
    for range in ram.ranges() {
        for at in range.start / HUGE_BYTES..range.end.div_ceil(HUGE_BYTES) {
            let entry = &directory(at / 512)[(at % 512) as usize];
            if entry.load(Relaxed) == 0 {
                entry.store((at * HUGE_BYTES) | PRESENT_WRITABLE_USER | USED | HUGE, Relaxed);
            }
        }
    }
}

/// Maps the registers of a device where they are, with the 2 MiB around them: no memory is there.
pub fn map_device(address: u64) {
    let at = address / HUGE_BYTES;
    let entry = &directory(at / 512)[(at % 512) as usize];
    if entry.load(Relaxed) == 0 {
        entry.store((at * HUGE_BYTES) | PRESENT_WRITABLE_USER | USED | HUGE | UNCACHED, Relaxed);
    }
}

/// The fault window: `pages` pages of addresses that ring 0 maps one by one when they are touched.
#[derive(Clone, Copy)]
pub struct Window {
    pages: u64,
    entries: &'static [AtomicU64],
    ram: Ram,
}

impl Window {
    /// Pages of memory that a window of `pages` pages needs: the pool, the page tables and the two
    /// levels above them.
    pub const fn memory_pages(pages: u64) -> u64 {
        if pages == 0 { 0 } else { pages + pages.div_ceil(512) + 2 }
    }

    /// Makes the window from `memory_pages(pages)` pages of `ram` at `start`, which read as zero.
    pub fn new(ram: &Ram, start: u64, pages: u64) -> Window {
        if pages == 0 {
            return Window { pages, entries: &[], ram: *ram };
        }
        let (pointers, directory) = (start, start + PAGE_BYTES);
        let tables = directory + PAGE_BYTES;
        let table_count = pages.div_ceil(512);
        let level2 = memory::page(ram, directory);
        for (at, entry) in level2.iter().enumerate().take(table_count as usize) {
            entry.store((tables + at as u64 * PAGE_BYTES) | PRESENT_WRITABLE_USER, Relaxed);
        }
        memory::page(ram, pointers)[0].store(directory | PRESENT_WRITABLE_USER, Relaxed);
        ring0::fault_window.store(START, Relaxed);
        ring0::fault_pages.store(pages, Relaxed);
        ring0::fault_table.store(tables, Relaxed);
        ring0::fault_pool.store(tables + table_count * PAGE_BYTES, Relaxed);
        ring0::page_map[TOP_ENTRY].store(pointers | PRESENT_WRITABLE_USER, Relaxed);
        Window { pages, entries: memory::words(ram, tables, pages as usize), ram: *ram }
    }

    /// The address of a page of the window.
    pub fn address(&self, index: u64) -> u64 {
        START + index * PAGE_BYTES
    }

    /// A page of the window: touching it may fault, and then gives it memory.
    ///
    /// # Panics
    /// If it is not in the window.
    pub fn page(&self, index: u64) -> &'static Page {
        assert!(index < self.pages);
        // SAFETY: the fault handler maps every address of the window to RAM of the pool, which
        // nobody uses otherwise.
        unsafe { &*(self.address(index) as *const Page) }
    }

    /// The memory that a page of the window has now, if any, at its physical address.
    pub fn backing(&self, index: u64) -> Option<&'static Page> {
        let entry = self.entries[index as usize].load(Relaxed);
        (entry & 1 != 0).then(|| memory::page(&self.ram, entry & ADDRESS_BITS))
    }

    /// Takes the memory away again: the next touch faults. Only this vCPU notices at once.
    pub fn unmap(&self, indices: core::ops::Range<u64>) {
        for index in indices {
            self.entries[index as usize].store(0, Relaxed);
        }
        fence(core::sync::atomic::Ordering::SeqCst);
        ring0::forget_translations();
    }
}

fn directory(gib: u64) -> &'static [AtomicU64; 512] {
    let gib = gib as usize;
    match ring0::page_directories_low.get(gib) {
        Some(low) => low,
        None => &ring0::page_directories_high[gib - ring0::page_directories_low.len()],
    }
}

const HUGE_BYTES: u64 = 2 << 20;
const PRESENT_WRITABLE_USER: u64 = 7;
const USED: u64 = 0x60;
const HUGE: u64 = 0x80;
const UNCACHED: u64 = 0x18;
const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;
/// The window lies behind the identity map: the second entry of the top table.
const TOP_ENTRY: usize = 1;
const START: u64 = 512 << 30;
