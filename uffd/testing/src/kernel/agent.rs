//! What runs in an agent: a process of the world.
//!
//! An agent is a plain fork of the test's process, without an exec: a program file of its own
//! would have to be found from every test of every package, and each spawn would cost milliseconds.
//! The price is that the code here may use nothing but the shared slots and bare system calls.
//! All agents share the driver's table of descriptors (`CLONE_FILES`), so that a userfaultfd has
//! one number everywhere, and all are the driver's children (`CLONE_PARENT`), so that it reaps
//! them and they end with it.

// UNSAFETY: system calls and accesses that a test dictates, in a process made for them.
#![expect(unsafe_code)]

use std::sync::atomic::Ordering;

use super::mailbox::{DONE, POSTED, Slot, operation};
use super::probe;
use super::syscall::{raw, start_thread};

/// Flags of every fork.
const FORK: i32 = libc::CLONE_FILES | libc::CLONE_PARENT | libc::SIGCHLD;
/// The user and group without any right.
const NOBODY: u64 = 65534;

/// Forks the calling process; the child becomes an agent that serves `slot`, on its copy of this
/// thread's stack. The child's process id, or a negative error number.
pub(super) fn start(slot: &Slot, driver: u64, privileged: bool) -> i64 {
    // The first agent's parent is the driver itself, without CLONE_PARENT.
    let flags = u64::from((FORK & !libc::CLONE_PARENT).cast_unsigned());
    // SAFETY: a fork gives the child a copy of all memory; the child stays in this function.
    let child = unsafe { raw(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) };
    if child != 0 {
        return child;
    }
    // SAFETY: this process has just become an agent and belongs to nobody else.
    unsafe {
        probe::install_handlers();
        if !privileged {
            raw(libc::SYS_setgroups, [0; 6]);
            raw(libc::SYS_setresgid, [NOBODY, NOBODY, NOBODY, 0, 0, 0]);
            raw(libc::SYS_setresuid, [NOBODY, NOBODY, NOBODY, 0, 0, 0]);
        }
    }
    begin(driver);
    serve(std::ptr::from_ref(slot) as u64)
}

/// The first steps of a new process: it ends with the driver's thread.
fn begin(driver: u64) {
    let end_with_parent = libc::PR_SET_PDEATHSIG.cast_unsigned().into();
    let signal = u64::from(libc::SIGKILL.cast_unsigned());
    // SAFETY: none of these calls touches memory.
    unsafe {
        raw(libc::SYS_prctl, [end_with_parent, signal, 0, 0, 0, 0]);
        if raw(libc::SYS_getppid, [0; 6]) != driver.cast_signed() {
            raw(libc::SYS_exit_group, [0; 6]);
        }
    }
}

/// Serves a slot until the process is killed. `slot` is its address.
extern "C" fn serve(slot: u64) -> ! {
    // SAFETY: the driver passes the address of a slot of the mailbox, which this process has
    // mapped for as long as it lives.
    let mut slot = unsafe { &*(slot as *const Slot) };
    introduce(slot);
    loop {
        sleep_until_posted(slot);
        if let Some(child) = perform(slot) {
            // The child of a fork: from here on this is another process with another slot.
            slot = child;
            introduce(slot);
            continue;
        }
        slot.turn.store(DONE, Ordering::Release);
        let word = slot.turn.as_ptr() as u64;
        // SAFETY: the kernel only looks the word up.
        unsafe { raw(libc::SYS_futex, [word, futex(libc::FUTEX_WAKE), 1, 0, 0, 0]) };
    }
}

fn introduce(slot: &Slot) {
    // SAFETY: no memory is involved.
    let thread = unsafe { raw(libc::SYS_gettid, [0; 6]) };
    slot.thread.store(u32::try_from(thread).unwrap_or(0), Ordering::Release);
}

fn futex(operation: i32) -> u64 {
    u64::from(operation.cast_unsigned())
}

fn sleep_until_posted(slot: &Slot) {
    loop {
        let turn = slot.turn.load(Ordering::Acquire);
        if turn == POSTED {
            return;
        }
        let word = slot.turn.as_ptr() as u64;
        // SAFETY: the kernel only compares the word.
        unsafe { raw(libc::SYS_futex, [word, futex(libc::FUTEX_WAIT), turn.into(), 0, 0, 0]) };
    }
}

/// Does what the slot says. In the child of a fork, the child's slot.
fn perform(slot: &Slot) -> Option<&'static Slot> {
    let [first, second, rest @ ..] =
        std::array::from_fn::<u64, 7, _>(|at| slot.arguments[at].load(Ordering::Relaxed));
    let (mut value, mut signal) = (0, 0);
    // SAFETY: the driver dictates what is done to this process. It keeps to the window of the
    // test's own mappings, to the slots, and to the stacks that it has handed out.
    unsafe {
        match slot.operation.load(Ordering::Relaxed) {
            operation::CALL => {
                let [third, fourth, fifth, sixth, seventh] = rest;
                let arguments = [second, third, fourth, fifth, sixth, seventh];
                value = raw(first.cast_signed(), arguments).cast_unsigned();
            }
            operation::LOAD => {
                let probed = probe::load(first);
                (value, signal) = (probed.value, probed.signal);
            }
            operation::STORE => {
                let probed = probe::store(first, second);
                (value, signal) = (probed.value, probed.signal);
            }
            operation::THREAD => value = start_thread(second, serve, first).cast_unsigned(),
            operation::FORK => {
                let flags = u64::from(FORK.cast_unsigned());
                let child = raw(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]);
                if child == 0 {
                    begin(second);
                    return Some(&*(first as *const Slot));
                }
                value = child.cast_unsigned();
            }
            _ => {
                raw(libc::SYS_exit_group, [1, 0, 0, 0, 0, 0]);
            }
        }
    }
    slot.result.store(value, Ordering::Relaxed);
    slot.signal.store(signal, Ordering::Relaxed);
    None
}
