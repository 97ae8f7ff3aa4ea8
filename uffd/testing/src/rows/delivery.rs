//! Faults, messages and waiters (sections 2.5 and 3).

use godwit_uffd::abi::RawMessage;

use super::setup::{Rig, answered, parked};
use super::words::*;
use crate::world::{Advice, Backing, Door, Outcome, Placement, Signal, Touch, World};

pub fn row_027_a_read_of_a_hole_is_told_with_its_address(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.wait(start + 0x123, Touch::Load);
    rig.says(fault(READ, start));

    rig.fd = rig.another(EXACT_ADDRESS);
    let start = rig.reg(MISSING);
    rig.wait(start + 0x123, Touch::Load);
    rig.says(fault(READ, start + 0x123));
}

pub fn row_028_a_write_to_a_hole_has_the_write_flag(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.wait(start + 0x123, Touch::Store(1));
    rig.says(fault(WRITE, start));
}

pub fn row_029_each_thread_has_its_message_and_one_copy_frees_both(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.wait(start, Touch::Load);
    let writer = rig.wait(start + 8, Touch::Store(1));
    let messages = rig.world.read(rig.fd, 96);
    assert_eq!(messages, Ok(vec![fault(READ, start), fault(WRITE, start)]));
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
    rig.ended(writer, Outcome::Stored);
    rig.silent();
}

pub fn row_030_a_fault_resolved_before_it_is_read_leaves_no_message(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.wait(start, Touch::Load);
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
    rig.silent();
}

pub fn row_031_a_bare_wake_brings_a_new_message(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    rig.silent();
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.sleeps(reader);
    rig.says(fault(READ, start));
}

pub fn row_032_a_wake_of_another_page_wakes_nobody(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start + PAGE, Touch::Load, READ);
    assert_eq!(rig.call(wake(start, 1)), OK);
    assert_eq!(rig.call(wake(start + 2 * PAGE, 1)), OK);
    rig.sleeps(reader);
    rig.silent();
}

pub fn row_033_without_a_wake_the_waiter_sleeps_on(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy_silently(start, src, 1)), done(1));
    rig.sleeps(reader);
    assert_eq!(rig.call(copy(start, src, 1)), refused(EEXIST));
    rig.sleeps(reader);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(reader, Outcome::Loaded(7));
    rig.silent();
}

pub fn row_034_a_signal_repeats_the_access_with_a_new_message(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    rig.silent();
    rig.world.interrupt(reader);
    rig.sleeps(reader);
    rig.says(fault(READ, start));
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
}

pub fn row_035_faults_are_read_before_older_events(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    rig.fill(start, 1);
    let advice = parked(rig.world.advise(rig.process, start, 1, Advice::DontNeed));
    let reader = rig.wait(start + PAGE, Touch::Load);
    let remove = RawMessage::Remove { start, end: start + PAGE };
    assert_eq!(rig.world.read(rig.fd, 96), Ok(vec![fault(READ, start + PAGE), remove]));
    rig.ended(advice, Outcome::Returned(Ok(0)));
    rig.sleeps(reader);
}

pub fn row_036_a_message_read_into_nowhere_is_lost(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.wait(start, Touch::Load);
    assert_eq!(rig.world.read_into_nowhere(rig.fd), Err(EFAULT));
    rig.silent();
    rig.sleeps(reader);
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
}

pub fn row_037_a_huge_page_is_told_by_its_start(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    rig.wait(start + 0x12345, Touch::Load);
    rig.says(fault(READ, start));

    rig.fd = rig.another(EXACT_ADDRESS);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    rig.wait(start + 0x12345, Touch::Load);
    rig.says(fault(READ, start + 0x12345));
}

pub fn row_038_signals_take_the_place_of_messages(world: &mut dyn World) {
    let mut rig = Rig::new(world, SIGBUS);
    let start = rig.reg(MISSING);
    let address = start + 0x123;
    let signal = Outcome::Signal(Signal::BusAddress { address });
    assert_eq!(rig.touch(address, Touch::Load), signal);
    assert_eq!(rig.touch(address, Touch::Store(1)), signal);
    assert_eq!(rig.touch(address, Touch::KernelLoad), Outcome::Returned(Err(EFAULT)));
    rig.silent();
    rig.is(start, N);
}

pub fn row_039_user_mode_only_serves_user_faults_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let flags = O_NONBLOCK | USER_MODE_ONLY;
    rig.fd = rig.world.open(rig.process, Door::Call, flags).expect("a userfaultfd");
    let step = rig.world.ioctl(rig.process, rig.fd, api(0), Placement::Ordinary);
    assert_eq!(answered(step).result, Ok(()));
    let start = rig.reg(MISSING);
    assert_eq!(rig.touch(start, Touch::KernelStore(1)), Outcome::Returned(Err(EFAULT)));
    rig.silent();
    let reader = rig.faults(start, Touch::Load, READ);
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
}

pub fn row_040_unregister_leaves_waiters_of_protection_asleep(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    let writer = rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.sleeps(writer);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 2);
}

pub fn row_041_unregister_frees_waiters_of_missing_pages(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    let unread = rig.wait(start + PAGE, Touch::Store(1));
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.ended(reader, Outcome::Loaded(0));
    rig.ended(unread, Outcome::Stored);
    rig.silent();
}

pub fn row_042_close_frees_all_and_clears_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let missing = rig.reg(MISSING);
    let protected = rig.reg(WP);
    rig.put(PW, protected, 1);
    rig.put(PW, protected + PAGE, 2);
    let reader = rig.faults(missing, Touch::Load, READ);
    let writer = rig.faults(protected, Touch::Store(3), WRITE_TO_PROTECTED);
    rig.world.close(rig.fd);
    rig.ended(reader, Outcome::Loaded(0));
    rig.ended(writer, Outcome::Stored);
    rig.is(protected + PAGE, P);
    rig.holds(protected + PAGE, 2);
}
