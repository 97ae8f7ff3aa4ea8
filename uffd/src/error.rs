//! What can go wrong with a userfaultfd.

use std::io;

use thiserror::Error;

use crate::page::PageRun;
use crate::uffd::Range;

/// A userfaultfd could not be opened or an operation failed.
///
/// What is part of normal work (a page already there, a short count, an event in the way) is not
/// an error but an [`Installed`](crate::Installed).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// This user may not handle the page faults that KVM takes on the guest's behalf.
    #[error(
        "userfaultfd is forbidden: this user may not handle faults that the kernel takes; allow \
         one user with `setfacl -m u:${{USER}}:rw /dev/userfaultfd`, or everybody with \
         `sysctl -w vm.unprivileged_userfaultfd=1`"
    )]
    Forbidden(#[source] io::Error),
    /// The kernel was built without userfaultfd, or a filter hides it.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")]
    Unsupported(#[source] io::Error),
    /// The descriptor could not be made for another reason.
    #[error("cannot open a userfaultfd")]
    Open(#[source] io::Error),
    /// The kernel refused the version or the features.
    #[error("the userfaultfd handshake failed for features {features:#x}")]
    Handshake {
        /// The bits that were asked for.
        features: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// An operation on a range failed.
    #[error("userfaultfd {operation} of {range} failed")]
    Operation {
        /// The operation, as its ioctl is called.
        operation: &'static str,
        /// The range that was to be worked on.
        range: Range,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor could not be read.
    #[error("cannot read userfaultfd events")]
    Read(#[source] io::Error),
    /// A run of pages lies wholly or partly outside of the guest.
    #[error("{run} are outside of the guest, which has {pages} pages")]
    OutsideGuest {
        /// The run that was asked for.
        run: PageRun,
        /// The number of pages that the guest has.
        pages: u32,
    },
    /// The bytes given for a run are not as long as the run.
    #[error("{run} need {needed} bytes and were given {given}")]
    WrongLength {
        /// The run that was to be filled.
        run: PageRun,
        /// The length of the run in bytes.
        needed: u64,
        /// The number of bytes that were given.
        given: u64,
    },
}
