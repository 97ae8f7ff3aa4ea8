//! REGISTER and UNREGISTER (section 2).

use godwit_uffd::abi::Answer;

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Backing, FileKind, Touch, World};

/// Registers, expects a mask, and unregisters, for each mode in turn.
#[track_caller]
fn masks(rig: &mut Rig, start: u64, pages: u64, expected: &[(u64, u64)]) {
    for (mode, mask) in expected {
        assert_eq!(rig.call(register(start, pages, *mode)), ioctls(*mask), "mode {mode}");
        assert_eq!(rig.call(unregister(start, pages)), OK, "mode {mode}");
    }
}

#[track_caller]
fn refuses(rig: &mut Rig, start: u64, pages: u64, modes: &[u64], answer: Answer) {
    for mode in modes {
        assert_eq!(rig.call(register(start, pages, *mode)), answer, "mode {mode}");
    }
}

pub fn row_012_modes_that_do_not_exist_are_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    refuses(&mut rig, start, 4, &[0, 8, 17], untouched(EINVAL));
}

pub fn row_013_what_works_on_anonymous_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    let expected = [(MISSING, 0x13c), (WP, 0x17c), (MISSING | WP, 0x17c)];
    masks(&mut rig, start, 4, &expected);
}

pub fn row_014_anonymous_memory_has_no_minor_faults(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    refuses(&mut rig, start, 4, &[4, 5, 6, 7], untouched(EINVAL));
}

pub fn row_015_what_works_on_shared_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 4);
    let expected = [(MISSING, 0x13c), (WP, 0x17c), (MINOR, 0x1bc), (7, 0x1fc)];
    let start = rig.map(shared(file), 4);
    masks(&mut rig, start, 4, &expected);
}

pub fn row_016_what_works_on_hugetlb(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let expected = [(MISSING, 0x10c), (WP, 0x14c), (MINOR, 0x18c), (7, 0x1cc)];
    let start = rig.map(Backing::Hugetlb, HUGE_PAGES);
    masks(&mut rig, start, HUGE_PAGES, &expected);
}

pub fn row_017_a_range_without_memory_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(6);
    rig.munmap(start + 2 * PAGE, 2);
    assert_eq!(rig.call(register(start + 2 * PAGE, 2, MISSING)), untouched(EINVAL));
    assert_eq!(rig.call(unregister(start + 2 * PAGE, 2)), untouched(EINVAL));
}

pub fn row_018_holes_in_a_range_are_tolerated(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(6);
    rig.munmap(start + 2 * PAGE, 2);
    assert_eq!(rig.call(register(start, 6, MISSING)), ioctls(0x13c));
    rig.faults(start, Touch::Load, READ);
    rig.faults(start + 5 * PAGE, Touch::Load, READ);
}

pub fn row_019_memory_of_another_descriptor_is_busy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let other = rig.another(0);
    assert_eq!(rig.call_on(other, register(start, 4, MISSING)), untouched(EBUSY));
}

pub fn row_020_another_descriptor_cannot_unregister(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let other = rig.another(0);
    assert_eq!(rig.call_on(other, unregister(start, 4)), untouched(EINVAL));
    rig.faults(start, Touch::Load, READ);
}

pub fn row_021_unregister_of_what_was_never_registered(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    assert_eq!(rig.call(unregister(start, 4)), OK);
    let file = rig.world.make_file(FileKind::Regular, 4);
    let start = rig.map(shared(file), 4);
    assert_eq!(rig.call(unregister(start, 4)), untouched(EINVAL));
}

pub fn row_022_register_with_fewer_modes_changes_nothing(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    assert_eq!(rig.call(register(start, 8, WP)), ioctls(0x17c));
    rig.faults(start, Touch::Load, READ);
}

pub fn row_023_register_with_other_modes_replaces_them(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(register(start, 8, WP)), ioctls(0x17c));
    rig.load(start, 0);
    rig.silent();
}

pub fn row_024_protection_dropped_by_register_leaves_its_bits(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    if rig.newest() {
        assert_eq!(rig.call(register(start, 8, MISSING)), untouched(EBUSY));
        return;
    }
    assert_eq!(rig.call(register(start, 8, MISSING)), ioctls(0x13c));
    rig.store(start, 2);
    rig.silent();
    rig.is(start, PW);
    rig.holds(start, 2);
    assert_eq!(rig.call(protect(start, 1)), untouched(ENOENT));
}

pub fn row_025_memory_that_can_never_be_written_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 4);
    let backing = Backing::File { file, page: 0, shared: true, read_only_descriptor: true };
    let start = rig.map_as(backing, 4, Access::Read);
    refuses(&mut rig, start, 4, &[MISSING, WP, MINOR], untouched(EPERM));

    let file = rig.world.make_file(FileKind::Shmem, 4);
    rig.world.file_seal_writes(file);
    let start = rig.map_as(shared(file), 4, Access::Read);
    refuses(&mut rig, start, 4, &[MISSING, WP, MINOR], untouched(EPERM));
}

pub fn row_026_a_regular_file_accepts_async_protection_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let file = rig.world.make_file(FileKind::Regular, 4);
    let start = rig.map(shared(file), 4);
    refuses(&mut rig, start, 4, &[MISSING | WP], untouched(EINVAL));
    assert_eq!(rig.call(register(start, 4, WP)), ioctls(0x17c));
    let src = rig.source(&[1]);
    assert_eq!(rig.call(copy(start, src, 1)), refused(EINVAL));
}

pub fn row_129_the_newest_kernel_does_not_drop_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    assert_eq!(rig.call(register(start, 8, MISSING)), untouched(EBUSY));
    // Nothing has changed: protection works.
    rig.put(PW, start, 1);
    rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
}
