//! Addresses, pages and runs of pages. Every shift between bytes and pages is in this file.

use std::fmt;

/// A guest physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A host virtual address in this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub u64);

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}", self.0)
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hva {:#x}", self.0)
    }
}

/// The position of a page among all pages of a guest, counted over its memslots in address order:
/// holes between memslots have no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// Consecutive pages: `count` pages from `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// The first page of the run.
    pub first: PageIndex,
    /// The number of pages; never more than fit behind `first` in the index space.
    pub count: u32,
}

impl PageRun {
    /// A run of one page.
    pub const fn one(page: PageIndex) -> PageRun {
        PageRun { first: page, count: 1 }
    }

    /// The index behind the last page, as 64 bits so that it cannot overflow.
    pub const fn end(self) -> u64 {
        self.first.0 as u64 + self.count as u64
    }

    /// The run without its first `count` pages, of which it has as many.
    #[must_use]
    pub const fn without(self, count: u32) -> PageRun {
        PageRun { first: PageIndex(self.first.0 + count), count: self.count - count }
    }

    /// The first `count` pages of the run, of which it has as many.
    #[must_use]
    pub const fn first_pages(self, count: u32) -> PageRun {
        PageRun { first: self.first, count }
    }

    /// The pages that both runs have, or `None` if there is none.
    pub fn intersection(self, other: PageRun) -> Option<PageRun> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        let count = u32::try_from(end.checked_sub(u64::from(first.0))?).ok()?;
        (count > 0).then_some(PageRun { first, count })
    }

    /// The pages of the run, in order.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (0..self.count).map(move |i| PageIndex(self.first.0 + i))
    }
}

impl fmt::Display for PageRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.first.0, self.end())
    }
}

/// The size of a page: a power of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// The base page, 4 KiB.
    pub const BASE: PageSize = PageSize { shift: 12 };
    /// The huge page, 2 MiB.
    pub const HUGE: PageSize = PageSize { shift: 21 };

    /// All sizes of pages that memory can be made of.
    pub const ALL: [PageSize; 2] = [PageSize::BASE, PageSize::HUGE];

    /// The size of `bytes` bytes, if memory can be made of such pages.
    pub fn of(bytes: u64) -> Option<PageSize> {
        PageSize::ALL.into_iter().find(|size| size.bytes() as u64 == bytes)
    }

    /// Bytes in one page.
    pub const fn bytes(self) -> usize {
        1 << self.shift
    }

    /// Bytes in `count` pages.
    pub const fn bytes_of(self, count: u32) -> u64 {
        (count as u64) << self.shift
    }

    /// Bytes in `count` pages, as the length of a slice.
    pub const fn length_of(self, count: u32) -> usize {
        (count as usize) << self.shift
    }

    /// `value` is a multiple of the page size.
    pub const fn divides(self, value: u64) -> bool {
        value & (self.bytes() as u64 - 1) == 0
    }

    /// The number of `smaller` pages that make up one page of this size.
    pub const fn in_units_of(self, smaller: PageSize) -> u32 {
        1 << (self.shift - smaller.shift)
    }

    /// Whole pages in `bytes`, or `None` if `bytes` is not a multiple of the page size or the
    /// count does not fit an index.
    pub fn pages_in(self, bytes: u64) -> Option<u32> {
        if !self.divides(bytes) {
            return None;
        }
        u32::try_from(bytes >> self.shift).ok()
    }

    /// Pages that lie wholly or partly in the first `offset` bytes of a region, rounded down:
    /// the index inside a region of the page that holds byte `offset`.
    pub fn index_at(self, offset: u64) -> Option<u32> {
        u32::try_from(offset >> self.shift).ok()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shift {
            0..10 => write!(f, "{} B", self.bytes()),
            10..20 => write!(f, "{} KiB", self.bytes() >> 10),
            _ => write!(f, "{} MiB", self.bytes() >> 20),
        }
    }
}
