//! What a userfaultfd reports: faults of threads that now wait, and changes of the address space.

use crate::page::Hva;

/// Why a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no page.
    Missing,
    /// The page cache has the page and the page table does not.
    Minor,
    /// The page is write-protected by userfaultfd.
    WriteProtect,
}

/// One access that waits for its page. Several threads that wait for one page raise one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first byte of the page.
    pub address: Hva,
    /// What is to be done about the page.
    pub kind: FaultKind,
    /// The access is a write.
    pub write: bool,
    /// The thread that waits, if [`THREAD_ID`](crate::Features::THREAD_ID) was enabled.
    pub thread: Option<u32>,
}

/// One message of a userfaultfd.
///
/// Faults are delivered before all other events, so the order between the two says nothing. The
/// thread that caused an event other than a fault waits until the event has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault(Fault),
    /// The pages of a range are being given up by madvise; they read as missing afterwards.
    Remove {
        /// The first byte given up.
        start: Hva,
        /// The byte behind the last one.
        end: Hva,
    },
    /// A range is no longer mapped.
    Unmap {
        /// The first byte unmapped.
        start: Hva,
        /// The byte behind the last one.
        end: Hva,
    },
    /// A range has moved in the address space and is registered at its new place.
    Remap {
        /// Where it was.
        from: Hva,
        /// Where it is.
        to: Hva,
        /// Its length before the move, in bytes.
        len: u64,
    },
    /// The process has forked. The child's own userfaultfd has been closed, so the child's memory
    /// is ordinary.
    Fork,
}
