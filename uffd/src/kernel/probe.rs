//! What the running kernel's userfaultfd can do, found out by asking it and by trying.
//!
//! The mask that a registration reports is no proof: it names MOVE for memory that cannot be moved
//! to, and kernels carry backports, so versions tell even less. Each operation is tried once on
//! memory that is made for it.

// UNSAFETY: maps memory to try operations on, and lends it to a userfaultfd.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::{KernelUffd, ioctl, word};
use crate::abi::{Answer, Call, Errno, WRITEPROTECT_WP};
use crate::backend::Backend;
use crate::error::Error;
use crate::features::{Features, Ioctls, RegisterMode};
use crate::memory::{MemoryKind, ZEROS};
use crate::page::Hva;
use crate::trial::{Operation, Trial, Trials};
use crate::uffd::{Range, Uffd};

/// The ways to a userfaultfd, each with the features that it offers or why it is closed.
#[derive(Clone, Debug)]
pub struct Doors {
    /// By the device node.
    pub device: Result<Features, Errno>,
    /// By the system call, for faults of the kernel as well.
    pub system_call: Result<Features, Errno>,
    /// By the system call, for faults of user space only: of no use for guests.
    pub user_mode_only: Result<Features, Errno>,
}

/// Tries all ways.
pub fn doors() -> Doors {
    let offered = |made: io::Result<OwnedFd>| {
        made.and_then(|fd| ioctl::handshake(fd.as_fd(), 0))
            .map(Features::from_bits_retain)
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    };
    Doors {
        device: offered(ioctl::new_from_device()),
        system_call: offered(ioctl::new_from_system_call()),
        user_mode_only: offered(ioctl::new_for_user_mode()),
    }
}

/// What can be done with one kind of memory.
#[derive(Clone, Debug)]
pub struct Survey {
    /// For each mode alone: the operations that a registration reports, or why it is refused.
    pub modes: [(RegisterMode, Result<Ioctls, Errno>); 3],
    /// What came of trying.
    pub trials: Trials,
}

/// Registers memory of a kind and tries every operation on it.
///
/// # Errors
///
/// As [`KernelUffd::open`], and [`Error::Scratch`] if there is no such memory. Without free huge
/// pages there is, and what needs one of them stays untried.
pub fn survey(kind: MemoryKind) -> Result<Survey, Error> {
    let uffd = KernelUffd::open_with(Features::empty())?;
    let scratch = Scratch::map(kind)?;
    // SAFETY: the memory is only ever touched by the operations of `uffd`.
    unsafe { uffd.lend(scratch.all()) };
    let modes = [RegisterMode::MISSING, RegisterMode::WRITE_PROTECT, RegisterMode::MINOR];
    let modes = modes.map(|mode| (mode, scratch.register(&uffd, mode)));
    let accepted = modes.iter().filter(|(_, answer)| answer.is_ok());
    let accepted = accepted.fold(RegisterMode::empty(), |all, &(mode, _)| all | mode);
    // SAFETY: as above; each `register` has given it back.
    unsafe { uffd.register(scratch.all(), accepted) }?;
    Ok(Survey { modes, trials: scratch.try_all(&uffd) })
}

/// What came of trying, once for each kind in the life of this process. Nothing counts as tried
/// where there is no userfaultfd or no such memory.
pub fn trials(kind: MemoryKind) -> Trials {
    static KNOWN: [OnceLock<Trials>; MemoryKind::ALL.len()] =
        [const { OnceLock::new() }; MemoryKind::ALL.len()];
    *KNOWN[kind as usize].get_or_init(|| survey(kind).map_or(Trials::NONE, |s| s.trials))
}

/// Tries whether the kernel tells the pages of such memory that are written while they are
/// asynchronously protected: PAGEMAP_SCAN.
pub fn follows_writes(kind: MemoryKind) -> Trial {
    match try_to_follow(kind) {
        Ok(trial) => trial,
        Err(Error::Operation { source, .. }) => Trial::Fails(errno_of_io(&source)),
        Err(_) => Trial::Untried,
    }
}

fn try_to_follow(kind: MemoryKind) -> Result<Trial, Error> {
    let uffd = KernelUffd::open_with(Features::WP_ASYNC | Features::WP_UNPOPULATED)?;
    if !uffd.enabled().contains(Features::WP_ASYNC) {
        return Ok(Trial::Fails(Errno(libc::EOPNOTSUPP)));
    }
    let scratch = Scratch::map(kind)?;
    let written = scratch.page(1);
    if scratch.populate(written).is_err() {
        return Ok(Trial::Untried);
    }
    // SAFETY: the memory is only ever touched by operations and by a volatile write.
    unsafe { uffd.register(scratch.all(), RegisterMode::WRITE_PROTECT) }?;
    // Nobody changes the map, so there is no other answer.
    let _ = uffd.protect(scratch.all())?;
    let first: *mut u8 = ptr::with_exposed_provenance_mut(word(written.start.0));
    // SAFETY: inside of the mapping, whose page is there.
    unsafe { first.write_volatile(1) };
    let mut told = Vec::new();
    for _ in 0..2 {
        uffd.take_written(scratch.all(), &mut |range| told.push(range))?;
    }
    Ok(if told == [written] { Trial::Works } else { Trial::Fails(Errno(libc::EIO)) })
}

/// Memory to try operations on. A page is what the kind installs at once.
struct Scratch {
    kind: MemoryKind,
    start: *mut c_void,
    file: Option<OwnedFd>,
}

/// Pages of it: one for each operation that needs one of its own.
const PAGES: u64 = 5;

impl Scratch {
    fn map(kind: MemoryKind) -> Result<Scratch, Error> {
        let failed =
            |errno: rustix::io::Errno| Error::Scratch { memory: kind, source: errno.into() };
        let bytes = PAGES * kind.page_size().bytes() as u64;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let file = if kind.is_file() { Some(file(kind, bytes).map_err(failed)?) } else { None };
        let huge = MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            match &file {
                Some(file) => {
                    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
                    mmap(ptr::null_mut(), word(bytes), access, flags, file, 0)
                }
                None => {
                    let huge = if kind.is_hugetlb() { huge } else { MapFlags::empty() };
                    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | huge;
                    mmap_anonymous(ptr::null_mut(), word(bytes), access, flags)
                }
            }
        };
        let scratch = Scratch { kind, start: start.map_err(failed)?, file };
        // A page that a child shares cannot be moved, and other threads may fork.
        // SAFETY: the mapping is this value's own, and the advice changes none of its pages.
        unsafe { madvise(scratch.start, word(bytes), Advice::LinuxDontFork) }.map_err(failed)?;
        Ok(scratch)
    }

    fn page(&self, index: u64) -> Range {
        let bytes = self.kind.page_size().bytes() as u64;
        Range { start: Hva(self.start as u64 + index * bytes), bytes }
    }

    fn all(&self) -> Range {
        let page = self.page(0);
        Range { start: page.start, bytes: PAGES * page.bytes }
    }

    /// Puts a page of zeros in place, if there is one to be had.
    fn populate(&self, page: Range) -> rustix::io::Result<()> {
        let start = ptr::with_exposed_provenance_mut(word(page.start.0));
        // SAFETY: inside of the mapping, whose pages keep what they hold.
        unsafe { madvise(start, word(page.bytes), Advice::LinuxPopulateWrite) }
    }

    /// What a registration reports. It is undone.
    fn register(&self, uffd: &KernelUffd, mode: RegisterMode) -> Result<Ioctls, Errno> {
        // SAFETY: the memory is only ever touched by the operations of `uffd`.
        let mask = unsafe { uffd.register(self.all(), mode) }.map_err(|error| errno_of(&error))?;
        uffd.unregister(self.all()).map_err(|error| errno_of(&error))?;
        Ok(mask)
    }

    fn try_all(&self, uffd: &KernelUffd) -> Trials {
        let [copied, moved, zeroed, poisoned, cached] = [0, 1, 2, 3, 4].map(|i| self.page(i));
        let (len, mode) = (copied.bytes, 0);
        let all = self.all();
        // A huge page that cannot be had is no fault of the operation.
        let copy = match trial(uffd.copy_bytes(copied.start, &ZEROS[..word(len)], mode)) {
            Trial::Fails(Errno(libc::EEXIST | libc::ENOMEM)) => Trial::Untried,
            trial => trial,
        };
        let call = |call| trial(uffd.call(call));
        let start = zeroed.start.0;
        let zero = call(Call::Zeropage { start, len, mode });
        let (dst, src) = (moved.start.0, copied.start.0);
        let move_page = match copy {
            Trial::Works => call(Call::Move { dst, src, len, mode }),
            _ => Trial::Untried,
        };
        let poison = call(Call::Poison { start: poisoned.start.0, len, mode });
        let start = cached.start.0;
        let map_cached = match self.fill_cache(cached) {
            Ok(()) => call(Call::Continue { start, len, mode }),
            Err(_) => Trial::Untried,
        };
        let (start, len) = (all.start.0, all.bytes);
        let protect = call(Call::WriteProtect { start, len, mode: WRITEPROTECT_WP });
        let wake = call(Call::Wake { start, len });
        Trials::NONE
            .with(Operation::Copy, copy)
            .with(Operation::Zeropage, zero)
            .with(Operation::Move, move_page)
            .with(Operation::Poison, poison)
            .with(Operation::Continue, map_cached)
            .with(Operation::WriteProtect, protect)
            .with(Operation::Wake, wake)
    }

    /// Puts a page into the page cache and not into the page table, where there is a cache.
    fn fill_cache(&self, page: Range) -> rustix::io::Result<()> {
        let offset = page.start.0 - self.all().start.0;
        let allocate = |file| fallocate(file, FallocateFlags::empty(), offset, page.bytes);
        self.file.as_ref().map_or(Ok(()), allocate)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it.
        let _ = unsafe { munmap(self.start, word(self.all().bytes)) };
    }
}

fn file(kind: MemoryKind, bytes: u64) -> rustix::io::Result<OwnedFd> {
    let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = if kind.is_hugetlb() { huge } else { MemfdFlags::empty() };
    let file = memfd_create("godwit-uffd-trial", MemfdFlags::CLOEXEC | huge)?;
    ftruncate(&file, bytes)?;
    Ok(file)
}

fn trial(answer: Answer) -> Trial {
    match answer.result {
        Ok(()) => Trial::Works,
        Err(errno) => Trial::Fails(errno),
    }
}

fn errno_of(error: &Error) -> Errno {
    match error {
        Error::Operation { source, .. } => errno_of_io(source),
        _ => Errno(libc::EIO),
    }
}

fn errno_of_io(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
