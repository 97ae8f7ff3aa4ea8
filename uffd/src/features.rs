//! What the kernel offers, as it says at run time. Bits that have no name here are kept.

use bitflags::bitflags;

bitflags! {
    /// Features of the userfaultfd interface, as the handshake reports them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Write-protect faults are reported.
        const PAGEFAULT_FLAG_WP = 1 << 0;
        /// A fork is an event, and registrations pass to the child.
        const EVENT_FORK = 1 << 1;
        /// A moving mremap is an event, and the registration moves along.
        const EVENT_REMAP = 1 << 2;
        /// madvise that gives up pages is an event.
        const EVENT_REMOVE = 1 << 3;
        /// Missing faults work on hugetlbfs.
        const MISSING_HUGETLBFS = 1 << 4;
        /// Missing faults work on shared memory.
        const MISSING_SHMEM = 1 << 5;
        /// munmap is an event.
        const EVENT_UNMAP = 1 << 6;
        /// Faults raise SIGBUS instead of a message.
        const SIGBUS = 1 << 7;
        /// Messages carry the thread that waits.
        const THREAD_ID = 1 << 8;
        /// Minor faults work on hugetlbfs.
        const MINOR_HUGETLBFS = 1 << 9;
        /// Minor faults work on shared memory.
        const MINOR_SHMEM = 1 << 10;
        /// Messages carry the exact address.
        const EXACT_ADDRESS = 1 << 11;
        /// Write-protection works on hugetlbfs and shared memory.
        const WP_HUGETLBFS_SHMEM = 1 << 12;
        /// Pages that do not exist yet can be write-protected.
        const WP_UNPOPULATED = 1 << 13;
        /// Pages can be poisoned.
        const POISON = 1 << 14;
        /// Write-protect faults are resolved inside the kernel.
        const WP_ASYNC = 1 << 15;
        /// Pages can be moved.
        const MOVE = 1 << 16;
        const _ = !0;
    }
}

bitflags! {
    /// Operations that work on a range, as its registration reports them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ioctls: u64 {
        /// Waking the threads that wait.
        const WAKE = 1 << 2;
        /// Installing pages with given bytes.
        const COPY = 1 << 3;
        /// Installing pages of zeros.
        const ZEROPAGE = 1 << 4;
        /// Moving pages from elsewhere.
        const MOVE = 1 << 5;
        /// Write-protecting pages.
        const WRITEPROTECT = 1 << 6;
        /// Mapping pages that the page cache has.
        const CONTINUE = 1 << 7;
        /// Marking pages as lost.
        const POISON = 1 << 8;
        const _ = !0;
    }
}

bitflags! {
    /// Which accesses to a registered range wait and are reported.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegisterMode: u64 {
        /// Accesses to pages that do not exist.
        const MISSING = 1 << 0;
        /// Writes to pages that are write-protected.
        const WRITE_PROTECT = 1 << 1;
        /// Accesses to pages that only the page cache has.
        const MINOR = 1 << 2;
    }
}
