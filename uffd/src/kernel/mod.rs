//! [`KernelUffd`]: the running kernel's userfaultfd.
//!
//! The `userfaultfd` crate opens, negotiates, registers and reads events; the module `ioctl` has
//! what the crate lacks or reports imprecisely.

// UNSAFETY: registering memory lets later calls change what its pages hold.
#![expect(unsafe_code)]

mod ioctl;
mod staging;
#[cfg(test)]
pub(crate) mod tests;

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::ptr;
use std::sync::Mutex;

use userfaultfd::{EventBuffer, FeatureFlags, ReadWrite, UffdBuilder};

use crate::error::Error;
use crate::event::{Event, Fault, FaultKind};
use crate::features::{Features, Ioctls, RegisterMode};
use crate::page::Hva;
use crate::uffd::{Installed, Range, Uffd, Wake};

pub use staging::{Populator, Staging};

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("userfaultfd needs 64-bit Linux");

/// A userfaultfd of this process. It handles the faults that the kernel takes as well as those of
/// user space: KVM faults in the kernel. Dropping it makes all its ranges ordinary memory.
pub struct KernelUffd {
    inner: userfaultfd::Uffd,
    offered: Features,
    enabled: Features,
    messages: Mutex<EventBuffer>,
}

impl KernelUffd {
    /// Opens a userfaultfd with what a guest's memory needs: the thread that waits, and events for
    /// pages that are given up.
    ///
    /// # Errors
    ///
    /// As [`open_with`](KernelUffd::open_with).
    pub fn open() -> Result<KernelUffd, Error> {
        KernelUffd::open_with(Features::THREAD_ID | Features::EVENT_REMOVE)
    }

    /// Opens a userfaultfd and enables those of the `wanted` features that the kernel offers.
    ///
    /// The device node is tried first, because access to it can be given to one user; where it is
    /// missing or closed, the system call.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] says how to get the permission, [`Error::Unsupported`] that the kernel
    /// has no userfaultfd; [`Error::Open`] and [`Error::Handshake`] are all else.
    pub fn open_with(wanted: Features) -> Result<KernelUffd, Error> {
        let offered = offered_features()?;
        let enabled = wanted & offered;
        let created = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::from_bits_retain(enabled.bits()))
            .create();
        let inner = match created {
            Ok(inner) => inner,
            // The crate does not go on to the system call if there is a node it cannot open.
            Err(userfaultfd::Error::OpenDevUserfaultfd(_)) => open_without_crate(enabled)?,
            Err(error) => return Err(open_error(crate_error(error))),
        };
        let messages = Mutex::new(EventBuffer::new(MESSAGES_PER_READ));
        Ok(KernelUffd { inner, offered, enabled, messages })
    }

    /// All features that the kernel offers.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// The features that this descriptor was opened with.
    pub fn enabled(&self) -> Features {
        self.enabled
    }

    /// Lets accesses to a range wait for this userfaultfd, and returns what can be done with the
    /// range.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] if the range is not whole pages, its memory's kind lacks the mode, or
    /// another userfaultfd has it.
    ///
    /// # Safety
    ///
    /// Until it is unregistered the range must be memory that only raw pointers, other processes
    /// or guests access: a page that Rust holds a reference to must not change under it. A thread
    /// that serves the faults must not touch the range.
    pub unsafe fn register(&self, range: Range, mode: RegisterMode) -> Result<Ioctls, Error> {
        let mode = userfaultfd::RegisterMode::from_bits_retain(mode.bits());
        self.inner
            .register_with_mode(address(range.start), length(range), mode)
            .map(|ioctls| Ioctls::from_bits_retain(ioctls.bits()))
            .map_err(|error| failed("REGISTER", range, crate_error(error)))
    }
}

impl AsFd for KernelUffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Uffd for KernelUffd {
    fn copy(&self, at: Hva, bytes: &[u8], wake: Wake) -> Result<Installed, Error> {
        ioctl::copy(self.as_fd(), at, bytes, wake).map_err(|source| {
            failed("COPY", Range { start: at, bytes: bytes.len() as u64 }, source)
        })
    }

    fn zero(&self, range: Range, wake: Wake) -> Result<Installed, Error> {
        ioctl::zero(self.as_fd(), range, wake).map_err(|source| failed("ZEROPAGE", range, source))
    }

    fn move_in(&self, at: Hva, staged: &mut [u8], wake: Wake) -> Result<Installed, Error> {
        ioctl::move_in(self.as_fd(), at, staged, wake).map_err(|source| {
            failed("MOVE", Range { start: at, bytes: staged.len() as u64 }, source)
        })
    }

    fn wake(&self, range: Range) -> Result<(), Error> {
        ioctl::wake(self.as_fd(), range).map_err(|source| failed("WAKE", range, source))
    }

    fn unregister(&self, range: Range) -> Result<(), Error> {
        self.inner
            .unregister(address(range.start), length(range))
            .map_err(|error| failed("UNREGISTER", range, crate_error(error)))
    }

    fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error> {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let read_error = |error| Error::Read(crate_error(error));
        for event in self.inner.read_events(&mut messages).map_err(read_error)? {
            into.push(self.translate(event.map_err(read_error)?));
        }
        Ok(())
    }
}

impl KernelUffd {
    fn translate(&self, event: userfaultfd::Event) -> Event {
        match event {
            userfaultfd::Event::Pagefault { kind, rw, addr, thread_id } => Event::Fault(Fault {
                address: hva(addr),
                kind: match kind {
                    userfaultfd::FaultKind::Missing => FaultKind::Missing,
                    userfaultfd::FaultKind::WriteProtected => FaultKind::WriteProtect,
                    userfaultfd::FaultKind::Minor => FaultKind::Minor,
                },
                write: rw == ReadWrite::Write,
                thread: self
                    .enabled
                    .contains(Features::THREAD_ID)
                    .then_some(thread_id.as_raw().cast_unsigned()),
            }),
            userfaultfd::Event::Remove { start, end } => {
                Event::Remove { start: hva(start), end: hva(end) }
            }
            userfaultfd::Event::Unmap { start, end } => {
                Event::Unmap { start: hva(start), end: hva(end) }
            }
            userfaultfd::Event::Remap { from, to, len } => {
                Event::Remap { from: hva(from), to: hva(to), len: len as u64 }
            }
            userfaultfd::Event::Fork { uffd } => {
                drop(uffd);
                Event::Fork
            }
        }
    }
}

/// The kernel tells what it offers only in the handshake, of which there is one per descriptor,
/// and refuses it if a feature is asked for that it lacks. So a first descriptor asks for nothing.
fn offered_features() -> Result<Features, Error> {
    let asking = ioctl::new_descriptor().map_err(open_error)?;
    ioctl::handshake(asking.as_fd(), 0)
        .map(Features::from_bits_retain)
        .map_err(|source| Error::Handshake { features: 0, source })
}

fn open_without_crate(features: Features) -> Result<userfaultfd::Uffd, Error> {
    let opened = ioctl::new_descriptor().map_err(open_error)?;
    ioctl::handshake(opened.as_fd(), features.bits())
        .map_err(|source| Error::Handshake { features: features.bits(), source })?;
    // SAFETY: the descriptor is open, and this hands over the only ownership of it.
    Ok(unsafe { userfaultfd::Uffd::from_raw_fd(opened.into_raw_fd()) })
}

fn open_error(source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Forbidden(source),
        Some(libc::ENOSYS) => Error::Unsupported(source),
        _ => Error::Open(source),
    }
}

fn failed(operation: &'static str, range: Range, source: io::Error) -> Error {
    Error::Operation { operation, range, source }
}

fn crate_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}

fn address(at: Hva) -> *mut c_void {
    ptr::without_provenance_mut(word(at.0))
}

fn hva(address: *mut c_void) -> Hva {
    Hva(address as u64)
}

fn length(range: Range) -> usize {
    word(range.bytes)
}

#[expect(clippy::cast_possible_truncation, reason = "words have 64 bits here, see above")]
fn word(value: u64) -> usize {
    value as usize
}

/// Messages that one read takes at most; one is 32 bytes.
const MESSAGES_PER_READ: usize = 64;
