//! The branch for hugetlb (section 4.6).

use godwit_uffd::abi::Call;

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Backing, Mapping, Touch, World};

/// Two huge pages of ordinary memory, the first byte of each set.
#[track_caller]
fn huge_source(rig: &mut Rig, byte: u8) -> u64 {
    let src = rig.anonymous(2 * HUGE_PAGES);
    rig.store(src, byte);
    rig.store(src + HUGE, byte);
    src
}

pub fn row_082_copy_replaces_poison_of_a_huge_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    assert_eq!(rig.call(poison(start, HUGE_PAGES)), done(HUGE_PAGES));
    let outcome = rig.touch(start + 0x123, Touch::Load);
    rig.is_poison(start + 0x123, &outcome);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(copy(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.load(start, 7);
    rig.silent();
}

pub fn row_083_copy_with_an_empty_pool(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    // What is reserved for a private mapping is not for its copy in the child.
    let (child, fd) = rig.fork_with_event();
    let access = Access::ReadWrite;
    let mapping = Mapping { pages: HUGE_PAGES, backing: Backing::Hugetlb, access, at: None };
    let reserve = |_: &u32| rig.world.map(rig.process, mapping).is_ok();
    let reserved = (0..100_000).take_while(reserve).count();
    assert!(reserved < 100_000, "the pool has no end");
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call_on(fd, copy(start, src, HUGE_PAGES)), refused(EEXIST));
    rig.is_in(child, start, N);
    assert_eq!(rig.call(copy(start, src, HUGE_PAGES)), done(HUGE_PAGES));
}

pub fn row_084_huge_pages_are_copied_whole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, 2 * HUGE_PAGES, MISSING);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(copy(start, src, 1)), refused(EINVAL));
    assert_eq!(rig.call(copy(start + PAGE, src, HUGE_PAGES)), refused(EINVAL));
    let call = Call::Copy { dst: start, src: src + PAGE, len: HUGE, mode: 0 };
    assert_eq!(rig.call(call), done(HUGE_PAGES));
    // The byte at the start of the second huge page of the source.
    rig.load(start + HUGE - PAGE, 7);
    rig.load(start, 0);
    rig.silent();
}
