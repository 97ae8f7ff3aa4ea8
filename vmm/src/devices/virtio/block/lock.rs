//! One process writes a disk: the lock on its file.

// UNSAFETY: the kernel is given a structure of ours.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Locks all of a file without waiting: alone for writing, with others for reading. The lock
/// belongs to the open file, so the kernel lets go of it when that is closed or the process ends,
/// however it does; on network storage it counts for all hosts. Returns whether it was to be had.
///
/// It is a record lock, of the kind that other virtual machine monitors take on images, and not
/// one of flock(2), which they would not see.
///
/// # Errors
/// The file system has no locks.
pub(super) fn try_lock(file: &File, alone: bool) -> io::Result<bool> {
    let kind = if alone { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole_file = libc::flock {
        l_type: i16::try_from(kind).expect("the kinds of locks are small numbers"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("it is zero"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one `flock`, which lives until the call returns; the descriptor is
    // open as long as `file`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole_file) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
