//! Guest memory: how it is laid out, mapped, advised and handed to userfaultfd.

mod advice;
mod available;
mod backing;
mod hold;
mod huge_pages;
mod layout;
mod poison;
mod register;
mod watch;
mod written;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_migration::provider::GuestRam;
use godwit_uffd::page::{Gpa, Hva, PageSize};
use rustix::fs::MemfdFlags;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::{FromRangesError, MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::region::GuestRegionCollectionError;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

pub use available::available_bytes;
pub use backing::{Backing, page_size_word};
pub use hold::HeldWrites;
pub use layout::{HOLE_END, HOLE_START, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, ranges};

pub use poison::copy_readable;
pub(crate) use poison::{install_poison_handler, watch_touch};
pub(crate) use watch::WriteWatch;
pub(crate) use written::{WORD_PAGES, insert_words};

use advice::Advice;

/// Why guest memory cannot be had or prepared.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is impossible.
    #[error(
        "guest memory of {bytes} bytes is not possible; choose a multiple of {page_size} from \
         {MEMORY_BYTES_MIN} to {MEMORY_BYTES_MAX} bytes"
    )]
    Size {
        /// What was asked for.
        bytes: u64,
        /// The size of its pages.
        page_size: PageSize,
    },
    /// The host has less than the guest wants.
    #[error(
        "guest memory of {wanted_mib} MiB does not fit: this machine has {available_mib} MiB \
         available; choose a smaller guest or free some memory"
    )]
    NotAvailable {
        /// What was asked for.
        wanted_mib: u64,
        /// What /proc/meminfo gives as MemAvailable.
        available_mib: u64,
    },
    /// The host has fewer huge pages than the guest wants.
    #[error(
        "guest memory takes {wanted} huge pages of 2 MiB, and {free} are free on this machine: \
         reserve more with `sysctl -w vm.nr_hugepages={pool}`, or launch the guest with \
         --page-size 4K"
    )]
    HugePages {
        /// Pages of the guest.
        wanted: u64,
        /// Pages that can be had.
        free: u64,
        /// The size of a pool with enough of them.
        pool: u64,
    },
    /// The host has no pool of huge pages.
    #[error(
        "this machine's kernel has no pool of 2 MiB pages (CONFIG_HUGETLBFS); launch the guest \
         with --page-size 4K"
    )]
    NoHugePages,
    /// A memfd could not be made or sized.
    #[error("cannot create a memfd of {bytes} bytes for guest memory")]
    Memfd {
        /// The size of the file.
        bytes: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file of a mapping could not be kept open.
    #[error("cannot keep the file open that {bytes} bytes of guest memory come from")]
    File {
        /// The size of the region.
        bytes: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Memory that begins with what a file has cannot be protected.
    #[error(
        "guest memory is mapped from the file of a snapshot, where the kernel cannot note or hold \
         writes by userfaultfd; use the dirty log of KVM, or restore the guest in another mode"
    )]
    OfFile,
    /// A mapping could not be made.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// The size of the region.
        bytes: u64,
        /// The kernel's reason.
        source: MmapRegionError,
    },
    /// The regions contradict each other.
    #[error("cannot put guest memory together")]
    Collect(#[source] GuestRegionCollectionError),
    /// A region lies at the end of the address space.
    #[error("cannot put guest memory together")]
    Region(#[source] FromRangesError),
    /// The pages cannot be numbered.
    #[error("cannot number the pages of guest memory")]
    Space(#[from] godwit_uffd::guest::SpaceError),
    /// There is no userfaultfd, or it refused the memory.
    #[error(transparent)]
    Uffd(#[from] godwit_uffd::Error),
    /// Pages are still somewhere else.
    #[error("pages of the guest are still on their way here")]
    Incomplete,
    /// Another userfaultfd has the memory.
    #[error("writes to guest memory are being followed or held already")]
    AlreadyProtected,
    /// The kernel cannot tell which pages were written.
    #[error(
        "this kernel cannot follow writes by write-protection (WP_ASYNC and PAGEMAP_SCAN, \
         Linux 6.7); use the dirty log of KVM"
    )]
    CannotWatch(#[source] Option<godwit_uffd::Error>),
    /// The kernel refused an advice.
    #[error("madvise({advice}) failed on guest memory")]
    Advise {
        /// The name of the advice.
        advice: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A contiguous part of guest memory: one memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where we see it.
    pub hva: Hva,
    /// Its size in bytes, a multiple of the base page size.
    pub bytes: u64,
}

/// All memory of a guest.
pub struct GuestMemory {
    inner: GuestRam,
    regions: Vec<Region>,
    backing: Backing,
    /// It begins with what a file has.
    of_file: bool,
    incomplete: AtomicBool,
    held: AtomicBool,
}

impl GuestMemory {
    /// Maps `bytes` of memory for a guest. Nothing is touched, so nothing is allocated yet.
    ///
    /// # Errors
    /// [`MemoryError`]: an impossible size, too little memory on this host, or a refusal.
    pub fn create(bytes: u64, backing: Backing) -> Result<GuestMemory, MemoryError> {
        let file = if backing.kind().is_file() { Some(memfd(bytes, backing)?) } else { None };
        let source = file.as_ref().map_or(Source::Zeros, Source::Shared);
        GuestMemory::map(bytes, backing, &source)
    }

    /// Maps `bytes` of memory for a guest that begins with what `file` has: page `n` of the guest
    /// is page `n` of the file. What the guest writes is its own. Nothing is read before it is
    /// touched; a file that is written or cut off meanwhile takes the guest with it.
    ///
    /// # Errors
    /// [`MemoryError`], as for [`GuestMemory::create`].
    pub fn map_private(bytes: u64, file: &File) -> Result<GuestMemory, MemoryError> {
        GuestMemory::map(bytes, Backing::Anon, &Source::Private(file))
    }

    fn map(bytes: u64, backing: Backing, source: &Source<'_>) -> Result<GuestMemory, MemoryError> {
        let ranges = ranges(bytes, backing.page_size())?;
        if backing.kind().is_hugetlb() {
            huge_pages::check(bytes)?;
        } else {
            available::check(bytes)?;
        }
        let mut offset = 0;
        let mut mapped = Vec::new();
        for range in &ranges {
            let region =
                map(range.bytes, backing, source, offset).map_err(|error| match error {
                    // Somebody else took pages since they were counted, or a cgroup has a limit.
                    MemoryError::Map { source: MmapRegionError::Mmap(error), .. }
                        if lacks_huge_pages(backing, &error) =>
                    {
                        huge_pages::lacking(bytes)
                    }
                    error => error,
                })?;
            offset += range.bytes;
            let region = GuestRegionMmap::new(region, GuestAddress(range.gpa.0))
                .ok_or(MemoryError::Region(FromRangesError::InvalidGuestRegion))?;
            mapped.push(region);
        }
        let regions = mapped.iter().zip(&ranges);
        let regions = regions
            .map(|(map, range)| Region {
                gpa: range.gpa,
                hva: Hva(map.as_ptr() as u64),
                bytes: range.bytes,
            })
            .collect();
        let inner = GuestRam::from_regions(mapped).map_err(MemoryError::Collect)?;
        let (incomplete, held) = (AtomicBool::new(false), AtomicBool::new(false));
        let of_file = matches!(source, Source::Private(_));
        let memory = GuestMemory { inner, regions, backing, of_file, incomplete, held };
        // What a guest holds is nobody's business: keep it out of core dumps.
        memory.advise(Advice::DontDump)?;
        memory.allow_huge_pages()?;
        Ok(memory)
    }

    /// The memslots in address order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// What the memory is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The size of its pages: of those that are missing or there, and noted as written.
    pub fn page_size(&self) -> PageSize {
        self.backing.page_size()
    }

    /// The size of the memory in bytes, without the hole.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Access by guest physical address. A thread that touches a missing page waits for it.
    pub fn inner(&self) -> &GuestRam {
        &self.inner
    }

    /// Whether `bytes` bytes at `gpa` are memory of the guest.
    pub fn contains(&self, gpa: Gpa, bytes: u64) -> bool {
        self.regions.iter().any(|region| {
            gpa.0.checked_sub(region.gpa.0).is_some_and(|offset| {
                offset.checked_add(bytes).is_some_and(|end| end <= region.bytes)
            })
        })
    }

    /// Whether pages may be missing: from [`GuestMemory::register_missing`] until
    /// [`GuestMemory::set_complete`].
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Acquire)
    }

    /// Whether an access may wait for somebody: for a page that is missing, or to be allowed to
    /// write.
    pub fn may_wait(&self) -> bool {
        self.is_incomplete() || self.held.load(Ordering::Acquire)
    }

    /// Says whether writes are held, and returns whether they were.
    fn set_held(&self, held: bool) -> bool {
        self.held.swap(held, Ordering::AcqRel)
    }

    /// Says that every page is there, so that the memory is ordinary again, and allows huge pages.
    ///
    /// # Errors
    /// [`MemoryError::Advise`].
    pub fn set_complete(&self) -> Result<(), MemoryError> {
        self.incomplete.store(false, Ordering::Release);
        self.allow_huge_pages()
    }

    fn allow_huge_pages(&self) -> Result<(), MemoryError> {
        match self.backing {
            Backing::Anon => self.advise(Advice::HugePage),
            // Whether shared memory has huge pages is the host's setting; we have no say. The pool
            // has no others.
            Backing::Memfd | Backing::HugetlbAnon | Backing::HugetlbMemfd => Ok(()),
        }
    }

    /// Keeps the kernel from putting a huge page where one base page was installed, which would
    /// make up the other 511 as zeros. [`GuestMemory::register_missing`] does it, too.
    ///
    /// # Errors
    /// [`MemoryError::Advise`].
    pub fn forbid_huge_pages(&self) -> Result<(), MemoryError> {
        if self.backing.kind().is_hugetlb() {
            return Ok(());
        }
        self.advise(Advice::NoHugePage)
    }

    /// Takes the memory away, so that whoever waits for a missing page and is kicked waits no more,
    /// and reads zeros. For the end of a guest whose memory is incomplete, and only then: vCPUs and
    /// devices have been told to go, and what they do now means nothing.
    pub(crate) fn revoke(&self) {
        for region in &self.regions {
            if let Err(errno) = advice::revoke(region) {
                tracing::error!("cannot take guest memory away: {errno}");
            }
        }
    }

    fn advise(&self, advice: Advice) -> Result<(), MemoryError> {
        self.regions.iter().try_for_each(|region| advice::apply(region, advice))
    }
}

fn memfd(bytes: u64, backing: Backing) -> Result<File, MemoryError> {
    let failed = |errno: rustix::io::Errno| MemoryError::Memfd { bytes, source: errno.into() };
    let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = if backing.kind().is_hugetlb() { huge } else { MemfdFlags::empty() };
    let fd = rustix::fs::memfd_create("godwit-guest", MemfdFlags::CLOEXEC | huge);
    let fd = fd.map_err(failed)?;
    rustix::fs::ftruncate(&fd, bytes).map_err(failed)?;
    Ok(File::from(fd))
}

/// Where memory comes from when it is first touched.
enum Source<'a> {
    /// It is zero, and private.
    Zeros,
    /// The file, which takes what is written.
    Shared(&'a File),
    /// The file, which is not changed.
    Private(&'a File),
}

fn map(
    bytes: u64,
    backing: Backing,
    source: &Source<'_>,
    offset: u64,
) -> Result<MmapRegion<AtomicBitmap>, MemoryError> {
    let page_size = backing.page_size();
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Size { bytes, page_size })?;
    let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let (file, flags) = match source {
        Source::Zeros => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        Source::Shared(file) => (Some(file), libc::MAP_SHARED),
        Source::Private(file) => (Some(file), libc::MAP_PRIVATE),
    };
    // Huge pages are reserved here: whoever touches one that is not to be had dies of it.
    let pages = match (backing.kind().is_hugetlb(), file) {
        (false, _) => libc::MAP_NORESERVE,
        (true, None) => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        (true, Some(_)) => 0,
    };
    let builder = match file {
        Some(file) => {
            let file = file.try_clone().map_err(|source| MemoryError::File { bytes, source })?;
            builder.with_file_offset(FileOffset::new(file, offset))
        }
        None => builder,
    };
    let builder = builder.with_mmap_flags(flags | pages);
    builder.build().map_err(|source| MemoryError::Map { bytes, source })
}

fn lacks_huge_pages(backing: Backing, error: &io::Error) -> bool {
    backing.kind().is_hugetlb() && error.raw_os_error() == Some(libc::ENOMEM)
}
