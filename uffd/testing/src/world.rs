//! A machine as a test sees it: processes, their memory, their threads and userfaultfds.
//!
//! A [`World`] is driven from one thread. Whatever may sleep in the kernel returns a [`Step`]:
//! done, or parked with a ticket. A parked call goes on by itself when its reason is gone;
//! [`World::poll_ticket`] tells. Nothing here waits for ever.

use godwit_uffd::abi::{Answer, Call, Errno, RawMessage};

/// Bytes of a base page.
pub const BASE_PAGE: u64 = 4096;

/// A process of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

/// A userfaultfd of the world. A number that stays the same in every process and is not the
/// descriptor's; several may name one context after a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(pub u32);

/// A memory file (memfd, or a regular file) of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct File(pub u32);

/// A call or an access that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u32);

/// How far something that may sleep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is over.
    Done(Outcome),
    /// Its thread sleeps.
    Parked(Ticket),
}

/// What came of something that may sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An ioctl.
    Ioctl(Answer),
    /// A load by user code: the byte.
    Loaded(u8),
    /// A store by user code.
    Stored,
    /// The access ended in a signal. It is not repeated.
    Signal(Signal),
    /// A system call of memory management, or a kernel access: its return value. For `remap` it
    /// is the new address; for `fork` see [`Outcome::Forked`].
    Returned(Result<u64, Errno>),
    /// A fork.
    Forked(Process),
}

/// A synchronous signal of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGSEGV.
    Segv {
        /// `si_addr`.
        address: u64,
    },
    /// SIGBUS with BUS_ADRERR.
    BusAddress {
        /// `si_addr`.
        address: u64,
    },
    /// SIGBUS with BUS_MCEERR_AR.
    BusPoison {
        /// `si_addr`.
        address: u64,
    },
}

/// What a mapping is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// Anonymous memory with huge pages: aligned, `MADV_HUGEPAGE`.
    TransparentHuge,
    /// Shared anonymous memory, which is shmem.
    SharedAnonymous,
    /// A file from [`World::make_file`], from `page` on (counted in base pages).
    File {
        /// The file.
        file: File,
        /// The first page of the file.
        page: u64,
        /// `MAP_SHARED`, or `MAP_PRIVATE`.
        shared: bool,
        /// Through a descriptor that was opened for reading only.
        read_only_descriptor: bool,
    },
    /// Private anonymous hugetlb memory of 2 MiB pages.
    Hugetlb,
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A memfd: shmem.
    Shmem,
    /// A memfd of 2 MiB hugetlb pages.
    Hugetlb,
    /// A file of a regular file system.
    Regular,
}

/// A mapping that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its length in base pages (multiples of 512 for hugetlb).
    pub pages: u64,
    /// What it is made of.
    pub backing: Backing,
    /// How it may be accessed.
    pub access: Access,
    /// Where, replacing what is there (`MAP_FIXED`); otherwise wherever there is room, 2 MiB
    /// aligned, with a guard of unmapped pages on both sides.
    pub at: Option<u64>,
}

/// How memory may be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `PROT_NONE`.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

/// What madvise is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the kernel's header, without MADV_")]
pub enum Advice {
    DontNeed,
    Free,
    Remove,
    PageOut,
    GuardInstall,
    GuardRemove,
    NoHugePage,
    HugePage,
    Collapse,
    Mergeable,
    PopulateRead,
    PopulateWrite,
}

/// How a mapping is moved or resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remap {
    /// Its old address.
    pub from: u64,
    /// Its old length in pages.
    pub pages: u64,
    /// Its new length in pages.
    pub new_pages: u64,
    /// `MREMAP_MAYMOVE`, with `MREMAP_FIXED` to this address if given.
    pub to: Option<u64>,
    /// `MREMAP_DONTUNMAP`.
    pub dont_unmap: bool,
}

/// An access of a thread of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// User code loads a byte.
    Load,
    /// User code stores a byte.
    Store(u8),
    /// The kernel stores the byte for user code: read(2) of one byte into the address.
    KernelStore(u8),
    /// The kernel loads a byte for user code: write(2) of one byte from the address.
    KernelLoad,
}

/// How a userfaultfd is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// By the system call.
    Call,
    /// By the device node.
    Device,
    /// By a descriptor of the device node that a privileged parent had opened.
    InheritedDevice,
}

/// Where the structure of an ioctl is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In ordinary memory.
    Ordinary,
    /// In memory that can be read and not written.
    ReadOnly,
    /// Nowhere: an address that is not mapped.
    Unmapped,
}

/// What poll says of a userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of poll's bits")]
pub enum Polled {
    Idle,
    In,
    Err,
    Hup,
}

/// What /proc/PID/fdinfo says of a userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdInfo {
    /// Faults that were not read.
    pub pending: u64,
    /// Faults that were not resolved.
    pub total: u64,
    /// The negotiated features, without the bit that says that the handshake is done.
    pub features: u64,
}

/// A page-table entry as a privileged observer sees it (section 0.1 of the specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// N: no entry.
    None,
    /// P, PS, PW or part of T: an anonymous page.
    Anonymous {
        /// Exclusive to this process (P) or not (PS).
        exclusive: bool,
        /// With the uffd-wp bit.
        protected: bool,
        /// Mapped by a PMD, as part of a huge page.
        huge: bool,
    },
    /// Z and ZW: the shared zero page, small or huge.
    Zero {
        /// With the uffd-wp bit.
        protected: bool,
    },
    /// F and FW: a page of the page cache.
    File {
        /// With the uffd-wp bit.
        protected: bool,
    },
    /// W: a marker of write-protection. Hugetlb too.
    ProtectMarker,
    /// X: a poison marker (hugetlb shows it as none).
    PoisonMarker,
    /// G: a guard marker.
    GuardMarker,
    /// S and SW.
    Swap {
        /// With the uffd-wp bit.
        protected: bool,
    },
}

/// The categories that a PAGEMAP_SCAN reports for one page, and whether it was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanRegion {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// The category bits of the kernel's header.
    pub categories: u64,
}

/// A scan that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// PM_SCAN_WP_MATCHING 1, PM_SCAN_CHECK_WPASYNC 2.
    pub flags: u64,
    /// Categories that a page must all have.
    pub mask: u64,
}

/// Why a world cannot do something that a test needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHere(pub String);

/// What a world can do, asked before a test relies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Make any userfaultfd that handles faults of the kernel.
    KernelFaults,
    /// Processes without privilege, with `vm.unprivileged_userfaultfd` 0.
    Unprivileged,
    /// At least this many free 2 MiB hugetlb pages.
    Hugetlb(u32),
    /// Transparent huge pages by madvise.
    TransparentHuge,
    /// A swap device of the test's own, and pages that stay where they are put.
    Swap,
    /// Long-term pins of pages.
    Pin,
    /// Merging of equal pages on request.
    Ksm,
    /// A guest's vCPU as the one who touches.
    Vcpu,
    /// Guest memory files (guest_memfd).
    GuestMemfd,
    /// Behaviour of the newest kernel, where it differs from 6.18.
    Newest,
}

/// A machine with processes, memory and userfaultfds. All methods act at once and return; what
/// sleeps is told as [`Step::Parked`]. Every fault of the test's own making panics.
pub trait World {
    /// Whether the world can do something; otherwise the reason.
    fn can(&mut self, ability: Ability) -> Result<(), NotHere>;

    /// The first process, which is privileged.
    fn root(&self) -> Process;
    /// A further process that is not a child by fork; privileged or not, with memory of its own.
    fn spawn(&mut self, privileged: bool) -> Process;
    /// Forks a process. Its userfaultfds are inherited under the same [`Fd`]s.
    fn fork(&mut self, process: Process) -> Step;
    /// Ends a process; its memory is gone when this returns.
    fn exit(&mut self, process: Process);

    /// Makes a file of `pages` base pages, all of them holes.
    fn make_file(&mut self, kind: FileKind, pages: u64) -> File;
    /// Stores `byte` at the first byte of a page of the file, which is then in the page cache.
    fn file_store(&mut self, file: File, page: u64, byte: u8);
    /// The first byte of a page of the file, or `None` if the page is not in the page cache.
    fn file_load(&mut self, file: File, page: u64) -> Option<u8>;
    /// Sets the file's size in base pages.
    fn file_truncate(&mut self, file: File, pages: u64);
    /// Punches a hole of one page into the file.
    fn file_punch(&mut self, file: File, page: u64);
    /// Seals a memfd against writes (`F_SEAL_FUTURE_WRITE`).
    fn file_seal_writes(&mut self, file: File);

    /// Maps memory; the address.
    ///
    /// # Errors
    /// The kernel's.
    fn map(&mut self, process: Process, mapping: Mapping) -> Result<u64, Errno>;
    /// munmap. May sleep until an UNMAP event is read.
    fn unmap(&mut self, process: Process, start: u64, pages: u64) -> Step;
    /// mprotect.
    fn protect(&mut self, process: Process, start: u64, pages: u64, access: Access) -> Step;
    /// madvise. May sleep until a REMOVE event is read.
    fn advise(&mut self, process: Process, start: u64, pages: u64, advice: Advice) -> Step;
    /// mremap. May sleep until its events are read.
    fn remap(&mut self, process: Process, remap: Remap) -> Step;
    /// mlock or munlock.
    fn lock(&mut self, process: Process, start: u64, pages: u64, locked: bool) -> Step;
    /// Pins one page for long, as a device would, until [`unpin`](World::unpin).
    fn pin(&mut self, process: Process, address: u64);
    /// Gives a pin back.
    fn unpin(&mut self, process: Process, address: u64);

    /// Opens a userfaultfd with the raw flags of the system call (`O_CLOEXEC` and so on).
    ///
    /// # Errors
    /// The kernel's.
    fn open(&mut self, process: Process, door: Door, flags: u32) -> Result<Fd, Errno>;
    /// Closes the descriptor in every process that has it.
    fn close(&mut self, fd: Fd);
    /// Sets or clears `O_NONBLOCK`.
    fn set_nonblocking(&mut self, fd: Fd, nonblocking: bool);
    /// Calls an ioctl from a thread of `process`, which has inherited or opened `fd`. May sleep
    /// (COPY whose source is missing in another userfaultfd).
    fn ioctl(&mut self, process: Process, fd: Fd, call: Call, placement: Placement) -> Step;
    /// Reads with a buffer of `bytes` bytes and never sleeps: where a blocking descriptor would,
    /// EAGAIN. A FORK message's descriptor becomes an [`Fd`], whose number replaces it.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&mut self, fd: Fd, bytes: usize) -> Result<Vec<RawMessage>, Errno>;
    /// Reads into memory that is not mapped.
    ///
    /// # Errors
    /// The kernel's.
    fn read_into_nowhere(&mut self, fd: Fd) -> Result<usize, Errno>;
    /// What poll says.
    fn poll(&mut self, fd: Fd) -> Polled;
    /// What fdinfo says.
    fn fd_info(&mut self, fd: Fd) -> FdInfo;

    /// A new thread of `process` touches one byte and ends.
    fn touch(&mut self, process: Process, address: u64, touch: Touch) -> Step;
    /// As [`touch`](World::touch), by a vCPU whose guest memory the mapping at `address` is. What
    /// KVM cannot serve has no signal: it returns EFAULT. Only where the world has
    /// [`Ability::Vcpu`].
    fn guest_touch(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        panic!("no vCPU for {touch:?} at {address:#x} of {process:?}")
    }
    /// Maps a guest memory file that user code may map (`MMAP | INIT_SHARED`), shared; the
    /// address. Only where the world has [`Ability::GuestMemfd`].
    fn map_guest_memfd(&mut self, process: Process, pages: u64) -> u64 {
        panic!("no guest memory file of {pages} pages for {process:?}")
    }
    /// The id of the thread that `ticket` is about, as `ptid` shows it.
    fn thread_id(&mut self, ticket: Ticket) -> u32;
    /// Sends a signal with a handler to the thread of a parked access, which repeats it.
    fn interrupt(&mut self, ticket: Ticket);
    /// How a parked call stands by now: it has settled when this returns, so a call that was
    /// woken has either ended or sleeps again.
    fn poll_ticket(&mut self, ticket: Ticket) -> Step;

    /// The page-table entry of the page at `address`, looked at without touching it.
    fn entry(&mut self, process: Process, address: u64) -> Entry;
    /// The entries of `pages` pages from `start` on.
    fn entries(&mut self, process: Process, start: u64, pages: u64) -> Vec<Entry> {
        (0..pages).map(|page| self.entry(process, start + page * BASE_PAGE)).collect()
    }
    /// The byte at `address` if the entry has a page, looked at without raising a fault.
    fn peek(&mut self, process: Process, address: u64) -> Option<u8>;
    /// The first byte of each of `pages` pages from `start` on, as [`peek`](World::peek) says it.
    fn bytes(&mut self, process: Process, start: u64, pages: u64) -> Vec<Option<u8>> {
        (0..pages).map(|page| self.peek(process, start + page * BASE_PAGE)).collect()
    }
    /// PAGEMAP_SCAN.
    ///
    /// # Errors
    /// The kernel's.
    fn scan(&mut self, process: Process, scan: Scan) -> Result<Vec<ScanRegion>, Errno>;
}
