//! The functions that compilers call for copying and comparing: there is no C library here.
//!
//! String instructions, because a loop would be compiled into a call of itself.

// UNSAFETY: the compiler calls these by name, with raw pointers.
#![expect(unsafe_code)]

use core::arch::asm;

/// Copies `count` bytes between areas that do not overlap.
///
/// # Safety
/// Both areas have `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes between areas that may overlap.
///
/// # Safety
/// Both areas have `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's promise; copying upwards reads each byte before it is written.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise; count is not 0 here, and copying downwards reads each byte
    // before it is written.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.add(count - 1) => _, inout("rsi") from.add(count - 1) => _,
            options(nostack));
    }
    to
}

/// Sets `count` bytes to the low byte of `value`.
///
/// # Safety
/// The area has `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("eax") value,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes: less than, equal to or greater than 0.
///
/// # Safety
/// Both areas have `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    let (last_left, last_right): (*const u8, *const u8);
    if count == 0 {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe {
        asm!("repe cmpsb", inout("rcx") count => _, inout("rsi") left => last_left,
            inout("rdi") right => last_right, options(nostack, readonly));
    }
    // SAFETY: both pointers were moved past the last byte compared, of which there is at least one.
    let (a, b) = unsafe { (*last_left.sub(1), *last_right.sub(1)) };
    i32::from(a) - i32::from(b)
}

/// Compares `count` bytes: 0 if they are equal.
///
/// # Safety
/// Both areas have `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, count) }
}
