//! The userfaultfd ioctls that install pages, and the opening that the `userfaultfd` crate lacks.
//!
//! The crate turns the signed out field of a failed COPY into an unsigned number, has one error
//! for "stopped half way" and "did nothing", does not return the feature mask of the handshake,
//! and ends at Linux 5.13. All numbers are derived here from direction, number and size, and
//! compared at compile time with the values of the kernel's header.

// UNSAFETY: system calls that fill memory which the guest and other threads also use.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::mm::UserfaultfdFlags;

use crate::page::Hva;
use crate::uffd::{Installed, Range, Wake};

/// WAKE and UNREGISTER.
#[repr(C)]
struct Span {
    start: u64,
    bytes: u64,
}

/// COPY and MOVE; `done` is written by the kernel.
#[repr(C)]
struct Transfer {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}

/// ZEROPAGE, CONTINUE and POISON; `done` is written by the kernel.
#[repr(C)]
struct Fill {
    span: Span,
    mode: u64,
    done: i64,
}

/// WRITEPROTECT.
#[repr(C)]
struct Protect {
    span: Span,
    mode: u64,
}

/// API; the kernel answers in `features` and `ioctls`.
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

const fn number(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0xAA << 8) | number
}

const NONE: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

const NEW: u64 = number(NONE, 0x00, 0);
const WAKE: u64 = number(READ, 0x02, size_of::<Span>());
const COPY: u64 = number(READ_WRITE, 0x03, size_of::<Transfer>());
const ZEROPAGE: u64 = number(READ_WRITE, 0x04, size_of::<Fill>());
const MOVE: u64 = number(READ_WRITE, 0x05, size_of::<Transfer>());
const WRITEPROTECT: u64 = number(READ_WRITE, 0x06, size_of::<Protect>());
const CONTINUE: u64 = number(READ_WRITE, 0x07, size_of::<Fill>());
const POISON: u64 = number(READ_WRITE, 0x08, size_of::<Fill>());
const API: u64 = number(READ_WRITE, 0x3F, size_of::<Handshake>());

const _: () = assert!(size_of::<Span>() == 16);
const _: () = assert!(size_of::<Transfer>() == 40);
const _: () = assert!(size_of::<Fill>() == 32);
const _: () = assert!(size_of::<Protect>() == 24);
const _: () = assert!(size_of::<Handshake>() == 24);
const _: () = assert!(NEW == 0x0000_AA00);
const _: () = assert!(WAKE == 0x8010_AA02);
const _: () = assert!(COPY == 0xC028_AA03);
const _: () = assert!(ZEROPAGE == 0xC020_AA04);
const _: () = assert!(MOVE == 0xC028_AA05);
const _: () = assert!(WRITEPROTECT == 0xC018_AA06);
const _: () = assert!(CONTINUE == 0xC020_AA07);
const _: () = assert!(POISON == 0xC020_AA08);
const _: () = assert!(API == 0xC018_AA3F);

/// The only version of the interface.
const API_VERSION: u64 = 0xAA;

/// Leaves the waiters asleep; bit 0 for all operations that install pages.
const MODE_DONTWAKE: u64 = 1;

const DEVICE: &str = "/dev/userfaultfd";

/// A new userfaultfd that does not block and has no handshake yet, from the device node, or by the
/// system call where the node is missing or closed to this user.
pub(super) fn new_descriptor() -> io::Result<OwnedFd> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(device) => new_from_device(&device),
        Err(_) => new_from_system_call(),
    }
}

fn new_from_device(device: &File) -> io::Result<OwnedFd> {
    // SAFETY: the argument is a number, not a pointer.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

pub(super) fn new_from_system_call() -> io::Result<OwnedFd> {
    // SAFETY: a descriptor without registered ranges can do nothing to memory, and `register` has
    // its own contract.
    let made =
        unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
    Ok(made?)
}

/// Enables `features` and returns all that the kernel offers.
pub(super) fn handshake(fd: BorrowedFd<'_>, features: u64) -> io::Result<u64> {
    let mut request = Handshake { api: API_VERSION, features, ioctls: 0 };
    // SAFETY: the structure is the one that this number takes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), API, &raw mut request) })?;
    Ok(request.features)
}

/// Installs pages from `at` with `bytes`.
pub(super) fn copy(fd: BorrowedFd<'_>, at: Hva, bytes: &[u8], wake: Wake) -> io::Result<Installed> {
    let mut request = Transfer {
        to: at.0,
        from: bytes.as_ptr() as u64,
        bytes: bytes.len() as u64,
        mode: mode(wake),
        done: 0,
    };
    // SAFETY: the structure is the one that this number takes; the kernel reads `bytes`, which is
    // borrowed for the call, and writes only missing pages of ranges that were registered.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), COPY, &raw mut request) });
    classify(result, request.done)
}

/// Moves the pages that hold `staged` to `at`.
pub(super) fn move_in(
    fd: BorrowedFd<'_>,
    at: Hva,
    staged: &mut [u8],
    wake: Wake,
) -> io::Result<Installed> {
    let mut request = Transfer {
        to: at.0,
        from: staged.as_mut_ptr() as u64,
        bytes: staged.len() as u64,
        mode: mode(wake),
        done: 0,
    };
    // SAFETY: the structure is the one that this number takes; the kernel takes the pages of
    // `staged`, which is borrowed for writing, and leaves zeros there.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), MOVE, &raw mut request) });
    classify(result, request.done)
}

/// Installs pages of zeros.
pub(super) fn zero(fd: BorrowedFd<'_>, range: Range, wake: Wake) -> io::Result<Installed> {
    let mut request = Fill { span: span(range), mode: mode(wake), done: 0 };
    // SAFETY: the structure is the one that this number takes; the kernel fills only missing pages
    // of ranges that were registered.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), ZEROPAGE, &raw mut request) });
    classify(result, request.done)
}

/// Wakes the threads that wait in a range.
pub(super) fn wake(fd: BorrowedFd<'_>, range: Range) -> io::Result<()> {
    let mut request = span(range);
    // SAFETY: the structure is the one that this number takes; no memory is changed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), WAKE, &raw mut request) })
}

fn span(range: Range) -> Span {
    Span { start: range.start.0, bytes: range.bytes }
}

fn mode(wake: Wake) -> u64 {
    match wake {
        Wake::Now => 0,
        Wake::Later => MODE_DONTWAKE,
    }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The meaning of an install's error number and out field. The out field is the number of bytes
/// done, or a negative error number, or untouched where an argument was refused.
fn classify(result: io::Result<()>, done: i64) -> io::Result<Installed> {
    let Err(error) = result else {
        return Ok(Installed::All);
    };
    match (error.raw_os_error(), u64::try_from(done)) {
        (Some(libc::EEXIST), _) => Ok(Installed::AlreadyPresent),
        (Some(libc::EAGAIN), Ok(bytes)) if bytes > 0 => Ok(Installed::Partly { bytes }),
        (Some(libc::EAGAIN), _) => Ok(Installed::EventsFirst),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: i32, done: i64) -> io::Result<Installed> {
        classify(Err(io::Error::from_raw_os_error(errno)), done)
    }

    #[test]
    fn error_numbers_become_what_is_to_be_done() {
        assert_eq!(classify(Ok(()), 4096).unwrap(), Installed::All);
        assert_eq!(failed(libc::EEXIST, -17).unwrap(), Installed::AlreadyPresent);
        assert_eq!(failed(libc::EAGAIN, 8192).unwrap(), Installed::Partly { bytes: 8192 });
        assert_eq!(failed(libc::EAGAIN, -11).unwrap(), Installed::EventsFirst);
        assert_eq!(failed(libc::EAGAIN, 0).unwrap(), Installed::EventsFirst);
    }

    #[test]
    fn other_error_numbers_stay_errors() {
        for errno in [libc::EINVAL, libc::ENOENT, libc::ENOMEM, libc::EFAULT, libc::ESRCH] {
            assert_eq!(failed(errno, 0).unwrap_err().raw_os_error(), Some(errno));
        }
    }
}
