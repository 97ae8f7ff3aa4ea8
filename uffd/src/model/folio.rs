//! Pages of memory. A folio is one page, or the 512 pages of a huge page.

use super::frames::Frame;
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
    /// `None` while all bytes are zero.
    bytes: Mutex<Option<Frame>>,
}

impl Folio {
    fn new(anonymous: bool, pages: u16, bytes: Option<Frame>) -> Folio {
        Folio {
            anonymous,
            pages,
            pins: AtomicU32::new(0),
            merged: AtomicBool::new(false),
            first_exclusive: AtomicBool::new(true),
            lock: PageLock::default(),
            charge: None,
            bytes: Mutex::new(bytes),
        }
    }

    /// A page of zeros.
    pub(super) fn zeroed(anonymous: bool) -> Folio {
        Folio::new(anonymous, 1, None)
    }

    /// A huge page of zeros.
    pub(super) fn zeroed_huge(anonymous: bool) -> Folio {
        Folio::new(anonymous, 512, None)
    }

    /// A page, or a huge page, with bytes.
    pub(super) fn filled(anonymous: bool, bytes: Frame) -> Folio {
        let pages = if bytes.len() == PAGE_BYTES { 1 } else { 512 };
        assert_eq!(bytes.len(), PAGE_BYTES * usize::from(pages), "a folio is one page or 512");
        Folio::new(anonymous, pages, Some(bytes))
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
        Folio::new(true, 1, self.page_bytes(index))
    }

    /// All bytes; `None` if they are zeros.
    pub(super) fn all_bytes(&self) -> Option<Frame> {
        self.bytes.lock().as_deref().map(Frame::copy_of)
    }

    fn page_bytes(&self, index: u16) -> Option<Frame> {
        let at = usize::from(index) * PAGE_BYTES;
        self.bytes.lock().as_ref().map(|bytes| Frame::copy_of(&bytes[at..at + PAGE_BYTES]))
    }

    /// The byte at `at`, counted from the folio's first.
    pub(super) fn load(&self, at: usize) -> u8 {
        self.bytes.lock().as_ref().map_or(0, |bytes| bytes[at])
    }

    /// Copies bytes out.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        match self.bytes.lock().as_ref() {
            Some(bytes) => into.copy_from_slice(&bytes[at..at + into.len()]),
            None => into.fill(0),
        }
    }

    /// Stores bytes.
    pub(super) fn write(&self, at: usize, from: &[u8]) {
        let mut bytes = self.bytes.lock();
        let length = usize::from(self.pages) * PAGE_BYTES;
        let bytes = bytes.get_or_insert_with(|| Frame::zeroed(length));
        bytes[at..at + from.len()].copy_from_slice(from);
    }

    /// One page holds nothing but zeros.
    pub(super) fn page_is_zero(&self, index: u16) -> bool {
        self.page_bytes(index).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    /// One page of this holds the same bytes as one of another.
    pub(super) fn page_equals(&self, index: u16, other: &Folio, other_index: u16) -> bool {
        let zeros = || Frame::zeroed(PAGE_BYTES);
        let mine = self.page_bytes(index).unwrap_or_else(zeros);
        *mine == *other.page_bytes(other_index).unwrap_or_else(zeros)
    }

    /// A device may be writing to it.
    pub(super) fn maybe_pinned(&self) -> bool {
        self.pins.load(Ordering::SeqCst) > 0
    }
}
