//! Events, and what fork, mremap and the end of a process do (section 3.6).

use godwit_uffd::abi::{Call, RawMessage};

use super::setup::{Rig, answered, forked, parked};
use super::words::*;
use crate::world::{
    Advice, Entry, Outcome, Placement, Polled, Remap, Signal, Step, Ticket, Touch, World,
};

/// madvise that sleeps until its REMOVE event is read.
#[track_caller]
fn removing(rig: &mut Rig, start: u64, pages: u64) -> Ticket {
    parked(rig.world.advise(rig.process, start, pages, Advice::DontNeed))
}

pub fn row_114_memory_is_given_up_when_the_event_is_read(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    rig.fill(start + PAGE, 8);
    let advice = removing(&mut rig, start, 2);
    rig.sleeps(advice);
    rig.is(start, P);
    rig.holds(start, 7);
    rig.says(RawMessage::Remove { start, end: start + 2 * PAGE });
    rig.ended(advice, Outcome::Returned(Ok(0)));
    rig.is(start, N);
    rig.is(start + PAGE, N);
    rig.silent();
}

pub fn row_115_calls_that_fill_are_refused_while_an_event_is_unread(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING | WP);
    let fresh = rig.anonymous(4);
    let src = rig.source(&[7]);
    rig.fill(start, 1);
    let advice = removing(&mut rig, start, 1);
    let hole = start + PAGE;
    assert_eq!(rig.call(copy(hole, src, 1)), refused(EAGAIN));
    assert_eq!(rig.call(zeropage(hole, 1)), refused(EAGAIN));
    assert_eq!(rig.call(continue_(hole, 1)), refused(EAGAIN));
    assert_eq!(rig.call(poison(hole, 1)), refused(EAGAIN));
    assert_eq!(rig.call(move_(hole, src, 1)), refused(EAGAIN));
    rig.is(hole, N);
    assert_eq!(rig.call(protect(start, 1)), untouched(EAGAIN));
    assert_eq!(rig.call(wake(start, 1)), OK);
    assert_eq!(rig.call(register(fresh, 4, MISSING)), ioctls(0x13c));
    rig.sleeps(advice);

    rig.says(RawMessage::Remove { start, end: start + PAGE });
    rig.ended(advice, Outcome::Returned(Ok(0)));
    assert_eq!(rig.call(copy(hole, src, 1)), done(1));
}

pub fn row_116_an_unread_event_is_looked_for_before_the_arguments(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING | WP);
    let src = rig.source(&[7]);
    removing(&mut rig, start, 1);
    let nowhere = Placement::Unmapped;
    assert_eq!(rig.call_with(copy(start, src, 1), nowhere), untouched(EFAULT));
    assert_eq!(rig.call_with(protect(start, 1), nowhere), untouched(EAGAIN));
    // Bad arguments are not noticed.
    let call = Call::Copy { dst: start + 1, src, len: 0, mode: 0xff };
    assert_eq!(rig.call(call), refused(EAGAIN));
}

pub fn row_117_a_moving_mremap_is_told_twice(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMAP | EVENT_UNMAP);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let to = rig.anonymous(8);
    let remap = parked(rig.moving(start, 8, to));
    let len = 8 * PAGE;
    rig.says(RawMessage::Remap { from: start, to, len });
    rig.sleeps(remap);
    rig.says(RawMessage::Unmap { start, end: start + len });
    rig.ended(remap, Outcome::Returned(Ok(to)));
    rig.silent();
    rig.is(to, P);
    rig.holds(to, 7);
    // The registration has moved along.
    rig.faults(to + PAGE, Touch::Load, READ);
}

pub fn row_118_mremap_can_leave_the_old_range_registered(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMAP | EVENT_UNMAP);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let to = rig.anonymous(8);
    let remap = Remap { from: start, pages: 8, new_pages: 8, to: Some(to), dont_unmap: true };
    let remap = parked(rig.world.remap(rig.process, remap));
    rig.says(RawMessage::Remap { from: start, to, len: 8 * PAGE });
    rig.ended(remap, Outcome::Returned(Ok(to)));
    rig.silent();
    rig.holds(to, 7);
    rig.faults(start, Touch::Load, READ);
    rig.faults(to + PAGE, Touch::Load, READ);
}

pub fn row_119_mremap_without_its_event_unregisters(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(PW, start, 7);
    rig.put(W, start + PAGE, 0);
    let to = rig.anonymous(8);
    let step = rig.moving(start, 8, to);
    assert_eq!(step, Step::Done(Outcome::Returned(Ok(to))));
    rig.silent();
    rig.is(to, P);
    rig.holds(to, 7);
    rig.is(to + PAGE, N);
    rig.load(to + 2 * PAGE, 0);
    assert_eq!(rig.call(protect(to, 8)), untouched(ENOENT));
}

pub fn row_120_a_fork_gives_the_child_a_descriptor(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let (child, fd) = rig.fork_with_event();
    assert_eq!(rig.call_on(fd, api(0)), zeroed(EINVAL));
    let reader = parked(rig.world.touch(child, start + PAGE, Touch::Load));
    rig.says_on(fd, fault(READ, start + PAGE));
    rig.silent();
    let src = rig.source(&[9]);
    assert_eq!(rig.call_on(fd, copy(start + PAGE, src, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(9));
    // It is the child's memory and not ours.
    rig.is(start + PAGE, N);
    assert_eq!(rig.world.peek(child, start), Some(7));
}

pub fn row_121_a_child_without_the_event_is_not_registered(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(PW, start, 7);
    rig.put(W, start + PAGE, 0);
    rig.put(X, start + 2 * PAGE, 0);
    rig.put(G, start + 3 * PAGE, 0);
    let child = rig.fork();
    rig.is_in(child, start, PS);
    rig.is_in(child, start + PAGE, N);
    rig.is_in(child, start + 2 * PAGE, X);
    rig.is_in(child, start + 3 * PAGE, G);
    let stored = rig.world.touch(child, start, Touch::Store(8));
    assert_eq!(stored, Step::Done(Outcome::Stored));
    let loaded = rig.world.touch(child, start + 4 * PAGE, Touch::Load);
    assert_eq!(loaded, Step::Done(Outcome::Loaded(0)));
    rig.silent();
    rig.holds(start, 7);
    rig.is(start + PAGE, W);
}

pub fn row_122_an_inherited_descriptor_is_about_the_parent(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    let child = rig.fork();
    let stored = rig.world.touch(child, src, Touch::Store(8));
    assert_eq!(stored, Step::Done(Outcome::Stored));
    let call = copy(start, src, 1);
    let answer = answered(rig.world.ioctl(child, rig.fd, call, Placement::Ordinary));
    assert_eq!(answer, done(1));
    rig.is(start, P);
    rig.holds(start, 8);
    rig.is_in(child, start, N);

    let call = move_(start + PAGE, src, 1);
    let answer = answered(rig.world.ioctl(child, rig.fd, call, Placement::Ordinary));
    assert_eq!(answer, untouched(EINVAL));
    rig.is(start + PAGE, N);
}

pub fn row_123_calls_on_the_memory_of_the_dead(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    let start = rig.reg(MISSING | WP);
    let src = rig.source(&[7]);
    let (child, fd) = rig.fork_with_event();
    rig.world.exit(child);
    let calls = [
        copy(start, src, 1),
        zeropage(start, 1),
        continue_(start, 1),
        poison(start, 1),
        protect(start, 1),
    ];
    for call in calls {
        assert_eq!(rig.call_on(fd, call), untouched(ESRCH), "{call:?}");
    }
    let call = Call::Copy { dst: start, src, len: 0, mode: 0 };
    assert_eq!(rig.call_on(fd, call), untouched(EINVAL), "{call:?}");
    assert_eq!(rig.call_on(fd, register(start, 8, MISSING)), untouched(ENOMEM));
    assert_eq!(rig.call_on(fd, unregister(start, 8)), untouched(ENOMEM));
    assert_eq!(rig.call_on(fd, wake(start, 8)), OK);
    assert_eq!(rig.call_on(fd, move_(start, src, 1)), untouched(EINVAL));
    assert_eq!(rig.world.read(fd, 32), Err(EAGAIN));
    assert_eq!(rig.world.poll(fd), Polled::Idle);
    // The parent's goes on.
    rig.fill(start, 7);
}

pub fn row_320_what_raises_a_remove_event(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let (file, start) = rig.shmem(MISSING);
    let anonymous = rig.reg(MISSING);
    let advised = [(start, Advice::DontNeed), (start, Advice::Remove), (anonymous, Advice::Free)];
    for (at, advice) in advised {
        let ticket = parked(rig.world.advise(rig.process, at + PAGE, 2, advice));
        rig.says(RawMessage::Remove { start: at + PAGE, end: at + 3 * PAGE });
        rig.ended(ticket, Outcome::Returned(Ok(0)));
    }
    // What is done to the file, and guards, raise none.
    rig.fill(start, 7);
    rig.world.file_punch(file, 0);
    rig.world.file_truncate(file, 4);
    rig.advise(anonymous, 1, Advice::GuardInstall);
    // Nor does memory that is not registered.
    let other = rig.source(&[1]);
    rig.advise(other, 1, Advice::DontNeed);
    rig.silent();
}

pub fn row_321_an_event_is_about_the_registered_part(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.anonymous(8);
    rig.arm(start + 2 * PAGE, 4, MISSING);
    let ticket = removing(&mut rig, start, 8);
    rig.says(RawMessage::Remove { start: start + 2 * PAGE, end: start + 6 * PAGE });
    rig.ended(ticket, Outcome::Returned(Ok(0)));
    rig.silent();
}

pub fn row_322_munmap_is_told_when_the_memory_is_gone(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_UNMAP);
    let start = rig.reg(MISSING);
    rig.fill(start + 2 * PAGE, 7);
    let unmap = parked(rig.world.unmap(rig.process, start + 2 * PAGE, 4));
    rig.is(start + 2 * PAGE, N);
    let signal = Signal::Segv { address: start + 2 * PAGE };
    assert_eq!(rig.touch(start + 2 * PAGE, Touch::Load), Outcome::Signal(signal));
    rig.says(RawMessage::Unmap { start: start + 2 * PAGE, end: start + 6 * PAGE });
    rig.ended(unmap, Outcome::Returned(Ok(0)));
    rig.silent();
    let other = rig.anonymous(4);
    rig.munmap(other, 4);
    rig.silent();
}

pub fn row_323_a_growing_mremap_registers_its_tail(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMAP);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let to = rig.anonymous(16);
    let remap = Remap { from: start, pages: 8, new_pages: 16, to: Some(to), dont_unmap: false };
    let remap = parked(rig.world.remap(rig.process, remap));
    rig.says(RawMessage::Remap { from: start, to, len: 8 * PAGE });
    rig.ended(remap, Outcome::Returned(Ok(to)));
    rig.holds(to, 7);
    rig.faults(to + 15 * PAGE, Touch::Load, READ);
}

pub fn row_324_a_shrinking_mremap_is_told_as_munmap(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMAP | EVENT_UNMAP);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let remap = Remap { from: start, pages: 8, new_pages: 4, to: None, dont_unmap: false };
    let remap = parked(rig.world.remap(rig.process, remap));
    rig.says(RawMessage::Unmap { start: start + 4 * PAGE, end: start + 8 * PAGE });
    rig.ended(remap, Outcome::Returned(Ok(start)));
    rig.silent();
    rig.holds(start, 7);
    rig.faults(start + PAGE, Touch::Load, READ);
}

pub fn row_325_the_childs_memory_is_as_the_parents(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK | UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(PW, start, 7);
    rig.put(W, start + PAGE, 0);
    rig.put(X, start + 2 * PAGE, 0);
    let (child, fd) = rig.fork_with_event();
    rig.is_in(child, start, Entry::Anonymous { exclusive: false, protected: true, huge: false });
    rig.is_in(child, start + PAGE, W);
    rig.is_in(child, start + 2 * PAGE, X);
    // Features and flags are inherited.
    assert_eq!(rig.world.fd_info(fd).features, EVENT_FORK | UNPOPULATED);
    assert_eq!(rig.world.read(fd, 32), Err(EAGAIN));
    let writer = parked(rig.world.touch(child, start, Touch::Store(8)));
    rig.says_on(fd, fault(WRITE_TO_PROTECTED, start));
    assert_eq!(rig.call_on(fd, unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    assert_eq!(rig.world.peek(child, start), Some(8));
    rig.holds(start, 7);
    // The child of the child too.
    let fork = parked(rig.world.fork(child));
    let messages = rig.world.read(fd, 32);
    assert!(matches!(messages.as_deref(), Ok([RawMessage::Fork { .. }])), "{messages:?}");
    forked(rig.world.poll_ticket(fork));
}

pub fn row_326_a_fork_without_registered_memory_is_silent(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    rig.fork();
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.fork();
    rig.silent();
}

pub fn row_327_close_lets_events_go_on(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE | EVENT_UNMAP);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    let advice = removing(&mut rig, start, 1);
    let unmap = parked(rig.world.unmap(rig.process, start + 4 * PAGE, 4));
    rig.world.close(rig.fd);
    rig.ended(advice, Outcome::Returned(Ok(0)));
    rig.ended(unmap, Outcome::Returned(Ok(0)));
    rig.is(start, N);
    rig.load(start, 0);
}

pub fn row_328_two_events_hold_calls_off_until_both_are_read(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    let first = removing(&mut rig, start, 1);
    let second = removing(&mut rig, start + PAGE, 1);
    let src = rig.source(&[7]);
    rig.says(RawMessage::Remove { start, end: start + PAGE });
    rig.ended(first, Outcome::Returned(Ok(0)));
    assert_eq!(rig.call(copy(start, src, 1)), refused(EAGAIN));
    rig.says(RawMessage::Remove { start: start + PAGE, end: start + 2 * PAGE });
    rig.ended(second, Outcome::Returned(Ok(0)));
    assert_eq!(rig.call(copy(start, src, 1)), done(1));
}

pub fn row_329_an_event_holds_only_its_own_descriptor_off(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    let other = rig.another(0);
    removing(&mut rig, start, 1);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy(start + PAGE, src, 1)), refused(EAGAIN));
    assert_eq!(rig.call_on(other, copy(start + PAGE, src, 1)), done(1));
    rig.holds(start + PAGE, 7);
}

pub fn row_330_a_child_ends_what_it_waits_for(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    let start = rig.reg(MISSING);
    let (child, fd) = rig.fork_with_event();
    parked(rig.world.touch(child, start, Touch::Load));
    assert_eq!(rig.world.fd_info(fd).pending, 1);
    rig.world.exit(child);
    assert_eq!(rig.world.fd_info(fd).total, 0);
    assert_eq!(rig.world.read(fd, 32), Err(EAGAIN));
}

pub fn row_331_protected_memory_moves_with_its_registration(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMAP | UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(PW, start, 7);
    rig.put(W, start + PAGE, 0);
    let to = rig.anonymous(8);
    let remap = parked(rig.moving(start, 8, to));
    rig.says(RawMessage::Remap { from: start, to, len: 8 * PAGE });
    rig.ended(remap, Outcome::Returned(Ok(to)));
    rig.is(to, PW);
    rig.is(to + PAGE, W);
    rig.faults(to, Touch::Store(8), WRITE_TO_PROTECTED);
}
