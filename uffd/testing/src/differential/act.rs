//! What is done to both worlds: acts with places instead of addresses, so that a case can be read
//! and any act can be left out of it.
//!
//! The `Debug` form of an act is a Rust expression, which is how cases are kept as regressions.

use godwit_uffd::abi::Call;

use crate::world::{Access, Advice, BASE_PAGE, Placement};

/// Where the areas begin.
const BASE: u64 = 0x2100_0000_0000;
/// Pages from one small area to the next in the same page table.
const PITCH: u64 = 16;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

/// Small areas of 8 pages; the first six share a page table.
pub const SMALL: u8 = 8;
/// Areas for hugetlb memory: from [`SMALL`] on.
pub const FIRST_HUGETLB: u8 = SMALL;
/// Areas for transparent huge pages.
pub const FIRST_TRANSPARENT: u8 = FIRST_HUGETLB + 2;
/// All areas.
pub const AREAS: u8 = FIRST_TRANSPARENT + 2;

/// Base pages of one unit of an area. Places in an area count its units.
#[must_use]
pub fn unit(area: u8) -> u64 {
    match area {
        FIRST_TRANSPARENT.. => HUGE / BASE_PAGE / 2,
        FIRST_HUGETLB.. => HUGE / BASE_PAGE,
        _ => 1,
    }
}

/// Units of an area.
#[must_use]
pub fn units(area: u8) -> u8 {
    match area {
        FIRST_TRANSPARENT.. => 4,
        FIRST_HUGETLB.. => 2,
        _ => 8,
    }
}

/// The address of a unit, which may be behind the end of its area.
#[must_use]
pub fn address(area: u8, page: u8) -> u64 {
    let start = match area {
        FIRST_TRANSPARENT.. => BASE + (24 + 4 * u64::from(area - FIRST_TRANSPARENT)) * HUGE,
        FIRST_HUGETLB.. => BASE + (8 + 4 * u64::from(area - FIRST_HUGETLB)) * HUGE,
        6.. => BASE + u64::from(area - 5) * HUGE,
        _ => BASE + u64::from(area) * PITCH * BASE_PAGE,
    };
    start + u64::from(page) * unit(area) * BASE_PAGE
}

/// A range: an area, its first unit, and how many. It may reach beyond the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The area.
    pub area: u8,
    /// The first unit.
    pub page: u8,
    /// How many units.
    pub pages: u8,
}

impl Span {
    /// Its first byte.
    #[must_use]
    pub fn start(self) -> u64 {
        address(self.area, self.page)
    }

    /// Its base pages.
    #[must_use]
    pub fn base_pages(self) -> u64 {
        u64::from(self.pages) * unit(self.area)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.base_pages() * BASE_PAGE
    }
}

/// How an argument is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Odd {
    No,
    StartNotAligned,
    LengthNotAligned,
    LengthZero,
    LengthWraps,
    SmallPage,
    SourceNotAligned,
    SourceOutside,
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the calls")]
pub enum Number {
    Api,
    Register,
    Unregister,
    Wake,
    Copy,
    Zeropage,
    Move,
    WriteProtect,
    Continue,
    Poison,
    Other,
}

/// What an area is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the kinds of memory")]
pub enum Memory {
    Anonymous,
    SharedAnonymous,
    /// The file with this number, shared or private.
    Shmem {
        file: u8,
        shared: bool,
    },
    Hugetlb,
    /// The hugetlb file, shared or private.
    HugetlbFile {
        shared: bool,
    },
    Transparent,
}

/// How one byte is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the ways to touch")]
pub enum How {
    Load,
    Store,
    KernelLoad,
    KernelStore,
}

/// One thing that is done. Processes, descriptors, tickets and files are counted from 0 in the
/// order in which they came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the world's methods")]
pub enum Act {
    Map {
        process: u8,
        area: u8,
        memory: Memory,
        access: Access,
    },
    Unmap {
        process: u8,
        at: Span,
    },
    Protect {
        process: u8,
        at: Span,
        access: Access,
    },
    Advise {
        process: u8,
        at: Span,
        advice: Advice,
    },
    Remap {
        process: u8,
        from: Span,
        to: u8,
        new_pages: u8,
        dont_unmap: bool,
    },
    Lock {
        process: u8,
        at: Span,
        locked: bool,
    },
    Fork {
        process: u8,
    },
    Exit {
        process: u8,
    },
    Open {
        process: u8,
        features: u64,
        user_mode_only: bool,
    },
    Close {
        fd: u8,
    },
    Call {
        process: u8,
        fd: u8,
        number: Number,
        at: Span,
        from: (u8, u8),
        mode: u64,
        odd: Odd,
        placement: Placement,
    },
    Read {
        fd: u8,
        messages: u8,
    },
    Touch {
        process: u8,
        area: u8,
        page: u8,
        exact: bool,
        how: How,
    },
    Interrupt {
        ticket: u8,
    },
    Scan {
        process: u8,
        at: Span,
        flags: u64,
        mask: u64,
    },
    FileStore {
        file: u8,
        page: u8,
    },
    FilePunch {
        file: u8,
        page: u8,
    },
    FileTruncate {
        file: u8,
        pages: u8,
    },
}

/// The byte in its page of an exact touch.
const EXACT: u64 = 0x123;

/// Where a touch goes.
#[must_use]
pub fn touched(area: u8, page: u8, exact: bool) -> u64 {
    address(area, page) + if exact { EXACT } else { 0 }
}

/// What a store to a page stores. Two threads that store to one page store the same, so that the
/// order in which they are woken does not show.
#[must_use]
pub fn byte(page: u8) -> u8 {
    0x10 + page
}

/// The call that an act stands for.
#[must_use]
pub fn call(number: Number, at: Span, from: (u8, u8), mode: u64, odd: Odd) -> Call {
    let mut start = at.start();
    let mut len = at.bytes();
    let mut src = address(from.0, from.1);
    match odd {
        Odd::No => {}
        Odd::StartNotAligned => start += 0x10,
        Odd::LengthNotAligned => len += 0x10,
        Odd::LengthZero => len = 0,
        Odd::LengthWraps => len = 0_u64.wrapping_sub(BASE_PAGE),
        Odd::SmallPage => len = BASE_PAGE,
        Odd::SourceNotAligned => src += EXACT,
        Odd::SourceOutside => src = 1 << 55,
    }
    match number {
        Number::Api => Call::Api { api: if mode == 1 { 0xAB } else { 0xAA }, features: mode & !1 },
        Number::Register => Call::Register { start, len, mode },
        Number::Unregister => Call::Unregister { start, len },
        Number::Wake => Call::Wake { start, len },
        Number::Copy => Call::Copy { dst: start, src, len, mode },
        Number::Zeropage => Call::Zeropage { start, len, mode },
        Number::Move => Call::Move { dst: start, src, len, mode },
        Number::WriteProtect => Call::WriteProtect { start, len, mode },
        Number::Continue => Call::Continue { start, len, mode },
        Number::Poison => Call::Poison { start, len, mode },
        Number::Other => Call::Other { number: 0x40 + mode },
    }
}
