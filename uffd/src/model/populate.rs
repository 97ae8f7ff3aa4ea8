//! Making pages before they are touched: MADV_POPULATE and mlock.

use std::ops::Range;

use super::access::{Reached, populate};
use super::address_space::AddressSpace;
use super::faults::{Failure, Request, ThreadState, Waiting};
use super::folio::{PAGE, PAGE_BYTES};
use super::sync::{Arc, AtomicBool};
use super::vma::Access;
use crate::abi::Errno;

/// Who populates, which says how it fails and what it skips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// MADV_POPULATE_READ.
    Read,
    /// MADV_POPULATE_WRITE.
    Write,
    /// mlock: as a write where that is private memory's business; memory without rights fails.
    Lock,
}

/// Populates a range for writing up to the first page that somebody would have to wait for, or that
/// cannot be had. No message is queued, so it does not show which thread does it.
pub(super) fn populate_now(space: &Arc<AddressSpace>, range: Range<u64>) {
    let thread = ThreadState {
        id: 0,
        privileged: false,
        space: space.clone(),
        fatal: AtomicBool::new(false),
    };
    for address in range.step_by(PAGE_BYTES) {
        let request =
            Request { thread: &thread, space, address, write: true, user: false, no_wait: true };
        if !matches!(populate(&request), Reached::Done(())) {
            return;
        }
    }
}

/// A range that is being populated.
#[derive(Debug)]
pub(super) struct Populate {
    pub(super) space: Arc<AddressSpace>,
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) purpose: Purpose,
}

impl Populate {
    /// Populates until it is over or has to sleep.
    pub(super) fn go_on(&mut self, thread: &ThreadState) -> Result<Result<u64, Errno>, Waiting> {
        while self.at < self.end {
            let write = self.space.with_vma(self.at, |vma| {
                let vma = vma.ok_or(Errno::ENOMEM)?;
                match self.purpose {
                    Purpose::Read if vma.access == Access::None => Err(Errno::EINVAL),
                    Purpose::Read => Ok(false),
                    Purpose::Write if !vma.is_writable() => Err(Errno::EINVAL),
                    Purpose::Write => Ok(true),
                    Purpose::Lock if vma.access == Access::None => Err(Errno::ENOMEM),
                    Purpose::Lock => Ok(vma.is_writable() && !vma.shared),
                }
            });
            let write = match write {
                Ok(write) => write,
                Err(errno) => return Ok(Err(errno)),
            };
            let request = Request {
                thread,
                space: &self.space,
                address: self.at,
                write,
                user: false,
                no_wait: false,
            };
            match populate(&request) {
                Reached::Done(()) => {}
                Reached::Parked(waiting) => return Err(waiting),
                Reached::Failed(failure) => return Ok(Err(self.error(failure))),
                Reached::WouldWait => return Ok(Err(Errno::EFAULT)),
            }
            self.at += PAGE;
        }
        Ok(Ok(0))
    }

    fn error(&self, failure: Failure) -> Errno {
        match (self.purpose, failure) {
            (Purpose::Lock, _) => Errno::ENOMEM,
            (_, Failure::Poison) => Errno::EHWPOISON,
            (_, Failure::Segment | Failure::Bus) => Errno::EFAULT,
        }
    }
}
