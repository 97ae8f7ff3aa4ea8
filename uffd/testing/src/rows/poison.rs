//! POISON and its markers (section 4.5).

use godwit_uffd::abi::Errno;

use super::setup::{Rig, finished};
use super::words::*;
use crate::world::{Access, Advice, Outcome, Step, Touch, World};

pub fn row_078_poison_of_a_hole_is_a_signal_to_whoever_touches_it(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(poison(start, 1)), done(1));
    rig.is(start, X);
    let outcome = rig.touch(start + 0x123, Touch::Load);
    rig.is_poison(start + 0x123, &outcome);
    let outcome = rig.touch(start + 0x456, Touch::Store(1));
    rig.is_poison(start + 0x456, &outcome);
    rig.silent();
    assert_eq!(rig.call(poison(start, 1)), refused(EEXIST));
    rig.is(start, X);
}

pub fn row_079_poison_wants_an_empty_entry(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    for (page, entry) in (0..).zip([W, P, G, S]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        assert_eq!(rig.call(poison(address, 1)), refused(EEXIST), "over {entry:?}");
        rig.is(address, entry);
    }
}

pub fn row_080_what_poison_outlives(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    assert_eq!(rig.call(poison(start, 8)), done(8));
    let page = |n| start + n * PAGE;
    rig.advise(page(0), 1, Advice::DontNeed);
    rig.is(page(0), N);
    rig.advise(page(1), 1, Advice::Free);
    rig.is(page(1), N);
    rig.mprotect(page(2), 1, Access::Read);
    rig.is(page(2), X);
    rig.mprotect(page(2), 1, Access::ReadWrite);
    rig.is(page(2), X);
    assert_eq!(rig.call(protect(page(3), 1)), OK);
    rig.is(page(3), X);
    assert_eq!(rig.call(unprotect(page(3), 1)), OK);
    rig.is(page(3), X);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.is(page(4), X);
    let outcome = rig.touch(page(4), Touch::Load);
    rig.is_poison(page(4), &outcome);
}

pub fn row_081_poison_of_shared_memory_goes_by_truncation_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | WP);
    let page = |n| start + n * PAGE;
    assert_eq!(rig.call(poison(start, 7)), done(7));
    assert_eq!(rig.call(protect(page(7), 1)), OK);
    rig.advise(page(0), 1, Advice::DontNeed);
    rig.is(page(0), N);
    rig.world.file_punch(file, 1);
    rig.is(page(1), X);
    rig.advise(page(2), 1, Advice::Remove);
    rig.is(page(2), X);
    rig.world.file_truncate(file, 4);
    rig.is(page(3), X);
    rig.is(page(6), N);
    rig.is(page(7), W);
}

/// Hardware poison, as populating answers it.
const EHWPOISON: Errno = Errno(133);

pub fn row_273_the_kernel_sees_poison_as_an_error(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(X, start, 0);
    assert_eq!(rig.touch(start, Touch::KernelLoad), Outcome::Returned(Err(EFAULT)));
    assert_eq!(rig.touch(start, Touch::KernelStore(1)), Outcome::Returned(Err(EFAULT)));
    for advice in [Advice::PopulateRead, Advice::PopulateWrite] {
        let outcome = finished(rig.world.advise(rig.process, start, 1, advice));
        assert_eq!(outcome, Outcome::Returned(Err(EHWPOISON)), "{advice:?}");
    }
    let outcome = finished(rig.world.lock(rig.process, start, 1, true));
    assert_eq!(outcome, Outcome::Returned(Err(ENOMEM)));
    rig.silent();
    rig.is(start, X);
}

pub fn row_274_poison_moves_with_its_mapping_and_gives_way_to_a_guard(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(X, start, 0);
    rig.put(X, start + PAGE, 0);
    rig.advise(start + PAGE, 1, Advice::GuardInstall);
    rig.is(start + PAGE, G);
    let to = rig.anonymous(8);
    let moved = finished(rig.moving(start, 8, to));
    assert_eq!(moved, Outcome::Returned(Ok(to)));
    rig.is(to, X);
    rig.is(to + PAGE, G);
}

pub fn row_275_poison_stops_at_what_is_there(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(Z, start + 2 * PAGE, 0);
    let reader = rig.faults(start + PAGE, Touch::Load, READ);
    assert_eq!(rig.call(poison(start, 4)), partial(2));
    rig.is(start + PAGE, X);
    rig.is(start + 3 * PAGE, N);
    match rig.world.poll_ticket(reader) {
        Step::Done(outcome) => rig.is_poison(start + PAGE, &outcome),
        Step::Parked(_) => panic!("poison wakes"),
    }
    assert_eq!(rig.call(poison(start + 2 * PAGE, 2)), refused(EEXIST));
}

pub fn row_276_poison_of_one_mapping_is_not_that_of_another(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING);
    rig.world.file_store(file, 0, 7);
    let other = rig.map(shared(file), 8);
    assert_eq!(rig.call(poison(start, 1)), done(1));
    rig.load(other, 7);
    let outcome = rig.touch(start, Touch::Load);
    rig.is_poison(start, &outcome);
}
