//! System calls without the C library.
//!
//! An agent is forked from a process that may have many threads, and its own threads share one
//! block of thread-local storage. So it must not enter the C library: a lock there may be held by
//! a thread that the fork did not copy, and `errno` would be everybody's.

// UNSAFETY: system calls, and the first instructions of a new thread.
#![expect(unsafe_code)]

use std::arch::asm;

use godwit_uffd::abi::Errno;

/// Makes a system call; the kernel's return value as it is.
///
/// # Safety
/// The caller answers for whatever the call does to the memory of its process.
pub(super) unsafe fn raw(number: i64, arguments: [u64; 6]) -> i64 {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result: i64;
    // SAFETY: the registers are those of the x86-64 convention, and the two that the instruction
    // destroys are declared. What the call does is the caller's to answer for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third,
            in("r10") fourth, in("r8") fifth, in("r9") sixth,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Starts a thread of this process on a stack of its own; its id, or a negative error number.
///
/// # Safety
/// `stack_top` is the 16-byte aligned end of writable memory that nothing else uses, and
/// `argument` is what `entry` expects.
pub(super) unsafe fn start_thread(
    stack_top: u64,
    entry: extern "C" fn(u64) -> !,
    argument: u64,
) -> i64 {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let result: i64;
    // SAFETY: the new thread starts behind the system call with zero in rax, on the stack that the
    // caller gave; it calls `entry`, which never returns. The old thread goes on at the label.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone => result,
            in("rdi") i64::from(flags), in("rsi") stack_top,
            in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") argument, in("r13") entry as *const () as u64,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// The kernel's return value as a result.
pub(super) fn checked(value: i64) -> Result<u64, Errno> {
    match u64::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) if value < -4095 => Ok(value.cast_unsigned()),
        Err(_) => Err(Errno(i32::try_from(-value).expect("an error number is below 4096"))),
    }
}
