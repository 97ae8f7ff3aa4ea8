//! Physical memory as slices of atomics. Memory is mapped where it is, so a physical address is a
//! pointer.

// UNSAFETY: physical memory has no owner that Rust knows.
#![expect(unsafe_code)]

use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64};

use godwit_guest::page::{PAGE_BYTES, Page};
use godwit_guest::ram::Ram;

/// The page at `address`.
///
/// # Panics
/// If it is not in `ram`.
#[inline]
pub fn page(ram: &Ram, address: u64) -> &'static Page {
    assert!(address.is_multiple_of(PAGE_BYTES) && ram.contains(address, PAGE_BYTES));
    // SAFETY: Ram holds only RAM behind the image, which is mapped where it is and never goes away;
    // atomics may be read and written by all.
    unsafe { &*(address as *const Page) }
}

/// `count` words from `address` on.
///
/// # Panics
/// If they are not in `ram`.
pub fn words(ram: &Ram, address: u64, count: usize) -> &'static [AtomicU64] {
    assert!(address.is_multiple_of(8) && ram.contains(address, count as u64 * 8));
    // SAFETY: as in `page`.
    unsafe { slice::from_raw_parts(address as *const AtomicU64, count) }
}

/// `count` half words from `address` on.
///
/// # Panics
/// If they are not in `ram`.
pub fn half_words(ram: &Ram, address: u64, count: usize) -> &'static [AtomicU32] {
    assert!(address.is_multiple_of(4) && ram.contains(address, count as u64 * 4));
    // SAFETY: as in `page`.
    unsafe { slice::from_raw_parts(address as *const AtomicU32, count) }
}
