//! The memory that the driver shares with its agents: a slot for each thread of each agent.
//!
//! A slot has one writer at a time, by `turn`. All its fields are atomics, because the other side
//! is another process and the kernel also writes them (the structures of ioctls are in them).

// UNSAFETY: a mapping that other processes and the kernel write.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Agents at one time.
pub(super) const AGENTS_MAX: usize = 64;
/// Threads of an agent.
pub(super) const WORKERS_MAX: usize = 32;
/// Words for the structure of an ioctl.
pub(super) const BUFFER_WORDS: usize = 8;

/// The thread waits for work.
pub(super) const IDLE: u32 = 0;
/// The driver has put work in.
pub(super) const POSTED: u32 = 1;
/// The thread has done it.
pub(super) const DONE: u32 = 2;

/// What a thread is told to do.
pub(super) mod operation {
    /// A system call: the number, then five arguments. `SIXTH` words are always zero.
    pub(in super::super) const CALL: u32 = 0;
    /// A load: the address.
    pub(in super::super) const LOAD: u32 = 1;
    /// A store: the address, the byte.
    pub(in super::super) const STORE: u32 = 2;
    /// A further thread: its slot's address, the end of its stack.
    pub(in super::super) const THREAD: u32 = 3;
    /// A fork: the child's slot's address, the driver's process id.
    pub(in super::super) const FORK: u32 = 4;
}

/// What passes between the driver and one thread of an agent.
#[derive(Debug)]
#[repr(C, align(256))]
pub(super) struct Slot {
    /// Whose turn it is; both sides sleep on it.
    pub(super) turn: AtomicU32,
    /// One of [`operation`].
    pub(super) operation: AtomicU32,
    /// Its arguments.
    pub(super) arguments: [AtomicU64; 7],
    /// Its result: of a system call as the kernel returns it, of a probe the value.
    pub(super) result: AtomicU64,
    /// The signal that a probe ended in.
    pub(super) signal: AtomicU64,
    /// The thread's id.
    pub(super) thread: AtomicU32,
    /// The structure of an ioctl.
    pub(super) buffer: [AtomicU64; BUFFER_WORDS],
}

impl Slot {
    /// Puts work in and wakes the thread.
    pub(super) fn post(&self, operation: u32, arguments: [u64; 7]) {
        for (to, from) in self.arguments.iter().zip(arguments) {
            to.store(from, Ordering::Relaxed);
        }
        self.operation.store(operation, Ordering::Relaxed);
        self.turn.store(POSTED, Ordering::Release);
        wake(&self.turn);
    }

    /// Puts a structure into the buffer; the buffer's address.
    pub(super) fn fill(&self, structure: [u64; BUFFER_WORDS]) -> u64 {
        for (to, from) in self.buffer.iter().zip(structure) {
            to.store(from, Ordering::Relaxed);
        }
        self.buffer.as_ptr() as u64
    }

    /// What is in the buffer.
    pub(super) fn structure(&self) -> [u64; BUFFER_WORDS] {
        std::array::from_fn(|at| self.buffer[at].load(Ordering::Relaxed))
    }

    /// Sleeps until the thread is done or the time is over; whether it is done.
    pub(super) fn wait(&self, at_most: Duration) -> bool {
        if self.is_done() {
            return true;
        }
        sleep_while(&self.turn, POSTED, at_most);
        self.is_done()
    }

    /// Whether the thread is done.
    pub(super) fn is_done(&self) -> bool {
        self.turn.load(Ordering::Acquire) == DONE
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: the word lives; the call only looks it up.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

fn sleep_while(word: &AtomicU32, value: u32, at_most: Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(at_most.as_secs()).expect("a short time"),
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    let word = word.as_ptr();
    // SAFETY: both pointers live through the call, which writes neither.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, value, &raw const time, 0, 0) };
}

const BYTES: usize = AGENTS_MAX * WORKERS_MAX * size_of::<Slot>();

/// All slots, mapped twice: to work with, and once more without the right to write.
#[derive(Debug)]
pub(super) struct Mailbox {
    slots: *mut Slot,
    read_only: *mut u8,
}

impl Mailbox {
    /// Fresh memory; every agent is forked later and finds it at the same addresses.
    pub(super) fn new() -> Self {
        // SAFETY: the name is a literal with its zero.
        let descriptor = unsafe { libc::memfd_create(c"mailbox".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(descriptor >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made it, and nothing else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let length = i64::try_from(BYTES).expect("a small number");
        // SAFETY: no memory is involved.
        let set = unsafe { libc::ftruncate(descriptor.as_raw_fd(), length) };
        assert!(set == 0, "ftruncate: {}", std::io::Error::last_os_error());
        let slots = map(&descriptor, libc::PROT_READ | libc::PROT_WRITE).cast();
        Self { slots, read_only: map(&descriptor, libc::PROT_READ) }
    }

    /// The slot of a thread of an agent.
    pub(super) fn slot(&self, agent: usize, worker: usize) -> &Slot {
        // SAFETY: the index is in the mapping, which lives as long as `self`. A slot is made of
        // atomics, for which zero is a value, so what others write at the same time is no harm.
        unsafe { &*self.slots.add(index(agent, worker)) }
    }

    /// The address of a slot's buffer in the mapping that cannot be written.
    pub(super) fn read_only_buffer(&self, agent: usize, worker: usize) -> u64 {
        let offset = index(agent, worker) * size_of::<Slot>() + std::mem::offset_of!(Slot, buffer);
        self.read_only as u64 + offset as u64
    }

    /// Makes the slots of an agent as new.
    pub(super) fn clear(&self, agent: usize) {
        for worker in 0..WORKERS_MAX {
            let slot = self.slot(agent, worker);
            slot.thread.store(0, Ordering::Relaxed);
            slot.turn.store(IDLE, Ordering::Release);
        }
    }
}

fn index(agent: usize, worker: usize) -> usize {
    assert!(agent < AGENTS_MAX, "no more than {AGENTS_MAX} processes");
    assert!(worker < WORKERS_MAX, "no more than {WORKERS_MAX} threads of a process");
    agent * WORKERS_MAX + worker
}

fn map(descriptor: &OwnedFd, access: i32) -> *mut u8 {
    let descriptor = descriptor.as_raw_fd();
    // SAFETY: a new mapping wherever there is room.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), BYTES, access, libc::MAP_SHARED, descriptor, 0) };
    assert!(address != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    address.cast()
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // SAFETY: both are mappings of ours, and references into them end with `self`.
        unsafe {
            libc::munmap(self.slots.cast(), BYTES);
            libc::munmap(self.read_only.cast(), BYTES);
        }
    }
}
