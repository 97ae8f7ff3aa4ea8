//! COPY whose source is missing itself: the copy goes on without the locks, and everything is
//! looked up again behind it (section 4.2).

use godwit_uffd::abi::Answer;

use super::setup::{Rig, answered, finished, open, parked};
use super::words::*;
use crate::world::{Access, Backing, Fd, Mapping, Outcome, Placement, Ticket, Touch, World};

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
