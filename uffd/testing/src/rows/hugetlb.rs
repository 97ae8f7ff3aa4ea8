//! The branch for hugetlb (section 4.6).

use godwit_uffd::abi::Call;

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Advice, Backing, FileKind, Mapping, Outcome, Touch, World};

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

pub fn row_280_huge_pages_of_a_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Hugetlb, 2 * HUGE_PAGES);
    rig.world.file_store(file, 0, 7);
    let start = rig.armed(shared(file), 2 * HUGE_PAGES, MISSING | MINOR);
    let src = huge_source(&mut rig, 8);
    assert_eq!(rig.call(copy(start, src, HUGE_PAGES)), refused(EEXIST));
    assert_eq!(rig.call(continue_(start + HUGE, HUGE_PAGES)), refused(EFAULT));
    assert_eq!(rig.call(continue_(start, 2 * HUGE_PAGES)), partial(HUGE_PAGES));
    rig.load(start, 7);
    assert_eq!(rig.call(continue_(start, HUGE_PAGES)), refused(EEXIST));
    assert_eq!(rig.call(poison(start, HUGE_PAGES)), refused(EEXIST));
    assert_eq!(rig.call(copy(start + HUGE, src, HUGE_PAGES)), done(HUGE_PAGES));
    assert_eq!(rig.world.file_load(file, HUGE_PAGES), Some(8));
    rig.silent();
}

pub fn row_281_huge_pages_are_protected_whole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, 2 * HUGE_PAGES, MISSING | WP);
    assert_eq!(rig.call(protect(start + PAGE, HUGE_PAGES)), untouched(EINVAL));
    assert_eq!(rig.call(protect(start, 1)), untouched(EINVAL));
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(copy_protected(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    let address = start + 5 * PAGE;
    let writer = rig.wait(address, Touch::Store(8));
    rig.says(fault(WRITE_TO_PROTECTED, start));
    assert_eq!(rig.call(unprotect(start, HUGE_PAGES)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(address, 8);
    // A hole is protected without the feature that anonymous memory needs.
    assert_eq!(rig.call(protect(start + HUGE, HUGE_PAGES)), OK);
    rig.is(start + HUGE, W);
}

pub fn row_282_huge_pages_do_not_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(move_(start, src, HUGE_PAGES)), refused(EINVAL));
    rig.is(start, N);
}

pub fn row_370_huge_pages_given_up_stay_protected(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING | WP);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(copy_protected(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.advise(start, HUGE_PAGES, Advice::DontNeed);
    rig.is(start, W);
    rig.wait(start, Touch::Load);
    rig.says(fault(READ, start));
    assert_eq!(rig.call(copy(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.store(start, 8);
    rig.silent();
}

pub fn row_371_async_writes_to_huge_pages_are_silent(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING | WP);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(copy_protected(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.load(start, 7);
    rig.store(start + 5 * PAGE, 8);
    rig.silent();
    // The whole page is written to.
    rig.store(start, 9);
    rig.holds(start, 9);
    rig.holds(start + 5 * PAGE, 8);
}

pub fn row_372_a_private_huge_page_is_copied_when_it_is_written(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Hugetlb, HUGE_PAGES);
    rig.world.file_store(file, 0, 7);
    let start = rig.armed(private(file), HUGE_PAGES, MINOR);
    assert_eq!(rig.call(continue_(start, HUGE_PAGES)), done(HUGE_PAGES));
    rig.load(start, 7);
    rig.store(start, 8);
    rig.silent();
    rig.holds(start, 8);
    assert_eq!(rig.world.file_load(file, 0), Some(7));
}

pub fn row_373_huge_pages_are_filled_as_far_as_it_goes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, 2 * HUGE_PAGES, MISSING);
    let src = huge_source(&mut rig, 7);
    assert_eq!(rig.call(poison(start + HUGE, HUGE_PAGES)), done(HUGE_PAGES));
    assert_eq!(rig.call(poison(start, 2 * HUGE_PAGES)), partial(HUGE_PAGES));
    // Both give way to a copy, and the second copy is refused.
    assert_eq!(rig.call(copy(start, src, 2 * HUGE_PAGES)), done(2 * HUGE_PAGES));
    assert_eq!(rig.call(copy(start, src, 2 * HUGE_PAGES)), refused(EEXIST));
    assert_eq!(rig.call(poison(start, HUGE_PAGES)), refused(EEXIST));
    rig.load(start, 7);
    rig.load(start + HUGE, 7);
}
