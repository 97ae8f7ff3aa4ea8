//! What can go wrong with a userfaultfd.

use std::io;

use thiserror::Error;

use crate::abi::{Call, Errno};
use crate::features::RegisterMode;
use crate::memory::MemoryKind;
use crate::message::MessageError;
use crate::page::{Gpa, PageRun, PageSize};
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
    /// The list of this process's pages could not be opened.
    #[error("cannot open /proc/self/pagemap, which tells the pages that are written")]
    Pagemap(#[source] io::Error),
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
    /// A message was read that has no meaning here.
    #[error("cannot understand a userfaultfd message")]
    Message(#[from] MessageError),
    /// Memory to try operations on could not be had.
    #[error("no {memory} to try userfaultfd on")]
    Scratch {
        /// Its kind.
        memory: MemoryKind,
        /// What the kernel said.
        source: io::Error,
    },
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
    /// The guest has no memory at an address that a range needs. The kernel says ENOENT.
    #[error("the guest has no memory at {gpa}")]
    NotMemory {
        /// The first address without memory.
        gpa: Gpa,
    },
    /// A range begins or ends inside a page of the memory there. The kernel says EINVAL.
    #[error("{gpa} is inside a page of {} bytes, and pages are installed whole", page_size.bytes())]
    InsidePage {
        /// Where the range begins or ends.
        gpa: Gpa,
        /// The size of the pages there.
        page_size: PageSize,
    },
    /// The memory was registered without the mode that an operation needs. The kernel says ENOENT
    /// or EINVAL.
    #[error("guest memory at {gpa} is not registered for {needed:?}")]
    NotRegisteredFor {
        /// The first page of the operation.
        gpa: Gpa,
        /// The mode that is missing.
        needed: RegisterMode,
    },
    /// Neither the running kernel nor anything that stands in for it can do this to such memory.
    #[error("{operation} does not work on {memory} here: {reason}")]
    NoMethod {
        /// The operation.
        operation: &'static str,
        /// The kind of memory.
        memory: MemoryKind,
        /// Why, in words.
        reason: &'static str,
    },
    /// An operation on pages of a guest failed on its way. What is done stays done and was woken
    /// if that was asked.
    #[error("stopped at {gpa} with {done} pages done")]
    Stopped {
        /// The first page that is not done.
        gpa: Gpa,
        /// Pages done, counted from the first of the run.
        done: u32,
        /// What went wrong there.
        source: Box<Error>,
    },
}

impl Error {
    /// The failure of `call`.
    pub(crate) fn of_call(call: Call, errno: Errno) -> Error {
        Error::Operation {
            operation: call.name(),
            range: call.range(),
            source: io::Error::from_raw_os_error(errno.0),
        }
    }

    /// A MOVE did nothing with a page because something holds on to it (EBUSY), or because the two
    /// mappings differ or the kernel has no MOVE (EINVAL): the page still holds its bytes.
    pub fn is_move_refused(&self) -> bool {
        match self {
            Error::Stopped { source, .. } => source.is_move_refused(),
            Error::Operation { operation: "MOVE", source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EINVAL))
            }
            _ => false,
        }
    }

    /// A range could not be registered because another userfaultfd has it.
    pub fn is_range_taken(&self) -> bool {
        match self {
            Error::Operation { operation: "REGISTER", source, .. } => {
                source.raw_os_error() == Some(libc::EBUSY)
            }
            _ => false,
        }
    }

    /// Pages of a guest that were done before it failed.
    pub fn pages_done(&self) -> u32 {
        match self {
            Error::Stopped { done, .. } => *done,
            _ => 0,
        }
    }
}
