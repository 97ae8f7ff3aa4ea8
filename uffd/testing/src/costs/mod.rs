//! What the calls of a userfaultfd cost: the same work on the same kind of memory, on the running
//! kernel and on the model, in turns.

mod load;
mod table;

use godwit_uffd::abi::{Answer, Call};
use godwit_uffd::features::RegisterMode;
use godwit_uffd::memory::MemoryKind;

use crate::world::{Advice, BASE_PAGE};

pub use load::Load;
pub use table::{Record, Table};

/// A call whose cost is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// COPY into holes.
    Copy,
    /// ZEROPAGE into holes.
    Zeropage,
    /// CONTINUE of pages that the page cache has and no page table does.
    Continue,
    /// POISON of holes.
    Poison,
    /// WRITEPROTECT of pages that are there.
    Protect,
    /// The same back.
    Unprotect,
    /// MOVE of pages into holes.
    Move,
    /// WAKE where nobody waits.
    Wake,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 8] = [
        Work::Copy,
        Work::Zeropage,
        Work::Continue,
        Work::Poison,
        Work::Protect,
        Work::Unprotect,
        Work::Move,
        Work::Wake,
    ];

    /// The name of its ioctl, with the mode where it has two.
    pub const fn name(self) -> &'static str {
        match self {
            Work::Copy => "COPY",
            Work::Zeropage => "ZEROPAGE",
            Work::Continue => "CONTINUE",
            Work::Poison => "POISON",
            Work::Protect => "WRITEPROTECT set",
            Work::Unprotect => "WRITEPROTECT clear",
            Work::Move => "MOVE",
            Work::Wake => "WAKE",
        }
    }

    /// The kernel does it on such memory.
    pub const fn works_on(self, kind: MemoryKind) -> bool {
        match self {
            Work::Zeropage => !kind.is_hugetlb(),
            Work::Continue => kind.is_file(),
            Work::Move => matches!(kind, MemoryKind::Anonymous),
            _ => true,
        }
    }
}

/// Where memory was mapped for a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the places are made of.
    pub kind: MemoryKind,
    /// The place that is worked on, registered for all modes of its kind, all holes.
    pub place: u64,
    /// Such a place once more, of anonymous memory of base pages, to move between.
    pub other: Option<u64>,
    /// Memory with pages that is not registered, to copy from.
    pub source: u64,
}

impl Layout {
    /// Bytes of a page of a place.
    pub const fn page(&self) -> u64 {
        page_bytes(self.kind)
    }

    /// Bytes of a place.
    pub const fn bytes(&self) -> u64 {
        place_bytes(self.kind)
    }
}

/// Memory with a userfaultfd, on one machine or another.
pub trait Ground {
    /// Where it is.
    fn layout(&self) -> Layout;
    /// Calls an ioctl.
    fn call(&self, call: Call) -> Answer;
    /// Calls madvise, which must succeed.
    fn advise(&self, start: u64, bytes: u64, advice: Advice);
}

/// Bytes of a page of this kind of memory.
pub(crate) const fn page_bytes(kind: MemoryKind) -> u64 {
    if kind.is_hugetlb() { HUGE_PAGE } else { BASE_PAGE }
}

/// Bytes of a place.
pub(crate) const fn place_bytes(kind: MemoryKind) -> u64 {
    if kind.is_hugetlb() { HUGE_PLACE_PAGES * HUGE_PAGE } else { PLACE_PAGES * BASE_PAGE }
}

/// Bytes of the source: the largest batch.
pub(crate) const fn source_bytes(kind: MemoryKind) -> u64 {
    if kind.is_hugetlb() { HUGE_PLACE_PAGES * HUGE_PAGE } else { SOURCE_PAGES * BASE_PAGE }
}

/// All that such memory can be registered for.
pub(crate) fn modes(kind: MemoryKind) -> RegisterMode {
    let mut modes = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
    modes.set(RegisterMode::MINOR, kind.is_file());
    modes
}

/// Pages per call that are measured.
pub const fn batches(kind: MemoryKind) -> &'static [u64] {
    if kind.is_hugetlb() { &[1, HUGE_PLACE_PAGES] } else { &[1, 8, 64, SOURCE_PAGES] }
}

pub(crate) const HUGE_PAGE: u64 = 2 << 20;
/// Two page tables' worth, so that tables are made too.
const PLACE_PAGES: u64 = 1024;
/// The pages that one page table maps.
const SOURCE_PAGES: u64 = 512;
/// Enough to be more than a processor's cache, and little enough for a pool.
pub(crate) const HUGE_PLACE_PAGES: u64 = 8;
