//! Pages of memory. A folio is one page, or the 512 pages of a huge page.

use super::contents::{Contents, PageBytes};
use super::hugetlb::Charge;
use super::sync::{AtomicBool, AtomicU32, Mutex, Ordering, PageLock};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a huge page, and of what one page table maps.
pub const HUGE: u64 = 2 << 20;
/// Pages of a huge page, and entries of a page table.
pub const PAGES_PER_HUGE: u64 = HUGE / PAGE;

pub(super) const PAGE_BYTES: usize = 4096;

/// Memory that entries of page tables, page caches and swap entries refer to.
#[derive(Debug)]
pub(super) struct Folio {
    /// It belongs to address spaces and not to a file.
    pub(super) anonymous: bool,
    /// Its pages: 1 or 512.
    pub(super) pages: u16,
    /// Long-term pins. A pinned folio is neither moved nor swapped out, and fork copies it.
    pub(super) pins: AtomicU32,
    /// It was merged with equal pages; a write always copies it.
    pub(super) merged: AtomicBool,
    /// Its first page is one address space's alone, or was when it was mapped last. MOVE goes by
    /// this for all parts of a huge page (`PageAnonExclusive` of `folio->page`).
    pub(super) first_exclusive: AtomicBool,
    /// The page lock.
    pub(super) lock: PageLock,
    /// The page of the pool that it takes up.
    charge: Option<Charge>,
    contents: Mutex<Contents>,
}

impl Folio {
    /// A page, or a huge page, that holds this.
    pub(super) fn new(anonymous: bool, contents: Contents) -> Folio {
        Folio {
            anonymous,
            pages: u16::try_from(contents.pages().len()).expect("1 or 512"),
            pins: AtomicU32::new(0),
            merged: AtomicBool::new(false),
            first_exclusive: AtomicBool::new(true),
            lock: PageLock::default(),
            charge: None,
            contents: Mutex::new(contents),
        }
    }

    /// A page of zeros.
    pub(super) fn zeroed(anonymous: bool) -> Folio {
        Folio::new(anonymous, Contents::zeros(PAGE_BYTES))
    }

    /// A huge page of zeros.
    pub(super) fn zeroed_huge(anonymous: bool) -> Folio {
        Folio::new(anonymous, Contents::zeros(PAGE_BYTES * 512))
    }

    /// The folio as one that takes up a page of the pool.
    pub(super) fn charged(self, charge: Charge) -> Folio {
        Folio { charge: Some(charge), ..self }
    }

    /// It takes up a page of the pool.
    pub(super) fn is_charged(&self) -> bool {
        self.charge.is_some()
    }

    /// A copy, for this address space alone, of one page.
    pub(super) fn copy_of_page(&self, index: u16) -> Folio {
        Folio::new(true, Contents::Page(self.page(index)))
    }

    /// A copy of what it holds.
    pub(super) fn contents(&self) -> Contents {
        self.contents.lock().clone()
    }

    fn page(&self, index: u16) -> PageBytes {
        self.contents.lock().pages()[usize::from(index)].clone()
    }

    /// The byte at `at`, counted from the folio's first.
    pub(super) fn load(&self, at: usize) -> u8 {
        let mut byte = [0];
        self.read(at, &mut byte);
        byte[0]
    }

    /// Copies bytes out.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        self.contents.lock().read(at, into);
    }

    /// Copies bytes of one page, `length` from `from` on, into other contents at `at`.
    pub(super) fn give(&self, from: usize, length: usize, into: &mut Contents, at: usize) {
        into.take(at, length, Some(&self.contents.lock()), from);
    }

    /// Stores bytes.
    pub(super) fn write(&self, at: usize, from: &[u8]) {
        self.contents.lock().write(at, from);
    }

    /// One page holds nothing but zeros.
    pub(super) fn page_is_zero(&self, index: u16) -> bool {
        self.page(index).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    /// One page of this holds the same bytes as one of another.
    pub(super) fn page_equals(&self, index: u16, other: &Folio, other_index: u16) -> bool {
        match (self.page(index), other.page(other_index)) {
            (Some(mine), Some(others)) => **mine == **others,
            (None, _) => other.page_is_zero(other_index),
            (_, None) => self.page_is_zero(index),
        }
    }

    /// A device may be writing to it.
    pub(super) fn maybe_pinned(&self) -> bool {
        self.pins.load(Ordering::SeqCst) > 0
    }
}
