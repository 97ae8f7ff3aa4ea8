//! Where two rules meet: protection and fork, protection and the kernel, registration and
//! registration, private memory of files.

use godwit_uffd::abi::RawMessage;

use super::setup::{Rig, parked, until};
use super::words::*;
use crate::world::{Advice, Backing, FileKind, Outcome, Polled, Signal, Step, Touch, World};

pub fn row_380_protection_of_shared_memory_and_a_fork(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (_, start) = rig.shmem(MISSING | WP);
    rig.fill(start, 7);
    assert_eq!(rig.call(protect(start, 2)), OK);
    let child = rig.fork();
    // What can be made anew from the file is not copied.
    rig.is_in(child, start, N);
    rig.is_in(child, start + PAGE, N);
    let stored = rig.world.touch(child, start, Touch::Store(8));
    assert_eq!(stored, Step::Done(Outcome::Stored));
    rig.is(start, FW);
    rig.holds(start, 8);

    let mut rig = Rig::new(rig.world, EVENT_FORK);
    let (_, start) = rig.shmem(MISSING | WP);
    rig.fill(start, 7);
    assert_eq!(rig.call(protect(start, 2)), OK);
    let (child, fd) = rig.fork_with_event();
    rig.is_in(child, start, FW);
    rig.is_in(child, start + PAGE, W);
    parked(rig.world.touch(child, start, Touch::Store(8)));
    rig.says_on(fd, fault(WRITE_TO_PROTECTED, start));
}

pub fn row_381_protection_of_swapped_pages_and_a_fork(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(SW, start, 7);
    let child = rig.fork();
    rig.is(start, SW);
    rig.is_in(child, start, S);
    let stored = rig.world.touch(child, start, Touch::Store(8));
    assert_eq!(stored, Step::Done(Outcome::Stored));
    rig.load(start, 7);
    rig.faults(start, Touch::Store(9), WRITE_TO_PROTECTED);
}

pub fn row_382_the_kernel_waits_at_protected_pages(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    for (page, entry) in (0..).zip([PW, ZW]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 7);
        assert_eq!(rig.touch(address, Touch::KernelLoad), Outcome::Returned(Ok(1)));
        let writer = rig.faults(address, Touch::KernelStore(8), WRITE_TO_PROTECTED);
        assert_eq!(rig.call(unprotect(address, 1)), OK);
        rig.ended(writer, Outcome::Returned(Ok(1)));
        rig.holds(address, 8);
    }
}

pub fn row_383_unprotect_that_fails_wakes_nobody(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    let writer = rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unregister(start + 4 * PAGE, 4)), OK);
    assert_eq!(rig.call(unprotect(start, 8)), untouched(ENOENT));
    rig.is(start, P);
    rig.sleeps(writer);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_384_register_over_parts_with_other_modes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(8);
    rig.arm(start, 2, MISSING);
    rig.arm(start + 4 * PAGE, 2, MISSING | WP);
    assert_eq!(rig.call(register(start, 8, MISSING | WP)), ioctls(0x17c));
    rig.put(PW, start, 1);
    rig.put(PW, start + 7 * PAGE, 1);
    rig.faults(start + PAGE, Touch::Load, READ);
    rig.faults(start + 3 * PAGE, Touch::Load, READ);
    rig.faults(start + 7 * PAGE, Touch::Store(2), WRITE_TO_PROTECTED);
}

pub fn row_385_a_protected_hole_of_a_private_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 1, 7);
    rig.world.file_store(file, 2, 7);
    let start = rig.armed(private(file), 8, WP);
    assert_eq!(rig.call(protect(start, 8)), OK);
    rig.is(start, W);
    // A read maps the page of the cache, protected; a write gives a copy, when it may.
    rig.load(start + PAGE, 7);
    rig.silent();
    rig.is(start + PAGE, FW);
    let writer = rig.faults(start + PAGE, Touch::Store(8), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start + PAGE, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.is(start + PAGE, P);
    // A write to the marker makes the copy first.
    rig.faults(start + 2 * PAGE, Touch::Store(8), WRITE_TO_PROTECTED);
    rig.is(start + 2 * PAGE, PW);
    assert_eq!(rig.world.file_load(file, 1), Some(7));
}

pub fn row_386_poll_tells_of_events_and_faults(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    assert_eq!(rig.world.poll(rig.fd), Polled::Idle);
    let advice = parked(rig.world.advise(rig.process, start, 1, Advice::DontNeed));
    assert_eq!(rig.world.poll(rig.fd), Polled::In);
    rig.says(RawMessage::Remove { start, end: start + PAGE });
    rig.ended(advice, Outcome::Returned(Ok(0)));
    assert_eq!(rig.world.poll(rig.fd), Polled::Idle);
    let reader = rig.wait(start, Touch::Load);
    assert_eq!(rig.world.poll(rig.fd), Polled::In);
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
    assert_eq!(rig.world.poll(rig.fd), Polled::Idle);
}

pub fn row_387_a_merged_page_moves_once_it_is_written_to(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let merged = rig.source(&[9, 9]);
    rig.advise(merged, 2, Advice::Mergeable);
    until("the pages are merged", || {
        [merged, merged + PAGE].iter().all(|page| rig.world.entry(rig.process, *page) == PS)
    });
    assert_eq!(rig.call(move_(start, merged, 1)), refused(EBUSY));
    rig.store(merged, 8);
    assert_eq!(rig.call(move_(start, merged, 1)), done(1));
    rig.holds(start, 8);
}

pub fn row_388_a_pinned_page_stays_the_parents(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    rig.world.pin(rig.process, src);
    let child = rig.fork();
    // The child has a copy, so the page is still exclusive to its owner.
    rig.is(src, P);
    rig.is_in(child, src, P);
    rig.world.unpin(rig.process, src);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    assert_eq!(rig.world.peek(child, src), Some(7));
}

pub fn row_389_memory_mapped_over_registered_memory_is_not_registered(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.map_at(start + 2 * PAGE, Backing::Anonymous, 2);
    rig.load(start + 2 * PAGE, 0);
    rig.silent();
    rig.faults(start + PAGE, Touch::Load, READ);
    rig.faults(start + 4 * PAGE, Touch::Load, READ);
}

pub fn row_390_a_fault_whose_memory_is_unmapped_is_a_signal(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start, Touch::Load, READ);
    rig.munmap(start, 8);
    // Nobody is woken by munmap; a wake lets the access find out.
    rig.sleeps(reader);
    assert_eq!(rig.call(wake(start, 1)), OK);
    rig.ended(reader, Outcome::Signal(Signal::Segv { address: start }));
}
