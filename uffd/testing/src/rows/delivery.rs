//! Faults, messages and waiters (sections 2.5 and 3).

use godwit_uffd::abi::{Call, RawMessage};

use super::setup::{Rig, parked};
use super::words::*;
use crate::world::{Advice, Backing, Outcome, Polled, Signal, Step, Touch, World};

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
    let mut rig = Rig::user_mode_only(world);
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

pub fn row_234_the_thread_is_told_on_request(world: &mut dyn World) {
    let mut rig = Rig::new(world, THREAD_ID);
    let start = rig.reg(MISSING);
    let first = rig.wait(start, Touch::Load);
    let second = rig.wait(start, Touch::Store(1));
    let first = rig.world.thread_id(first);
    let second = rig.world.thread_id(second);
    assert_ne!(first, second);
    let expected = [(READ, first), (WRITE, second)];
    let expected =
        expected.map(|(flags, ptid)| RawMessage::Pagefault { flags, address: start, ptid });
    assert_eq!(rig.world.read(rig.fd, 64), Ok(expected.to_vec()));
}

pub fn row_235_read_gives_as_many_messages_as_fit(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    for page in 0..4 {
        rig.wait(start + page * PAGE, Touch::Load);
    }
    assert_eq!(rig.world.poll(rig.fd), Polled::In);
    assert_eq!(rig.world.read(rig.fd, 63), Ok(vec![fault(READ, start)]));
    let two = vec![fault(READ, start + PAGE), fault(READ, start + 2 * PAGE)];
    assert_eq!(rig.world.read(rig.fd, 64), Ok(two));
    assert_eq!(rig.world.read(rig.fd, 4096), Ok(vec![fault(READ, start + 3 * PAGE)]));
    assert_eq!(rig.world.poll(rig.fd), Polled::Idle);
}

pub fn row_236_every_call_that_fills_wakes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | MINOR);
    let anonymous = rig.reg(MISSING);
    let reader = rig.faults(anonymous, Touch::Load, READ);
    assert_eq!(rig.call(zeropage(anonymous, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(0));

    let reader = rig.faults(anonymous + PAGE, Touch::Load, READ);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(move_(anonymous + PAGE, src, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(7));

    let reader = rig.faults(anonymous + 2 * PAGE, Touch::Load, READ);
    assert_eq!(rig.call(poison(anonymous + 2 * PAGE, 1)), done(1));
    match rig.world.poll_ticket(reader) {
        Step::Done(outcome) => rig.is_poison(anonymous + 2 * PAGE, &outcome),
        Step::Parked(_) => panic!("poison wakes"),
    }

    rig.world.file_store(file, 0, 8);
    let reader = rig.faults(start, Touch::Load, MINOR_READ);
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(8));
}

pub fn row_237_protection_changes_wake_as_they_say(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    let writer = rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.sleeps(writer);
    rig.silent();
    assert_eq!(rig.call(unprotect_silently(start, 1)), OK);
    rig.is(start, P);
    rig.sleeps(writer);
    assert_eq!(rig.call(wake(start, 8)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_238_a_wake_is_about_addresses_and_not_about_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(8);
    rig.munmap(start, 2);
    assert_eq!(rig.call(wake(start, 8)), OK);
    let unaligned = Call::Wake { start: start + 1, len: PAGE };
    assert_eq!(rig.call(unaligned), untouched(EINVAL));
}

pub fn row_239_a_wake_of_a_huge_page_is_for_its_first_byte(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    rig.wait(start + 5 * PAGE, Touch::Load);
    rig.says(fault(READ, start));
    assert_eq!(rig.call(wake(start + 5 * PAGE, 1)), OK);
    rig.silent();
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.says(fault(READ, start));
}

pub fn row_240_the_kernel_waits_for_a_page_as_user_code_does(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::KernelLoad, READ);
    let writer = rig.faults(start + PAGE, Touch::KernelStore(9), WRITE);
    rig.fill(start, 7);
    rig.fill(start + PAGE, 8);
    rig.ended(reader, Outcome::Returned(Ok(1)));
    rig.ended(writer, Outcome::Returned(Ok(1)));
    rig.holds(start + PAGE, 9);

    let populate = rig.world.advise(rig.process, start + 2 * PAGE, 1, Advice::PopulateWrite);
    let populate = parked(populate);
    rig.says(fault(WRITE, start + 2 * PAGE));
    rig.fill(start + 2 * PAGE, 7);
    rig.ended(populate, Outcome::Returned(Ok(0)));
}

pub fn row_241_another_descriptor_does_not_wake_our_waiters(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    let other = rig.another(0);
    let src = rig.source(&[7]);
    assert_eq!(rig.call_on(other, copy(start, src, 1)), done(1));
    assert_eq!(rig.call_on(other, wake(start, 1)), OK);
    rig.sleeps(reader);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(reader, Outcome::Loaded(7));
}

pub fn row_242_the_order_of_faults_and_events_is_kept_among_themselves(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    let mut expected = Vec::new();
    for page in [5, 0, 3] {
        rig.wait(start + page * PAGE, Touch::Load);
        expected.push(fault(READ, start + page * PAGE));
        let at = start + (page + 1) * PAGE;
        parked(rig.world.advise(rig.process, at, 1, Advice::Free));
    }
    for page in [5, 0, 3] {
        let at = start + (page + 1) * PAGE;
        expected.push(RawMessage::Remove { start: at, end: at + PAGE });
    }
    assert_eq!(rig.world.read(rig.fd, 4096), Ok(expected));
}
