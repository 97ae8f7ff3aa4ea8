//! REGISTER and UNREGISTER (section 2).

use godwit_uffd::abi::{Answer, Call};

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

pub fn row_210_each_call_checks_its_range(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let beyond = 1 << 47;
    let ranges = [
        (start + 1, PAGE),
        (start, PAGE + 1),
        (start, 0),
        (beyond, PAGE),
        (start, beyond),
        (start, 0_u64.wrapping_sub(PAGE)),
    ];
    for (start, len) in ranges {
        let calls = [
            Call::Register { start, len, mode: MISSING },
            Call::Unregister { start, len },
            Call::Wake { start, len },
            Call::Copy { dst: start, src: PAGE, len, mode: 0 },
            Call::Zeropage { start, len, mode: 0 },
            Call::Move { dst: start, src: PAGE, len, mode: 0 },
            Call::WriteProtect { start, len, mode: 0 },
            Call::Continue { start, len, mode: 0 },
            Call::Poison { start, len, mode: 0 },
        ];
        for call in calls {
            assert_eq!(rig.call(call), untouched(EINVAL), "{call:x?}");
        }
    }
}

pub fn row_211_huge_pages_are_registered_whole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.map(Backing::Hugetlb, 2 * HUGE_PAGES);
    assert_eq!(rig.call(register(start + PAGE, HUGE_PAGES, MISSING)), untouched(EINVAL));
    assert_eq!(rig.call(register(start, HUGE_PAGES + 1, MISSING)), untouched(EINVAL));
    assert_eq!(rig.call(register(start + HUGE, HUGE_PAGES, MISSING)), ioctls(0x10c));
    assert_eq!(rig.call(unregister(start + HUGE + PAGE, 1)), untouched(EINVAL));
}

pub fn row_212_memory_that_accepts_registration(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let all = [(MISSING, 0x13c), (WP, 0x17c), (MINOR, 0x1bc), (7, 0x1fc)];
    // Shared memory that is mapped for reading, from a descriptor for both.
    let file = rig.world.make_file(FileKind::Shmem, 4);
    let start = rig.map_as(shared(file), 4, Access::Read);
    masks(&mut rig, start, 4, &all);
    // A private mapping of it, also of a descriptor for reading.
    let start = rig.map(private(file), 4);
    masks(&mut rig, start, 4, &all);
    let backing = Backing::File { file, page: 0, shared: false, read_only_descriptor: true };
    let start = rig.map(backing, 4);
    masks(&mut rig, start, 4, &all);
    let start = rig.map(Backing::SharedAnonymous, 4);
    masks(&mut rig, start, 4, &all);
    let start = rig.map_as(Backing::Anonymous, 4, Access::None);
    masks(&mut rig, start, 4, &all[..2]);
}

pub fn row_213_regular_files_are_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Regular, 4);
    for backing in [shared(file), private(file)] {
        let start = rig.map(backing, 4);
        refuses(&mut rig, start, 4, &[MISSING, WP, MINOR], untouched(EINVAL));
    }
}

pub fn row_214_a_refused_register_changes_nothing(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(8);
    let file = rig.world.make_file(FileKind::Regular, 4);
    rig.map_at(start + 4 * PAGE, shared(file), 4);
    assert_eq!(rig.call(register(start, 8, MISSING)), untouched(EINVAL));
    rig.load(start, 0);

    // Nor does a refused UNREGISTER.
    assert_eq!(rig.call(register(start, 4, MISSING)), ioctls(0x13c));
    assert_eq!(rig.call(unregister(start, 8)), untouched(EINVAL));
    rig.faults(start + PAGE, Touch::Load, READ);
}

pub fn row_215_register_can_add_a_mode(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(register(start, 8, MISSING | WP)), ioctls(0x17c));
    rig.put(W, start, 0);
    rig.faults(start + PAGE, Touch::Load, READ);
}

pub fn row_216_unregister_takes_protection_away(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    let states = [(PW, P), (ZW, Z), (W, N), (X, X), (G, G)];
    for (page, (before, _)) in (0..).zip(states) {
        rig.put(before, start + page * PAGE, 7);
    }
    let (_, shmem) = rig.shmem(MISSING | WP);
    rig.fill(shmem, 7);
    assert_eq!(rig.call(protect(shmem, 2)), OK);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    assert_eq!(rig.call(unregister(shmem, 8)), OK);
    for (page, (_, after)) in (0..).zip(states) {
        rig.is(start + page * PAGE, after);
    }
    rig.is(shmem, F);
    rig.is(shmem + PAGE, N);
}

pub fn row_217_unregister_takes_protection_of_swap_away(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(SW, start, 7);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.is(start, S);
    rig.store(start, 8);
}

pub fn row_218_huge_pages_anywhere_in_the_range_set_the_mask(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(2 * HUGE_PAGES);
    rig.map_at(start + HUGE, Backing::Hugetlb, HUGE_PAGES);
    assert_eq!(rig.call(register(start, 2 * HUGE_PAGES, MISSING)), ioctls(0x10c));
    rig.faults(start, Touch::Load, READ);
    // The last byte must not be inside of a huge page; the first may be in other memory.
    assert_eq!(rig.call(unregister(start, HUGE_PAGES + 1)), untouched(EINVAL));
}

pub fn row_219_a_part_of_a_mapping_is_registered_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(8);
    rig.arm(start + 2 * PAGE, 2, MISSING);
    rig.load(start + PAGE, 0);
    rig.load(start + 4 * PAGE, 0);
    rig.faults(start + 2 * PAGE, Touch::Load, READ);
    rig.faults(start + 3 * PAGE, Touch::Load, READ);
    assert_eq!(rig.call(unregister(start + 2 * PAGE, 1)), OK);
    rig.faults(start + 3 * PAGE, Touch::Load, READ);
}
