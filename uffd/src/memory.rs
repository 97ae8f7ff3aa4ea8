//! Kinds of memory, as far as userfaultfd tells them apart.

use std::fmt;

use crate::page::PageSize;

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryKind {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd, mapped shared.
    Memfd,
    /// Private anonymous memory of huge pages from the pool.
    HugetlbAnonymous,
    /// A memfd of huge pages from the pool, mapped shared.
    HugetlbMemfd,
}

impl MemoryKind {
    /// All of them.
    pub const ALL: [MemoryKind; 4] = [
        MemoryKind::Anonymous,
        MemoryKind::Memfd,
        MemoryKind::HugetlbAnonymous,
        MemoryKind::HugetlbMemfd,
    ];

    /// Made of huge pages from the pool.
    pub const fn is_hugetlb(self) -> bool {
        matches!(self, MemoryKind::HugetlbAnonymous | MemoryKind::HugetlbMemfd)
    }

    /// Has a page cache that other mappings can fill.
    pub const fn is_file(self) -> bool {
        matches!(self, MemoryKind::Memfd | MemoryKind::HugetlbMemfd)
    }

    /// The size of the pages that are installed: nothing smaller can be.
    pub const fn page_size(self) -> PageSize {
        if self.is_hugetlb() { PageSize::HUGE } else { PageSize::BASE }
    }

    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryKind::Anonymous => "anonymous",
            MemoryKind::Memfd => "memfd",
            MemoryKind::HugetlbAnonymous => "hugetlb",
            MemoryKind::HugetlbMemfd => "hugetlb memfd",
        }
    }
}

/// As many zeros as the largest page has. Nobody writes them, so they cost no memory.
pub(crate) static ZEROS: [u8; PageSize::HUGE.bytes()] = [0; PageSize::HUGE.bytes()];

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} memory", self.name())
    }
}
