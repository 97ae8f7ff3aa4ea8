//! Cases on which the running kernel and the model once differed, as the random test printed them.

use godwit_uffd_testing::differential::act::Act::{self, *};
use godwit_uffd_testing::differential::act::How::*;
use godwit_uffd_testing::differential::act::Memory::*;
use godwit_uffd_testing::differential::act::Number::{self, *};
use godwit_uffd_testing::differential::act::Odd::*;
use godwit_uffd_testing::differential::act::Span;
use godwit_uffd_testing::world::Access::{self, ReadWrite};
use godwit_uffd_testing::world::Advice;
use godwit_uffd_testing::world::Placement::Ordinary;

/// All of them.
pub const CASES: &[&[Act]] = &[
    MOVED_PIECES,
    FORGOTTEN_NEIGHBOURS,
    SPLIT_HUGE_PAGE,
    MAPPED_AROUND,
    PREPARED_BEFORE_WAIT,
    WRITABLE_AND_LOCKED,
    REMOVED_UNDER_ANOTHER,
    LOCKED_PIECES_OF_A_CHILD,
    REGISTERED_PIECES_OF_A_CHILD,
    MOVED_UNTIL_ONE_IS_REGISTERED,
    COUNTED_AND_NOT_COUNTED,
    CHILD_OF_A_CLOSED_DESCRIPTOR,
    GUARD_THAT_MOVED_AWAY,
    PARTS_IN_TWO_TABLES,
    SCANNED_MARKERS,
    GROUP_OF_A_NEIGHBOUR,
    HEAD_THAT_WAS_UNMAPPED,
    PART_OF_A_HUGE_PAGE_SCANNED,
    EXIT_UNDER_A_CALL,
    ZEROS_IN_LOCKED_MEMORY,
];

const fn register(fd: u8, area: u8, page: u8, pages: u8, mode: u64) -> Act {
    call(fd, Register, Span { area, page, pages }, mode)
}

const fn call(fd: u8, number: Number, at: Span, mode: u64) -> Act {
    let (odd, placement) = (No, Ordinary);
    Call { process: 0, fd, number, at, from: (0, 0), mode, odd, placement }
}

/// mremap of a range that ends behind its VMA.
const MOVED_PIECES: &[Act] = &[
    Map { process: 0, area: 3, memory: Anonymous, access: ReadWrite },
    Remap {
        process: 0,
        from: Span { area: 3, page: 6, pages: 3 },
        to: 5,
        new_pages: 3,
        dont_unmap: false,
    },
];

/// A moved page takes the registration of the memory around it along.
const FORGOTTEN_NEIGHBOURS: &[Act] = &[
    Map { process: 0, area: 3, memory: Anonymous, access: ReadWrite },
    Map { process: 0, area: 1, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 1, 0, 8, 3),
    register(0, 3, 0, 8, 3),
    Remap {
        process: 0,
        from: Span { area: 1, page: 3, pages: 1 },
        to: 3,
        new_pages: 1,
        dont_unmap: true,
    },
    Touch { process: 0, area: 3, page: 5, exact: false, how: Store },
];

/// REGISTER splits a VMA, and with it a huge page.
const SPLIT_HUGE_PAGE: &[Act] = &[
    Map { process: 0, area: 11, memory: Transparent, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    Touch { process: 0, area: 11, page: 0, exact: false, how: Store },
    register(0, 11, 1, 1, 1),
];

/// A read maps the cached pages around it before it waits for its own.
const MAPPED_AROUND: &[Act] = &[
    Map { process: 0, area: 0, memory: Shmem { file: 0, shared: false }, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: true },
    register(0, 0, 0, 8, 1),
    FileStore { file: 0, page: 3 },
    Touch { process: 0, area: 0, page: 2, exact: false, how: Load },
];

/// A write that waits has prepared its memory for anonymous pages, which a fork then copies.
const PREPARED_BEFORE_WAIT: &[Act] = &[
    Map { process: 0, area: 3, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 3, 0, 8, 3),
    Touch { process: 0, area: 3, page: 1, exact: false, how: Store },
    Touch { process: 0, area: 3, page: 6, exact: false, how: Load },
    Fork { process: 0 },
];

/// Locked memory that becomes writable gets its pages at once.
const WRITABLE_AND_LOCKED: &[Act] = &[
    Map { process: 0, area: 1, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 1, 0, 1, 1),
    Lock { process: 0, at: Span { area: 1, page: 0, pages: 8 }, locked: true },
    Protect { process: 0, at: Span { area: 1, page: 6, pages: 1 }, access: Access::None },
    Protect { process: 0, at: Span { area: 1, page: 0, pages: 11 }, access: ReadWrite },
];

/// MADV_REMOVE removes the pages of the file that it began with, whatever is mapped by then.
const REMOVED_UNDER_ANOTHER: &[Act] = &[
    Map { process: 0, area: 1, memory: Shmem { file: 0, shared: true }, access: ReadWrite },
    Open { process: 0, features: 8, user_mode_only: false },
    register(0, 1, 0, 8, 1),
    FileStore { file: 0, page: 7 },
    Advise { process: 0, at: Span { area: 1, page: 7, pages: 8 }, advice: Advice::Remove },
    Map { process: 0, area: 1, memory: Anonymous, access: ReadWrite },
    Read { fd: 0, messages: 16 },
];

/// A child's memory is not locked, but stays in the pieces that the lock has made.
const LOCKED_PIECES_OF_A_CHILD: &[Act] = &[
    Map { process: 0, area: 7, memory: Shmem { file: 1, shared: true }, access: ReadWrite },
    FileStore { file: 1, page: 2 },
    Lock { process: 0, at: Span { area: 7, page: 4, pages: 1 }, locked: true },
    Fork { process: 0 },
    Protect { process: 1, at: Span { area: 7, page: 1, pages: 11 }, access: ReadWrite },
    Touch { process: 1, area: 7, page: 4, exact: false, how: Load },
];

/// The same of memory that is registered in the parent only.
const REGISTERED_PIECES_OF_A_CHILD: &[Act] = &[
    Map { process: 0, area: 7, memory: Shmem { file: 1, shared: true }, access: ReadWrite },
    FileStore { file: 1, page: 2 },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 7, 0, 3, 4),
    register(0, 7, 4, 4, 4),
    Fork { process: 0 },
    Protect { process: 1, at: Span { area: 7, page: 4, pages: 1 }, access: ReadWrite },
    Advise { process: 1, at: Span { area: 7, page: 6, pages: 2 }, advice: Advice::PopulateRead },
];

/// mremap of several VMAs fails at a later one and tells of what was in the way of the first.
const MOVED_UNTIL_ONE_IS_REGISTERED: &[Act] = &[
    Map { process: 0, area: 7, memory: Anonymous, access: ReadWrite },
    Map { process: 0, area: 0, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 64, user_mode_only: true },
    register(0, 0, 0, 8, 3),
    register(0, 7, 5, 3, 1),
    Remap {
        process: 0,
        from: Span { area: 7, page: 3, pages: 3 },
        to: 0,
        new_pages: 3,
        dont_unmap: false,
    },
    Read { fd: 0, messages: 16 },
];

/// Memory that became read-only without pages is no longer counted, and does not become one with
/// memory that is.
const COUNTED_AND_NOT_COUNTED: &[Act] = &[
    Map { process: 0, area: 2, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 2, 0, 8, 3),
    Protect { process: 0, at: Span { area: 2, page: 3, pages: 3 }, access: Access::Read },
    Touch { process: 0, area: 2, page: 1, exact: false, how: Store },
    Protect { process: 0, at: Span { area: 2, page: 2, pages: 3 }, access: Access::Read },
    call(0, Zeropage, Span { area: 2, page: 2, pages: 3 }, 0),
];

/// A child whose context nobody will read of keeps its protection.
const CHILD_OF_A_CLOSED_DESCRIPTOR: &[Act] = &[
    Map { process: 0, area: 6, memory: Shmem { file: 0, shared: true }, access: ReadWrite },
    Map { process: 0, area: 0, memory: SharedAnonymous, access: ReadWrite },
    Open { process: 0, features: 2, user_mode_only: false },
    Open { process: 0, features: 2, user_mode_only: false },
    register(1, 0, 0, 1, 1),
    register(0, 6, 0, 8, 3),
    call(0, WriteProtect, Span { area: 6, page: 2, pages: 1 }, 1),
    Fork { process: 0 },
    Close { fd: 0 },
    Read { fd: 1, messages: 16 },
];

/// Memory that has had a guard is copied by a fork, even when its anonymous pages moved away.
const GUARD_THAT_MOVED_AWAY: &[Act] = &[
    Map { process: 0, area: 4, memory: Anonymous, access: ReadWrite },
    Advise { process: 0, at: Span { area: 4, page: 4, pages: 1 }, advice: Advice::GuardInstall },
    Remap {
        process: 0,
        from: Span { area: 4, page: 0, pages: 8 },
        to: 7,
        new_pages: 8,
        dont_unmap: true,
    },
    Touch { process: 0, area: 4, page: 6, exact: false, how: Load },
    Fork { process: 0 },
];

/// A huge page that is split is split wherever its parts are mapped.
const PARTS_IN_TWO_TABLES: &[Act] = &[
    Map { process: 0, area: 11, memory: Transparent, access: ReadWrite },
    Touch { process: 0, area: 11, page: 2, exact: false, how: Store },
    Remap {
        process: 0,
        from: Span { area: 11, page: 2, pages: 1 },
        to: 10,
        new_pages: 1,
        dont_unmap: false,
    },
    Advise { process: 0, at: Span { area: 11, page: 3, pages: 1 }, advice: Advice::Free },
];

/// A scan protects poison and guards, which WRITEPROTECT leaves alone.
const SCANNED_MARKERS: &[Act] = &[
    Map { process: 0, area: 7, memory: Anonymous, access: ReadWrite },
    Open { process: 0, features: 32768, user_mode_only: false },
    register(0, 7, 0, 8, 3),
    call(0, Poison, Span { area: 7, page: 6, pages: 1 }, 0),
    Advise { process: 0, at: Span { area: 7, page: 4, pages: 1 }, advice: Advice::GuardInstall },
    Scan { process: 0, at: Span { area: 7, page: 0, pages: 12 }, flags: 1, mask: 1 },
    Scan { process: 0, at: Span { area: 7, page: 4, pages: 8 }, flags: 0, mask: 2 },
    call(0, WriteProtect, Span { area: 7, page: 4, pages: 4 }, 0),
    Scan { process: 0, at: Span { area: 7, page: 4, pages: 8 }, flags: 0, mask: 2 },
    Remap {
        process: 0,
        from: Span { area: 7, page: 0, pages: 8 },
        to: 6,
        new_pages: 8,
        dont_unmap: false,
    },
    Scan { process: 0, at: Span { area: 6, page: 4, pages: 8 }, flags: 0, mask: 2 },
];

/// Memory that gets its first anonymous pages shares the group of a neighbour that differs in its
/// rights only, and becomes one with it once it has the same.
const GROUP_OF_A_NEIGHBOUR: &[Act] = &[
    Map { process: 0, area: 0, memory: Shmem { file: 0, shared: false }, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: true },
    register(0, 0, 0, 8, 1),
    Touch { process: 0, area: 0, page: 3, exact: false, how: Load },
    Protect { process: 0, at: Span { area: 0, page: 3, pages: 1 }, access: Access::None },
    call(0, Move, Span { area: 0, page: 2, pages: 1 }, 0),
    call(0, Poison, Span { area: 0, page: 3, pages: 3 }, 0),
    Protect { process: 0, at: Span { area: 0, page: 3, pages: 1 }, access: ReadWrite },
    FileStore { file: 0, page: 1 },
    Close { fd: 0 },
];

/// MOVE asks the first page of a huge page whether any part of it is exclusive, and splits it for
/// the child too.
const HEAD_THAT_WAS_UNMAPPED: &[Act] = &[
    Map { process: 0, area: 10, memory: Transparent, access: ReadWrite },
    Open { process: 0, features: 0, user_mode_only: false },
    register(0, 10, 0, 4, 2),
    Touch { process: 0, area: 10, page: 0, exact: false, how: Store },
    Unmap { process: 0, at: Span { area: 10, page: 0, pages: 1 } },
    Fork { process: 0 },
    Call {
        process: 0,
        fd: 0,
        number: Move,
        at: Span { area: 10, page: 3, pages: 1 },
        from: (10, 1),
        mode: 0,
        odd: No,
        placement: Ordinary,
    },
    Touch { process: 1, area: 10, page: 1, exact: false, how: Load },
];

/// A huge page of which a scan protects a part is reported as small pages.
const PART_OF_A_HUGE_PAGE_SCANNED: &[Act] = &[
    Map { process: 0, area: 11, memory: Transparent, access: ReadWrite },
    Open { process: 0, features: 32768, user_mode_only: false },
    register(0, 11, 0, 4, 2),
    Touch { process: 0, area: 11, page: 2, exact: false, how: Store },
    Scan { process: 0, at: Span { area: 11, page: 1, pages: 2 }, flags: 3, mask: 2 },
];

/// The memory of a process that has ended stays while another is in a call for it.
const EXIT_UNDER_A_CALL: &[Act] = &[
    Map { process: 0, area: 0, memory: Shmem { file: 1, shared: true }, access: ReadWrite },
    Open { process: 0, features: 2, user_mode_only: false },
    register(0, 0, 0, 8, 1),
    Fork { process: 0 },
    Read { fd: 0, messages: 1 },
    Call {
        process: 0,
        fd: 1,
        number: Copy,
        at: Span { area: 0, page: 1, pages: 1 },
        from: (0, 3),
        mode: 0,
        odd: No,
        placement: Ordinary,
    },
    Open { process: 1, features: 0, user_mode_only: false },
    Exit { process: 1 },
    call(2, WriteProtect, Span { area: 6, page: 7, pages: 1 }, 0),
    call(0, Zeropage, Span { area: 0, page: 3, pages: 1 }, 0),
    call(2, WriteProtect, Span { area: 6, page: 7, pages: 1 }, 0),
];

/// The zero page does not replace pages of zeros in locked memory.
const ZEROS_IN_LOCKED_MEMORY: &[Act] = &[
    Map { process: 0, area: 10, memory: Transparent, access: ReadWrite },
    Touch { process: 0, area: 10, page: 1, exact: false, how: Store },
    Lock { process: 0, at: Span { area: 10, page: 1, pages: 1 }, locked: true },
    Advise { process: 0, at: Span { area: 10, page: 0, pages: 1 }, advice: Advice::Free },
];
