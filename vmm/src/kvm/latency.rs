//! Asking the scheduler to let a thread run soon after it wakes.

// UNSAFETY: a system call that neither libc nor rustix wraps.
#![expect(unsafe_code)]

use std::io;

/// How long the thread wants to run at a time, in nanoseconds: the shortest that Linux grants.
///
/// Since 6.12 a thread of the ordinary class can have a slice of its own. A shorter slice means an
/// earlier deadline, so the thread is picked sooner after it wakes. Its share of the processor does
/// not change, and no privilege is needed. Older kernels take the call and change nothing.
const SLICE_NS: u64 = 100_000;

/// Threads that this one starts are ordinary again.
const RESET_ON_FORK: u64 = 1;

/// `struct sched_attr` of sched_setattr(2), without the utilization hints of its second version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48);

/// Asks for short delays for the calling thread, which resolves faults while vCPUs wait.
///
/// # Errors
/// What the kernel returned: it does not know the call, or a filter forbids it. All works without.
pub fn prefer_short_delays() -> io::Result<()> {
    let size = u32::try_from(size_of::<SchedAttr>()).expect("48");
    let mut attr = SchedAttr { size, ..SchedAttr::default() };
    // SAFETY: the kernel writes at most `size` bytes to `attr`, which lives through the call; 0 is
    // the calling thread.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    (attr.size, attr.flags, attr.runtime) = (size, attr.flags | RESET_ON_FORK, SLICE_NS);
    // SAFETY: the kernel reads `size` bytes of `attr`, which lives through the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if set != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
