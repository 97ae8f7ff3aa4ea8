//! Cases on which the running kernel and the model once differed, as the random test printed them.

use godwit_uffd_testing::differential::act::Act::{self, *};
use godwit_uffd_testing::differential::act::How::*;
use godwit_uffd_testing::differential::act::Memory::*;
use godwit_uffd_testing::differential::act::Number::*;
use godwit_uffd_testing::differential::act::Odd::*;
use godwit_uffd_testing::differential::act::Span;
use godwit_uffd_testing::world::Access::ReadWrite;
use godwit_uffd_testing::world::Placement::Ordinary;

/// All of them.
pub const CASES: &[&[Act]] =
    &[MOVED_PIECES, FORGOTTEN_NEIGHBOURS, SPLIT_HUGE_PAGE, MAPPED_AROUND, PREPARED_BEFORE_WAIT];

const fn register(fd: u8, area: u8, page: u8, pages: u8, mode: u64) -> Act {
    let (number, odd, placement) = (Register, No, Ordinary);
    let at = Span { area, page, pages };
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
