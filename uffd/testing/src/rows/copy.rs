//! COPY (sections 4.1 and 4.2).

use godwit_uffd::abi::Call;

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Backing, Entry, Outcome, Placement, Signal, Touch, World};

pub fn row_043_copy_into_a_hole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy(start, src, 1)), done(1));
    rig.is(start, P);
    rig.holds(start, 7);
    rig.store(start, 8);
    rig.silent();
    rig.holds(src, 7);
}

pub fn row_044_copy_over_a_present_page_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    for (page, entry) in (0..).zip([P, Z, S]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        assert_eq!(rig.call(copy(address, src, 1)), refused(EEXIST), "over {entry:?}");
        rig.is(address, entry);
        rig.load(address, u8::from(entry != Z));
    }
    rig.silent();
}

pub fn row_045_copy_over_a_marker_of_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(WP);
    let src = rig.source(&[7, 8]);
    rig.put(W, start, 0);
    rig.put(W, start + PAGE, 0);
    assert_eq!(rig.call(copy(start, src, 1)), done(1));
    rig.is(start, P);
    rig.holds(start, 7);
    assert_eq!(rig.call(copy_protected(start + PAGE, src + PAGE, 1)), done(1));
    rig.is(start + PAGE, PW);
    rig.holds(start + PAGE, 8);
}

pub fn row_046_copy_replaces_poison(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(X, start, 0);
    rig.fill(start, 7);
    rig.is(start, P);
    rig.holds(start, 7);
}

pub fn row_047_copy_over_a_guard(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(G, start, 0);
    let src = rig.source(&[7]);
    if rig.newest() {
        assert_eq!(rig.call(copy(start, src, 1)), refused(EEXIST));
        rig.is(start, G);
    } else {
        assert_eq!(rig.call(copy(start, src, 1)), done(1));
        rig.is(start, P);
        rig.holds(start, 7);
    }
}

pub fn row_048_nothing_goes_into_a_huge_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.huge(1);
    rig.arm(start, HUGE_PAGES, MISSING);
    let src = rig.source(&[7]);
    let middle = start + 5 * PAGE;
    assert_eq!(rig.call(copy(middle, src, 1)), refused(EEXIST));
    assert_eq!(rig.call(zeropage(middle, 1)), refused(EEXIST));
    assert_eq!(rig.call(poison(middle, 1)), refused(EEXIST));
    assert_eq!(rig.call(move_(middle, src, 1)), refused(EEXIST));
    rig.is(start, T);
    rig.holds(start, 1);
    rig.holds(src, 7);
}

pub fn row_049_copy_protected_needs_the_mode_of_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy_protected(start, src, 1)), refused(EINVAL));
    rig.is(start, N);
}

pub fn row_050_bad_arguments_leave_the_out_field_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    let bad = [
        Call::Copy { dst: start + 1, src, len: PAGE, mode: 0 },
        Call::Copy { dst: start, src, len: 0, mode: 0 },
        Call::Copy { dst: start, src, len: 100, mode: 0 },
        Call::Copy { dst: start, src, len: PAGE, mode: 4 },
    ];
    for call in bad {
        assert_eq!(rig.call(call), untouched(EINVAL), "{call:?}");
    }
    rig.is(start, N);
}

pub fn row_051_the_source_may_be_anywhere(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[1, 2]);
    rig.store(src + 1, 7);
    assert_eq!(rig.call(copy(start, src + 1, 1)), done(1));
    rig.holds(start, 7);
    rig.holds(start + PAGE - 1, 2);
}

pub fn row_052_a_source_that_cannot_be_read(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let unmapped = rig.source(&[1, 2, 3]) + PAGE;
    rig.munmap(unmapped, 1);
    assert_eq!(rig.call(copy(start, unmapped, 1)), refused(EFAULT));
    let forbidden = rig.source(&[1]);
    rig.mprotect(forbidden, 1, Access::None);
    assert_eq!(rig.call(copy(start, forbidden, 1)), refused(EFAULT));
    let poisoned = rig.reg(MISSING);
    rig.put(X, poisoned, 0);
    assert_eq!(rig.call(copy(start, poisoned, 1)), refused(EFAULT));
    let kernel = 0xffff_8880_0000_0000;
    assert_eq!(rig.call(copy(start, kernel, 1)), untouched(EINVAL));
    rig.is(start, N);
}

pub fn row_053_copy_stops_at_a_present_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(P, start + PAGE, 1);
    let src = rig.source(&[7, 8, 9]);
    assert_eq!(rig.call(copy(start, src, 3)), partial(1));
    rig.holds(start, 7);
    rig.holds(start + PAGE, 1);
    rig.is(start + 2 * PAGE, N);
    assert_eq!(rig.call(copy(start + PAGE, src + PAGE, 2)), refused(EEXIST));
    rig.is(start + 2 * PAGE, N);
}

pub fn row_054_copy_stops_where_the_source_ends(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7, 8]);
    rig.munmap(src + PAGE, 1);
    assert_eq!(rig.call(copy(start, src, 2)), partial(1));
    rig.holds(start, 7);
    rig.is(start + PAGE, N);
}

pub fn row_055_a_copy_that_stops_wakes_what_it_has_done(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(P, start + PAGE, 1);
    let first = rig.faults(start, Touch::Load, READ);
    let third = rig.faults(start + 2 * PAGE, Touch::Load, READ);
    let src = rig.source(&[7, 8, 9]);
    assert_eq!(rig.call(copy(start, src, 3)), partial(1));
    rig.ended(first, Outcome::Loaded(7));
    rig.sleeps(third);
    rig.silent();
}

pub fn row_056_copy_stays_within_one_registered_mapping(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let src = rig.source(&[7, 8]);
    let unregistered = rig.anonymous(1);
    assert_eq!(rig.call(copy(unregistered, src, 1)), refused(ENOENT));
    let start = rig.reg(MISSING);
    rig.munmap(start + 4 * PAGE, 4);
    assert_eq!(rig.call(copy(start + 4 * PAGE, src, 1)), refused(ENOENT));
    assert_eq!(rig.call(copy(start + 3 * PAGE, src, 2)), refused(ENOENT));
    rig.is(start + 3 * PAGE, N);
    rig.mprotect(start + PAGE, 1, Access::Read);
    assert_eq!(rig.call(copy(start, src, 2)), refused(ENOENT));
    rig.is(start, N);
}

pub fn row_057_a_result_that_cannot_be_stored(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    let reader = rig.faults(start, Touch::Load, READ);
    assert_eq!(rig.call_with(copy(start, src, 1), Placement::ReadOnly), untouched(EFAULT));
    rig.is(start, P);
    rig.holds(start, 7);
    // Nobody is woken.
    rig.sleeps(reader);
}

pub fn row_058_any_descriptor_of_the_process_fills_and_protects(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    let other = rig.another(0);
    let src = rig.source(&[7]);
    assert_eq!(rig.call_on(other, copy(start, src, 1)), done(1));
    rig.is(start, P);
    assert_eq!(rig.call_on(other, zeropage(start + PAGE, 1)), done(1));
    rig.is(start + PAGE, Z);
    assert_eq!(rig.call_on(other, poison(start + 2 * PAGE, 1)), done(1));
    rig.is(start + 2 * PAGE, X);
    assert_eq!(rig.call_on(other, protect(start, 1)), OK);
    rig.is(start, PW);
}

pub fn row_059_another_descriptor_cannot_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let other = rig.another(0);
    let src = rig.source(&[7]);
    assert_eq!(rig.call_on(other, move_(start, src, 1)), refused(EINVAL));
    rig.is(start, N);
    rig.holds(src, 7);
}

pub fn row_060_copy_does_not_ask_for_the_right_to_write(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    for access in [Access::Read, Access::None] {
        let start = rig.map_as(Backing::Anonymous, 4, access);
        rig.arm(start, 4, MISSING);
        rig.fill(start, 7);
        rig.is(start, P);
        let signal = Outcome::Signal(Signal::Segv { address: start });
        assert_eq!(rig.touch(start, Touch::Store(8)), signal, "{access:?}");
        rig.silent();
        rig.mprotect(start, 4, Access::ReadWrite);
        rig.load(start, 7);
    }
}

pub fn row_250_each_call_knows_its_modes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let src = rig.source(&[7]);
    let len = PAGE;
    let calls = [
        Call::Copy { dst: start, src, len, mode: 4 },
        Call::Zeropage { start, len, mode: 2 },
        Call::Continue { start, len, mode: 4 },
        Call::Poison { start, len, mode: 2 },
        Call::Move { dst: start, src, len, mode: 4 },
        Call::WriteProtect { start, len, mode: 4 },
    ];
    for call in calls {
        assert_eq!(rig.call(call), untouched(EINVAL), "{call:?}");
    }
    rig.is(start, N);
}

pub fn row_251_a_structure_that_cannot_be_read(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let calls = [
        register(start, 8, MISSING),
        unregister(start, 8),
        wake(start, 8),
        copy(start, start, 1),
        zeropage(start, 1),
        continue_(start, 1),
        poison(start, 1),
        move_(start, start, 1),
        protect(start, 1),
    ];
    for call in calls {
        assert_eq!(rig.call_with(call, Placement::Unmapped), untouched(EFAULT), "{call:?}");
    }
    rig.is(start, N);
}

pub fn row_252_calls_without_an_out_field_do_not_write(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    assert_eq!(rig.call_with(protect(start, 1), Placement::ReadOnly), OK);
    rig.is(start, W);
    assert_eq!(rig.call_with(wake(start, 1), Placement::ReadOnly), OK);
    assert_eq!(rig.call_with(unregister(start, 8), Placement::ReadOnly), OK);
    rig.is(start, N);
    // REGISTER does, and stays although it fails.
    let call = register(start, 8, MISSING);
    assert_eq!(rig.call_with(call, Placement::ReadOnly), untouched(EFAULT));
    rig.faults(start, Touch::Load, READ);
}

pub fn row_253_several_pages_are_copied_at_once(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let readers = [0, 3, 7].map(|page| (page, rig.faults(start + page * PAGE, Touch::Load, READ)));
    assert_eq!(rig.call(copy(start, src, 8)), done(8));
    for page in 0..8_u8 {
        rig.holds(start + u64::from(page) * PAGE, page + 1);
    }
    for (page, reader) in readers {
        let byte = u8::try_from(page + 1).expect("a small number");
        rig.ended(reader, Outcome::Loaded(byte));
    }
    rig.silent();
}

pub fn row_254_copy_over_protected_pages_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    let src = rig.source(&[7]);
    for (page, entry) in (0..).zip([PW, ZW]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        assert_eq!(rig.call(copy(address, src, 1)), refused(EEXIST), "over {entry:?}");
        assert_eq!(rig.call(copy_protected(address, src, 1)), refused(EEXIST), "over {entry:?}");
        rig.is(address, entry);
    }
    rig.fork();
    rig.is(start, Entry::Anonymous { exclusive: false, protected: true, huge: false });
    assert_eq!(rig.call(copy(start, src, 1)), refused(EEXIST));
}

pub fn row_255_copy_into_shared_memory_fills_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | WP);
    assert_eq!(rig.world.file_load(file, 0), None);
    rig.fill(start, 7);
    rig.is(start, F);
    assert_eq!(rig.world.file_load(file, 0), Some(7));
    let src = rig.source(&[8, 9]);
    assert_eq!(rig.call(copy_protected(start + PAGE, src, 1)), done(1));
    rig.is(start + PAGE, FW);
    assert_eq!(rig.call(poison(start + 2 * PAGE, 1)), done(1));
    assert_eq!(rig.call(copy(start + 2 * PAGE, src, 1)), done(1));
    rig.is(start + 2 * PAGE, F);
    assert_eq!(rig.call(protect(start + 3 * PAGE, 1)), OK);
    assert_eq!(rig.call(copy(start + 3 * PAGE, src, 1)), done(1));
    rig.is(start + 3 * PAGE, F);
    // A poisoned page that the cache has stays poisoned.
    rig.world.file_store(file, 4, 1);
    assert_eq!(rig.call(poison(start + 4 * PAGE, 1)), done(1));
    assert_eq!(rig.call(copy(start + 4 * PAGE, src, 1)), refused(EEXIST));
    rig.is(start + 4 * PAGE, X);
}

pub fn row_256_a_refused_copy_leaves_nothing_in_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING);
    let other = rig.map(shared(file), 8);
    rig.fill(start, 7);
    assert_eq!(rig.call(copy(start, other, 1)), refused(EEXIST));
    // The cache loses the page behind the entry of a private copy, and the entry stays.
    let private = rig.armed(private(file), 8, MISSING);
    let src = rig.source(&[1]);
    assert_eq!(rig.call(copy(private, src, 1)), done(1));
    rig.world.file_punch(file, 0);
    rig.is(private, P);
    assert_eq!(rig.world.file_load(file, 0), None);
    assert_eq!(rig.call(copy(private, src, 1)), refused(EEXIST));
    assert_eq!(rig.world.file_load(file, 0), None);
}

pub fn row_257_modes_of_registration_do_not_limit_the_calls(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.fill(start, 7);
    assert_eq!(rig.call(zeropage(start + PAGE, 1)), done(1));
    assert_eq!(rig.call(poison(start + 2 * PAGE, 1)), done(1));
    let src = rig.source(&[7]);
    assert_eq!(rig.call(move_(start + 3 * PAGE, src, 1)), done(1));
    let (file, start) = rig.shmem(MINOR);
    rig.fill(start, 7);
    let (other, start) = rig.shmem(MISSING);
    rig.world.file_store(other, 0, 8);
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.holds(start, 8);
    assert_eq!(rig.world.file_load(file, 0), Some(7));
}

pub fn row_258_a_source_whose_faults_are_signals(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let other = rig.another(SIGBUS);
    let src = rig.source(&[1, 2]);
    rig.map_at(src + PAGE, Backing::Anonymous, 1);
    assert_eq!(rig.call_on(other, register(src + PAGE, 1, MISSING)).result, Ok(()));
    assert_eq!(rig.call(copy(start, src + PAGE, 1)), refused(EFAULT));
    assert_eq!(rig.call(copy(start, src, 2)), partial(1));
    rig.holds(start, 1);
}

pub fn row_259_a_hole_copied_onto_itself_waits_for_itself(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let call = rig.start(copy(start, start, 1));
    rig.says(fault(READ, start));
    rig.sleeps(call);
    rig.fill(start, 7);
    rig.ended(call, Outcome::Ioctl(refused(EEXIST)));
    rig.holds(start, 7);
}
