//! [`KernelUffd`]: the running kernel's userfaultfd.
//!
//! The `userfaultfd` crate opens, negotiates, registers and unregisters; the module `ioctl` makes
//! the calls that the crate lacks or reports imprecisely. Messages are read here and decoded by
//! [`message`](crate::message), which says why.

// UNSAFETY: registering memory lets later calls change what its pages hold.
#![expect(unsafe_code)]

mod ioctl;
mod lent;
mod pagemap;
mod probe;
mod staging;
#[cfg(test)]
pub(crate) mod tests;

use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use userfaultfd::{FeatureFlags, UffdBuilder};

use crate::abi::{Answer, Call, Errno, MESSAGE_BYTES, Out, RawMessage};
use crate::backend::Backend;
use crate::error::Error;
use crate::features::{Features, Ioctls, RegisterMode};
use crate::message;
use crate::page::{Hva, PageSize};
use crate::uffd::{Range, Uffd};

pub use probe::{Doors, Survey, doors, follows_writes, survey, trials};

use lent::Lent;
use pagemap::Pagemap;

pub use staging::{Populator, Staging};

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("userfaultfd needs 64-bit Linux");

/// A userfaultfd of this process. It handles the faults that the kernel takes as well as those of
/// user space: KVM faults in the kernel. Dropping it makes all its ranges ordinary memory.
pub struct KernelUffd {
    inner: userfaultfd::Uffd,
    offered: Features,
    enabled: Features,
    /// Open where writes are resolved in the kernel, which tells of them only there.
    pagemap: Option<Pagemap>,
    /// What calls may do more to than fill pages that are missing.
    lent: RwLock<Lent>,
    /// Of the memory that was lent; dropped last.
    owners: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
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
    /// has no userfaultfd; [`Error::Open`] and [`Error::Handshake`] are all else. With
    /// [`WP_ASYNC`](Features::WP_ASYNC) also [`Error::Pagemap`].
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
        let asynchronous = enabled.contains(Features::WP_ASYNC);
        let pagemap = asynchronous.then(Pagemap::open).transpose().map_err(Error::Pagemap)?;
        Ok(KernelUffd {
            inner,
            offered,
            enabled,
            pagemap,
            lent: RwLock::default(),
            owners: Mutex::default(),
        })
    }

    /// All features that the kernel offers.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// The features that this descriptor was opened with.
    pub fn enabled(&self) -> Features {
        self.enabled
    }

    /// Lends a range to this userfaultfd, which may then register it and move pages out of
    /// it. Until then it refuses to, because safe code could pull memory from under
    /// somebody's feet.
    ///
    /// # Safety
    ///
    /// Until it is unregistered, or the userfaultfd is dropped, the range must stay mapped (see
    /// [`keep`](KernelUffd::keep)) and be memory that only raw pointers, other processes or guests
    /// access: a page that Rust holds a reference to must not change under it. A thread that serves
    /// the faults of registered memory must not touch it.
    pub unsafe fn lend(&self, range: Range) {
        self.lent.write().unwrap_or_else(PoisonError::into_inner).add(range);
    }

    /// Keeps whoever owns lent memory alive as long as this userfaultfd.
    pub fn keep(&self, owner: Arc<dyn Any + Send + Sync>) {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).push(owner);
    }

    /// Lends a range and [registers](Uffd::register) it.
    ///
    /// # Errors
    ///
    /// As [`Uffd::register`].
    ///
    /// # Safety
    ///
    /// As [`lend`](KernelUffd::lend).
    pub unsafe fn register(&self, range: Range, mode: RegisterMode) -> Result<Ioctls, Error> {
        // SAFETY: the caller promises it.
        unsafe { self.lend(range) };
        Uffd::register(self, range, mode)
    }

    /// Calls `work` if the range is lent, and keeps it from being given back meanwhile.
    fn with_lent<T>(&self, range: Range, work: impl FnOnce() -> T) -> Result<T, Errno> {
        let lent = self.lent.read().unwrap_or_else(PoisonError::into_inner);
        if lent.has(range) { Ok(work()) } else { Err(Errno(libc::EPERM)) }
    }

    fn register_lent(&self, range: Range, mode: u64) -> Answer {
        let mode = userfaultfd::RegisterMode::from_bits_retain(mode);
        let registered = self.with_lent(range, || {
            self.inner.register_with_mode(address(range.start), word(range.bytes), mode)
        });
        match registered {
            Ok(Ok(mask)) => Answer { result: Ok(()), out: Out::Ioctls(mask.bits()) },
            Ok(Err(error)) => refused(crate_errno(&error)),
            Err(errno) => refused(errno),
        }
    }

    fn unregister_lent(&self, range: Range) -> Answer {
        // Held for both steps, so that nobody registers in between what is being given back.
        let mut lent = self.lent.write().unwrap_or_else(PoisonError::into_inner);
        match self.inner.unregister(address(range.start), word(range.bytes)) {
            Ok(()) => {
                lent.remove(range);
                Answer { result: Ok(()), out: Out::Untouched }
            }
            Err(error) => refused(crate_errno(&error)),
        }
    }
}

impl AsFd for KernelUffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Backend for KernelUffd {
    fn call(&self, call: Call) -> Answer {
        match call {
            Call::Register { mode, .. } => self.register_lent(call.range(), mode),
            Call::Unregister { .. } => self.unregister_lent(call.range()),
            Call::Move { src, len, .. } => {
                let source = Range { start: Hva(src), bytes: len };
                // SAFETY: the source was lent.
                self.with_lent(source, || unsafe { ioctl::call(self.as_fd(), call) })
                    .unwrap_or_else(refused)
            }
            // SAFETY: it registers nothing and moves nothing.
            call => unsafe { ioctl::call(self.as_fd(), call) },
        }
    }

    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer {
        let (src, len) = (bytes.as_ptr() as u64, bytes.len() as u64);
        self.call(Call::Copy { dst: at.0, src, len, mode })
    }

    fn move_bytes(&self, at: Hva, staged: &mut [u8], mode: u64) -> Answer {
        let (src, len) = (staged.as_mut_ptr() as u64, staged.len() as u64);
        let call = Call::Move { dst: at.0, src, len, mode };
        // SAFETY: the source is borrowed for writing, and bytes may hold anything afterwards.
        unsafe { ioctl::call(self.as_fd(), call) }
    }

    fn give_up(&self, staged: &mut [u8]) {
        let (start, bytes) = (staged.as_mut_ptr(), staged.len());
        // madvise refuses an odd start, and makes up what is missing from the last page.
        if !PageSize::BASE.divides(start as u64 | bytes as u64) {
            return;
        }
        let start = start.cast();
        // SAFETY: whole pages, borrowed for writing, which may hold anything afterwards.
        let _ = unsafe { rustix::mm::madvise(start, bytes, rustix::mm::Advice::LinuxDontNeed) };
    }

    fn read(&self, each: &mut dyn FnMut(RawMessage)) -> Result<(), Error> {
        let mut buffer = [0; MESSAGES_PER_READ * MESSAGE_BYTES];
        let bytes = match rustix::io::read(&self.inner, &mut buffer) {
            Ok(bytes) => &buffer[..bytes],
            Err(rustix::io::Errno::AGAIN) => &[],
            Err(errno) => return Err(Error::Read(errno.into())),
        };
        let mut understood = Ok(());
        for message in message::decode_all(bytes) {
            match message {
                Ok(message) => {
                    if let RawMessage::Fork { fd } = message {
                        ioctl::close_child(fd);
                    }
                    each(message);
                }
                Err(error) => understood = Err(Error::Message(error)),
            }
        }
        understood
    }

    fn scan_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        let pagemap = self.pagemap.as_ref().ok_or(Errno(libc::EPERM))?;
        pagemap.take_written(range, each)
    }

    fn enabled(&self) -> Features {
        self.enabled
    }
}

fn refused(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Untouched }
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

fn crate_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}

fn crate_errno(error: &userfaultfd::Error) -> Errno {
    match error {
        userfaultfd::Error::SystemError(errno) => Errno(*errno as i32),
        // A call has no other reason to fail: the rest is about opening and reading.
        other => unreachable!("{other}"),
    }
}

fn address(at: Hva) -> *mut c_void {
    ptr::with_exposed_provenance_mut(word(at.0))
}

#[expect(clippy::cast_possible_truncation, reason = "words have 64 bits here, see above")]
fn word(value: u64) -> usize {
    value as usize
}

/// Messages that one read takes at most; one is 32 bytes.
const MESSAGES_PER_READ: usize = 64;
