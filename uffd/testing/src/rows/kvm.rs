//! A guest's vCPU as the one who touches (section 7).

use super::setup::{Rig, finished, parked};
use super::words::*;
use crate::world::{Advice, Outcome, Ticket, Touch, World};

#[track_caller]
fn guest(rig: &mut Rig, address: u64, touch: Touch) -> Outcome {
    finished(rig.world.guest_touch(rig.process, address, touch))
}

#[track_caller]
fn guest_faults(rig: &mut Rig, address: u64, touch: Touch, flags: u64) -> Ticket {
    let ticket = parked(rig.world.guest_touch(rig.process, address, touch));
    rig.says(fault(flags, address & !(PAGE - 1)));
    ticket
}

pub fn row_124_a_vcpu_waits_for_a_missing_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let writer = guest_faults(&mut rig, start, Touch::Store(1), WRITE);
    rig.fill(start, 7);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 1);
    let reader = guest_faults(&mut rig, start + PAGE, Touch::Load, READ);
    rig.fill(start + PAGE, 8);
    rig.ended(reader, Outcome::Loaded(8));
    rig.silent();
}

pub fn row_125_a_page_taken_from_a_guest_is_missing_again(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let staging = rig.reg(MISSING);
    rig.fill(start, 7);
    rig.fill(start + PAGE, 8);
    assert_eq!(guest(&mut rig, start, Touch::Load), Outcome::Loaded(7));
    assert_eq!(guest(&mut rig, start + PAGE, Touch::Store(9)), Outcome::Stored);

    assert_eq!(rig.call(move_(staging, start, 1)), done(1));
    let reader = guest_faults(&mut rig, start, Touch::Load, READ);
    assert_eq!(rig.call(move_(start, staging, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(7));

    rig.advise(start + PAGE, 1, Advice::DontNeed);
    let writer = guest_faults(&mut rig, start + PAGE, Touch::Store(5), WRITE);
    assert_eq!(rig.call(zeropage(start + PAGE, 1)), done(1));
    rig.ended(writer, Outcome::Stored);
    rig.holds(start + PAGE, 5);
}

pub fn row_126_a_guest_reads_protected_pages_and_tells_of_writes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.fill(start, 7);
    assert_eq!(guest(&mut rig, start, Touch::Store(8)), Outcome::Stored);
    assert_eq!(rig.call(protect(start, 1)), OK);
    assert_eq!(guest(&mut rig, start, Touch::Load), Outcome::Loaded(8));
    rig.silent();
    let writer = guest_faults(&mut rig, start, Touch::Store(9), WRITE_TO_PROTECTED);
    rig.holds(start, 8);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 9);
}

pub fn row_127_guest_memory_files_accept_async_protection_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.world.map_guest_memfd(rig.process, 8);
    let newest = rig.newest();
    for mode in [MISSING, MINOR] {
        let expected = if newest { Ok(()) } else { Err(EINVAL) };
        assert_eq!(rig.call(register(start, 8, mode)).result, expected, "mode {mode}");
    }
    if newest {
        assert_eq!(rig.call(unregister(start, 8)), OK);
    } else {
        assert_eq!(rig.call(register(start, 8, WP)), untouched(EINVAL));
    }
    rig.fd = rig.another(ASYNC);
    assert_eq!(rig.call(register(start, 8, WP)).result, Ok(()));
}

pub fn row_340_a_vcpu_has_no_signal_to_take(world: &mut dyn World) {
    let mut rig = Rig::new(world, SIGBUS);
    let start = rig.reg(MISSING);
    let failed = Outcome::Returned(Err(EFAULT));
    assert_eq!(guest(&mut rig, start, Touch::Load), failed);
    assert_eq!(guest(&mut rig, start, Touch::Store(1)), failed);
    rig.silent();
    rig.is(start, N);
}

pub fn row_341_user_mode_only_does_not_serve_a_vcpu(world: &mut dyn World) {
    let mut rig = Rig::user_mode_only(world);
    let start = rig.reg(MISSING);
    assert_eq!(guest(&mut rig, start, Touch::Load), Outcome::Returned(Err(EFAULT)));
    rig.silent();
    rig.fill(start, 7);
    assert_eq!(guest(&mut rig, start, Touch::Load), Outcome::Loaded(7));
}

pub fn row_342_a_protected_hole_is_missing_for_a_guest_first(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(W, start, 0);
    let writer = guest_faults(&mut rig, start, Touch::Store(1), WRITE);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy_protected(start, src, 1)), done(1));
    rig.sleeps(writer);
    rig.says(fault(WRITE_TO_PROTECTED, start));
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 1);
}

pub fn row_343_async_protection_records_a_guests_writes(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    rig.put(PW, start, 7);
    assert_eq!(guest(&mut rig, start, Touch::Load), Outcome::Loaded(7));
    rig.is(start, PW);
    assert_eq!(guest(&mut rig, start, Touch::Store(8)), Outcome::Stored);
    rig.silent();
    rig.is(start, P);
    // The guest's own mapping is gone when the page is protected again.
    assert_eq!(rig.call(protect(start, 1)), OK);
    assert_eq!(guest(&mut rig, start, Touch::Store(9)), Outcome::Stored);
    rig.is(start, P);
    rig.holds(start, 9);
}
