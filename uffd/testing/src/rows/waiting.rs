//! Who waits, who is woken, and who is not (sections 3.3 to 3.5 and 4.1).

use godwit_uffd::abi::{Call, MODE_DONTWAKE, RawMessage};

use super::setup::{Rig, finished, parked};
use super::words::*;
use crate::world::{Advice, FileKind, Outcome, Signal, Step, Touch, World};

pub fn row_350_every_call_that_fills_can_let_waiters_sleep(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, shmem) = rig.shmem(MINOR);
    rig.world.file_store(file, 0, 7);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    let (len, mode) = (PAGE, MODE_DONTWAKE);
    let calls = [
        (start, READ, Call::Zeropage { start, len, mode }),
        (start + PAGE, READ, Call::Move { dst: start + PAGE, src, len, mode }),
        (start + 2 * PAGE, READ, Call::Poison { start: start + 2 * PAGE, len, mode }),
        (shmem, MINOR_READ, Call::Continue { start: shmem, len, mode }),
    ];
    for (address, flags, call) in calls {
        let reader = rig.faults(address, Touch::Load, flags);
        assert_eq!(rig.call(call), done(1), "{call:?}");
        rig.sleeps(reader);
        assert_eq!(rig.call(wake(address, 1)), OK);
        let step = rig.world.poll_ticket(reader);
        assert!(matches!(step, Step::Done(_)), "{call:?}: {step:?}");
    }
    rig.silent();
}

pub fn row_351_a_wake_is_for_everybody_in_its_range(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let readers = [0, 2, 5, 7].map(|page| rig.faults(start + page * PAGE, Touch::Load, READ));
    assert_eq!(rig.call(copy_silently(start, src, 8)), done(8));
    assert_eq!(rig.call(wake(start + 2 * PAGE, 4)), OK);
    rig.sleeps(readers[0]);
    rig.ended(readers[1], Outcome::Loaded(3));
    rig.ended(readers[2], Outcome::Loaded(6));
    rig.sleeps(readers[3]);
    assert_eq!(rig.call(wake(start, 8)), OK);
    rig.ended(readers[0], Outcome::Loaded(1));
    rig.ended(readers[3], Outcome::Loaded(8));
}

pub fn row_352_unregister_frees_waiters_of_its_range_alone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let first = rig.faults(start, Touch::Load, READ);
    let last = rig.faults(start + 7 * PAGE, Touch::Load, READ);
    assert_eq!(rig.call(unregister(start + 4 * PAGE, 4)), OK);
    rig.sleeps(first);
    rig.ended(last, Outcome::Loaded(0));
}

pub fn row_353_a_protected_copy_frees_readers_and_not_writers(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let reader = rig.faults(start, Touch::Load, READ);
    let writer = rig.faults(start, Touch::Store(1), WRITE);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy_protected(start, src, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(7));
    rig.sleeps(writer);
    rig.says(fault(WRITE_TO_PROTECTED, start));
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_354_the_kernel_is_woken_to_an_error(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::KernelLoad, READ);
    assert_eq!(rig.call(poison(start, 1)), done(1));
    rig.ended(reader, Outcome::Returned(Err(EFAULT)));
    let writer = rig.faults(start + PAGE, Touch::KernelStore(7), WRITE);
    rig.world.close(rig.fd);
    rig.ended(writer, Outcome::Returned(Ok(1)));
    rig.holds(start + PAGE, 7);
}

pub fn row_355_signals_take_the_place_of_every_kind_of_message(world: &mut dyn World) {
    let mut rig = Rig::new(world, SIGBUS);
    let signal = |address| Outcome::Signal(Signal::BusAddress { address });
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    assert_eq!(rig.touch(start + 9, Touch::Store(2)), signal(start + 9));
    rig.load(start, 1);
    let (file, start) = rig.shmem(MINOR);
    rig.world.file_store(file, 0, 1);
    assert_eq!(rig.touch(start + 9, Touch::Load), signal(start + 9));
    let start = rig.reg(MISSING);
    for advice in [Advice::PopulateRead, Advice::PopulateWrite] {
        let outcome = finished(rig.world.advise(rig.process, start, 1, advice));
        assert_eq!(outcome, Outcome::Returned(Err(EFAULT)), "{advice:?}");
    }
    rig.silent();
}

pub fn row_356_the_exact_address_of_every_kind_of_fault(world: &mut dyn World) {
    let mut rig = Rig::new(world, EXACT_ADDRESS);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    rig.wait(start + 9, Touch::Store(2));
    rig.says(fault(WRITE_TO_PROTECTED, start + 9));
    let (file, start) = rig.shmem(MINOR);
    rig.world.file_store(file, 0, 1);
    rig.wait(start + PAGE - 1, Touch::Load);
    rig.says(fault(MINOR_READ, start + PAGE - 1));
    // A wake is about the address of the message.
    let start = rig.reg(MISSING);
    let reader = rig.wait(start + 9, Touch::Load);
    rig.says(fault(READ, start + 9));
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(0));
}

pub fn row_357_a_signal_does_not_disturb_other_waiters(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let first = rig.faults(start, Touch::Load, READ);
    let second = rig.faults(start, Touch::Load, READ);
    rig.world.interrupt(first);
    rig.sleeps(first);
    rig.sleeps(second);
    rig.says(fault(READ, start));
    rig.silent();
    rig.fill(start, 7);
    rig.ended(first, Outcome::Loaded(7));
    rig.ended(second, Outcome::Loaded(7));
}

pub fn row_358_memory_is_there_until_its_event_is_read(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let advice = parked(rig.world.advise(rig.process, start, 1, Advice::DontNeed));
    rig.load(start, 7);
    rig.store(start, 8);
    rig.says(RawMessage::Remove { start, end: start + PAGE });
    rig.ended(advice, Outcome::Returned(Ok(0)));
    rig.faults(start, Touch::Load, READ);
}

pub fn row_359_a_fault_on_the_way_is_resolved_by_anybody(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    let start = rig.armed(shared(file), 8, MISSING);
    let other = rig.map(shared(file), 8);
    let reader = rig.faults(start, Touch::Load, READ);
    // The page comes into the cache behind the back of the descriptor, which wakes nobody.
    rig.store(other, 7);
    rig.sleeps(reader);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(reader, Outcome::Loaded(7));
    rig.silent();
}
