//! Long-term pins: a page is registered as a buffer of an io_uring that never does anything.

// UNSAFETY: raw system calls of the driver.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::agents::Agents;
use super::syscall::checked;
use super::{PAGE, errno};
use godwit_uffd::abi::Errno;

const REGISTER_BUFFERS: u64 = 0;
const UNREGISTER_BUFFERS: u64 = 1;

/// One pinned page.
#[derive(Debug)]
pub(super) struct Pin {
    ring: OwnedFd,
}

/// `struct io_uring_params`, of which nothing is asked.
const PARAMETERS_BYTES: usize = 120;

impl Pin {
    /// A ring, made by the driver in the descriptors that all share.
    fn ring() -> Result<OwnedFd, Errno> {
        let mut parameters = [0_u64; PARAMETERS_BYTES / 8];
        let parameters = parameters.as_mut_ptr();
        // SAFETY: the structure has the size that the kernel expects and lives.
        let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters) };
        let made = i32::try_from(made).expect("a descriptor");
        if made < 0 {
            return Err(errno());
        }
        // SAFETY: the kernel has just made it, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(made) })
    }

    /// Whether pins can be had.
    pub(super) fn possible() -> Result<(), Errno> {
        Self::ring().map(drop)
    }

    /// Pins the page of an agent's memory that `address` is in.
    pub(super) fn new(agents: &mut Agents, at: usize, address: u64) -> Result<Self, Errno> {
        let ring = Self::ring()?;
        let page = address / PAGE * PAGE;
        let fd = u64::from(ring.as_raw_fd().cast_unsigned());
        let vector = [page, PAGE, 0, 0, 0, 0, 0, 0];
        let register = |vector_at: u64| [fd, REGISTER_BUFFERS, vector_at, 1, 0, 0];
        checked(agents.call_with(at, libc::SYS_io_uring_register, vector, register))?;
        Ok(Self { ring })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let ring = self.ring.as_raw_fd();
        // Closing alone gives the pages back later, on a thread of the kernel.
        // SAFETY: no memory is involved.
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, UNREGISTER_BUFFERS, 0, 0) };
    }
}
