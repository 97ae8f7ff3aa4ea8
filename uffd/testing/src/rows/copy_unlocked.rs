//! COPY whose source is missing itself: the copy goes on without the locks, and everything is
//! looked up again behind it (section 4.2).

use godwit_uffd::abi::{Answer, RawMessage};

use super::setup::{Rig, answered, finished, open, parked};
use super::words::*;
use crate::world::{
    Access, Advice, Backing, Fd, FileKind, Mapping, Outcome, Placement, Ticket, Touch, World,
};

/// A COPY that sleeps, because the last page of its source is missing in another descriptor.
struct Sleeping {
    dst: u64,
    /// The missing page, and whose it is.
    src: u64,
    owner: Fd,
    call: Ticket,
}

impl Sleeping {
    /// Starts a COPY of `pages` pages to the start of `dst`.
    #[track_caller]
    fn copy_to(rig: &mut Rig, dst: u64, pages: u64) -> Self {
        let owner = rig.another(0);
        let start = rig.source(&[6]);
        let start = if pages == 1 { start } else { rig.source(&[6, 0]) };
        let src = start + (pages - 1) * PAGE;
        rig.map_at(src, Backing::Anonymous, 1);
        assert_eq!(rig.call_on(owner, register(src, 1, MISSING)), ioctls(0x13c));
        let call = rig.start(copy(dst, start, pages));
        rig.says_on(owner, fault(READ, src));
        Self { dst, src, owner, call }
    }

    /// Lets the COPY go on, and expects its answer.
    #[track_caller]
    fn comes_to(self, rig: &mut Rig, answer: Answer) {
        rig.sleeps(self.call);
        let page = rig.source(&[7]);
        assert_eq!(rig.call_on(self.owner, copy(self.src, page, 1)), done(1));
        rig.ended(self.call, Outcome::Ioctl(answer));
    }
}

pub fn row_061_a_missing_source_is_waited_for(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.is(start, N);
    sleeping.comes_to(&mut rig, done(1));
    rig.is(start, P);
    rig.holds(start, 7);
}

pub fn row_062_the_destination_is_looked_up_again(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.fill(start, 1);
    sleeping.comes_to(&mut rig, refused(EEXIST));
    rig.holds(start, 1);

    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.munmap(sleeping.dst, 8);
    sleeping.comes_to(&mut rig, refused(ENOENT));

    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    sleeping.comes_to(&mut rig, refused(ENOENT));
    rig.is(start, N);
}

pub fn row_063_the_destination_becomes_other_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.map_at(start, Backing::SharedAnonymous, 8);
    rig.arm(start, 8, MISSING);
    if rig.newest() {
        sleeping.comes_to(&mut rig, refused(EAGAIN));
        rig.is(start, N);
    } else {
        sleeping.comes_to(&mut rig, done(1));
        rig.is(start, F);
        rig.holds(start, 7);
    }
}

pub fn row_064_the_destination_gets_another_mode(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.arm(start, 8, MISSING | WP);
    if rig.newest() {
        sleeping.comes_to(&mut rig, refused(EAGAIN));
        rig.is(start, N);
    } else {
        sleeping.comes_to(&mut rig, done(1));
        rig.is(start, P);
        rig.holds(start, 7);
    }
}

pub fn row_065_pages_before_the_wait_stay_done(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let reader = rig.faults(start + 2 * PAGE, Touch::Load, READ);
    let sleeping = Sleeping::copy_to(&mut rig, start, 2);
    rig.holds(start, 6);
    rig.munmap(start, 2);
    sleeping.comes_to(&mut rig, partial(1));
    rig.sleeps(reader);
}

/// A child process that copies into the memory of its parent, from a source that never comes.
#[track_caller]
fn dying_copy(rig: &mut Rig, dst: u64, pages: u64) {
    let child = rig.fork();
    let owner = open(rig.world, child, 0);
    let access = Access::ReadWrite;
    let mapping = Mapping { pages: 2, backing: Backing::Anonymous, access, at: None };
    let start = rig.world.map(child, mapping).expect("a mapping");
    let src = start + (pages - 1) * PAGE;
    if pages == 2 {
        let stored = finished(rig.world.touch(child, start, Touch::Store(6)));
        assert_eq!(stored, Outcome::Stored);
    }
    let call = register(src, 1, MISSING);
    let registered = answered(rig.world.ioctl(child, owner, call, Placement::Ordinary));
    assert_eq!(registered, ioctls(0x13c));
    parked(rig.world.ioctl(child, rig.fd, copy(dst, start, pages), Placement::Ordinary));
    rig.says_on(owner, fault(READ, src));
    rig.world.exit(child);
}

pub fn row_130_a_fatal_signal_ends_a_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let first = rig.faults(start, Touch::Load, READ);
    dying_copy(&mut rig, start, 1);
    // The dead cannot be asked for the error, but nothing is done and nobody is woken.
    rig.is(start, N);
    rig.sleeps(first);
    rig.silent();

    let second = rig.faults(start + PAGE, Touch::Load, READ);
    dying_copy(&mut rig, start, 2);
    // The page that is done is woken for; the other is as it was.
    rig.ended(first, Outcome::Loaded(6));
    rig.is(start + PAGE, N);
    rig.sleeps(second);
    rig.silent();
}

pub fn row_260_what_may_change_during_a_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    // Fresh memory of the same kind and modes.
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.map_at(start, Backing::Anonymous, 8);
    rig.arm(start, 8, MISSING);
    sleeping.comes_to(&mut rig, done(1));
    rig.holds(start, 7);

    // Other rights.
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    rig.mprotect(start, 8, Access::Read);
    sleeping.comes_to(&mut rig, done(1));
    rig.load(start, 7);

    // Another owner with the same modes.
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    assert_eq!(rig.call(unregister(start, 8)), OK);
    let other = rig.another(0);
    assert_eq!(rig.call_on(other, register(start, 8, MISSING)), ioctls(0x13c));
    sleeping.comes_to(&mut rig, done(1));
    rig.holds(start, 7);
}

pub fn row_261_protection_lost_during_a_protected_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let owner = rig.another(0);
    let src = rig.anonymous(1);
    assert_eq!(rig.call_on(owner, register(src, 1, MISSING)), ioctls(0x13c));
    let call = rig.start(copy_protected(start, src, 1));
    rig.says_on(owner, fault(READ, src));
    assert_eq!(rig.call(unregister(start, 8)), OK);
    rig.arm(start, 8, MISSING);
    assert_eq!(rig.call_on(owner, zeropage(src, 1)), done(1));
    rig.ended(call, Outcome::Ioctl(refused(EINVAL)));
    rig.is(start, N);
}

pub fn row_262_an_event_during_a_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    let advice = rig.world.advise(rig.process, start + PAGE, 1, Advice::DontNeed);
    let advice = parked(advice);
    let page = rig.source(&[7]);
    assert_eq!(rig.call_on(sleeping.owner, copy(sleeping.src, page, 1)), done(1));
    rig.ended(sleeping.call, Outcome::Ioctl(refused(EAGAIN)));
    rig.is(start, N);
    rig.says(RawMessage::Remove { start: start + PAGE, end: start + 2 * PAGE });
    rig.ended(advice, Outcome::Returned(Ok(0)));
}

pub fn row_263_a_file_that_shrinks_during_a_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start + 4 * PAGE, 1);
    rig.world.file_truncate(file, 2);
    sleeping.comes_to(&mut rig, refused(EFAULT));
    rig.is(start + 4 * PAGE, N);
}

pub fn row_264_another_file_during_a_copy(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (_, start) = rig.shmem(MISSING);
    let sleeping = Sleeping::copy_to(&mut rig, start, 1);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.map_at(start, shared(file), 8);
    rig.arm(start, 8, MISSING);
    if rig.newest() {
        sleeping.comes_to(&mut rig, refused(EAGAIN));
        assert_eq!(rig.world.file_load(file, 0), None);
    } else {
        sleeping.comes_to(&mut rig, done(1));
        assert_eq!(rig.world.file_load(file, 0), Some(7));
    }
}

pub fn row_265_a_huge_page_waits_for_its_source_too(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    let owner = rig.another(0);
    let src = rig.anonymous(HUGE_PAGES);
    rig.store(src, 6);
    let missing = src + 300 * PAGE;
    assert_eq!(rig.call_on(owner, register(missing, 1, MISSING)), ioctls(0x13c));
    let call = rig.start(copy(start, src, HUGE_PAGES));
    rig.says_on(owner, fault(READ, missing));
    let page = rig.source(&[7]);
    assert_eq!(rig.call_on(owner, copy(missing, page, 1)), done(1));
    rig.ended(call, Outcome::Ioctl(done(HUGE_PAGES)));
    rig.load(start, 6);
    rig.load(start + 300 * PAGE, 7);
}
