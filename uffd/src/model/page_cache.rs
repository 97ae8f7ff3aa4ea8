//! Memory files and their page caches: for each page of a file nothing, a page, or a page that
//! was swapped out, which counts as there.

use std::collections::BTreeMap;
use std::sync::Weak;

use super::FileId;
use super::address_space::AddressSpace;
use super::folio::{Folio, PAGES_PER_HUGE};
use super::hugetlb::{Pool, Reservation};
use super::page_table::{Bits, Mapped};
use super::sync::{Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering};

/// The kind of a file, and of the memory that maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A memfd, or what shared anonymous memory is made of.
    Shmem,
    /// Huge pages from the pool.
    Hugetlb,
    /// A file of a regular file system.
    Regular,
    /// memfd_secret.
    Secret,
    /// A guest_memfd that can be mapped and was shared from the start.
    GuestMemory,
}

/// A page of a page cache.
#[derive(Clone, Debug)]
pub(super) struct CachePage {
    /// The folio that it is in.
    pub(super) folio: Arc<Folio>,
    /// Which page of the folio it is.
    pub(super) index: u16,
    /// It was written to swap.
    pub(super) swapped: bool,
}

impl CachePage {
    /// A page in memory: the first of its folio.
    pub(super) fn new(folio: Arc<Folio>) -> CachePage {
        CachePage { folio, index: 0, swapped: false }
    }

    /// An entry that maps it.
    pub(super) fn mapped(&self, bits: Bits) -> Mapped {
        Mapped { folio: self.folio.clone(), index: self.index, bits }
    }
}

/// The pages of a file, by their number in the file.
pub(super) type Cache = BTreeMap<u64, CachePage>;

/// A file in memory.
#[derive(Debug)]
pub(super) struct MemoryFile {
    /// Its number.
    pub(super) id: FileId,
    /// Its kind.
    pub(super) kind: FileKind,
    /// Its size in base pages. It only shrinks under the lock of the cache.
    pages: AtomicU64,
    /// No new mapping may write to it.
    pub(super) write_sealed: AtomicBool,
    cache: Mutex<Cache>,
    /// The address spaces that have mapped it.
    mappings: Mutex<Vec<Weak<AddressSpace>>>,
}

impl MemoryFile {
    /// A file of `pages` base pages, all holes.
    pub(super) fn new(id: FileId, kind: FileKind, pages: u64) -> MemoryFile {
        MemoryFile {
            id,
            kind,
            pages: AtomicU64::new(pages),
            write_sealed: AtomicBool::new(false),
            cache: Mutex::default(),
            mappings: Mutex::default(),
        }
    }

    /// The size in base pages.
    pub(super) fn pages(&self) -> u64 {
        self.pages.load(Ordering::SeqCst)
    }

    /// Sets the size; the caller holds the cache where it shrinks.
    pub(super) fn set_pages(&self, pages: u64) {
        self.pages.store(pages, Ordering::SeqCst);
    }

    /// Takes the lock of the page cache. Page-table locks are taken under it.
    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock()
    }

    /// Base pages between two pages that can be cached: 1, or 512 for hugetlb.
    pub(super) fn pages_per_page(&self) -> u64 {
        if self.kind == FileKind::Hugetlb { PAGES_PER_HUGE } else { 1 }
    }

    /// A new page of zeros for this file; `None` if the pool of huge pages is empty.
    pub(super) fn new_folio(
        &self,
        pool: &Arc<Pool>,
        reservation: Option<&Arc<Reservation>>,
        anonymous: bool,
    ) -> Option<Folio> {
        match self.kind {
            FileKind::Hugetlb => Pool::take(pool, reservation, anonymous, None),
            _ => Some(Folio::zeroed(anonymous)),
        }
    }

    /// Remembers an address space that maps the file.
    pub(super) fn add_mapping(&self, space: &Arc<AddressSpace>) {
        let mut mappings = self.mappings.lock();
        mappings.retain(|other| other.strong_count() > 0);
        if !mappings.iter().any(|other| other.as_ptr() == Arc::as_ptr(space)) {
            mappings.push(Arc::downgrade(space));
        }
    }

    /// The address spaces that may map the file.
    pub(super) fn mapped_by(&self) -> Vec<Arc<AddressSpace>> {
        self.mappings.lock().iter().filter_map(Weak::upgrade).collect()
    }
}
