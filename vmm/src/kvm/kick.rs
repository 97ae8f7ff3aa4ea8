//! The kick: a signal that brings a vCPU thread out of KVM_RUN, whatever it waits for there.

// UNSAFETY: a signal handler, the signal mask of a thread, and one byte that the kernel reads
// while we write it.
#![expect(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The kernel's number of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tid(pub i32);

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

/// The `immediate_exit` byte of the vCPU that the current thread runs, known to the signal handler
/// for as long as this value lives.
///
/// The handler sets the byte, so a kick that arrives between the last look at a flag and KVM_RUN
/// is not lost: KVM_RUN sees the byte and returns at once.
pub struct ImmediateExit {
    byte: *mut u8,
}

impl ImmediateExit {
    /// Announces the byte to the signal handler.
    ///
    /// # Safety
    /// `run` stays mapped as long as the value lives.
    pub(super) unsafe fn announce(run: *mut kvm_run) -> ImmediateExit {
        // SAFETY: the caller says that `run` is a mapped structure.
        let byte = unsafe { &raw mut (*run).immediate_exit };
        IMMEDIATE_EXIT.set(byte);
        ImmediateExit { byte }
    }

    fn atomic(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped as long as `self` lives; all our accesses to it are atomic.
        unsafe { AtomicU8::from_ptr(self.byte) }
    }

    /// Whether a kick has arrived, or [`ImmediateExit::set`] was called, since the last clear.
    pub fn is_set(&self) -> bool {
        self.atomic().load(Ordering::SeqCst) != 0
    }

    /// Makes the next KVM_RUN finish the instruction under way and return at once.
    pub fn set(&self) {
        self.atomic().store(1, Ordering::SeqCst);
    }

    /// Lets the next KVM_RUN enter the guest. Look at what the kick was for *after* this.
    pub fn clear(&self) {
        self.atomic().store(0, Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
    }
}

/// Runs on the vCPU thread. Touches nothing but one byte, and allocates nothing.
extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: the byte is mapped until `ImmediateExit` is dropped, which takes the pointer away
        // first, on this same thread.
        unsafe { AtomicU8::from_ptr(byte) }.store(1, Ordering::SeqCst);
    }
}

/// Installs the handler of the kick signal for the process. No SA_RESTART: blocking calls of a
/// vCPU thread must come back too.
///
/// # Errors
/// The kernel's reason.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from)
}

/// Blocks every signal on the calling thread but the kick and those that the thread causes itself.
/// A signal that the process handles elsewhere must not interrupt KVM_RUN for nothing.
pub fn prepare_vcpu_thread() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the set that the other calls then use; the old mask is not
    // asked for.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in UNBLOCKED {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::sigdelset(set.as_mut_ptr(), SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), null_mut());
    }
}

/// Kicks the thread `tid` of this process. Safe for a thread that has ended: nothing happens.
pub fn kick(tid: Tid) {
    // SAFETY: no memory is involved; the result can only say that the thread is gone.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), tid.0, SIGRTMIN());
    }
}

/// Signals that a thread raises by its own doing; blocking those would kill the process anyway.
const UNBLOCKED: [c_int; 6] =
    [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];
