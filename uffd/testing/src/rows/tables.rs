//! Calls across the edges of page tables and of mappings (sections 4.1, 4.7 and 4.8).

use godwit_uffd::abi::RawMessage;

use super::setup::{Rig, finished, forked, parked};
use super::words::*;
use crate::world::{Access, Advice, Backing, Entry, Fd, Outcome, Touch, World};

pub fn row_360_a_copy_crosses_page_tables(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING) + HUGE - 2 * PAGE;
    let src = rig.source(&[1, 2, 3, 4]);
    assert_eq!(rig.call(copy(start, src, 4)), done(4));
    for page in 0..4_u8 {
        rig.holds(start + u64::from(page) * PAGE, page + 1);
    }
    rig.is(start - PAGE, N);
    rig.is(start + 4 * PAGE, N);
    assert_eq!(rig.call(zeropage(start + 4 * PAGE, 4)), done(4));
    assert_eq!(rig.call(poison(start - 4 * PAGE, 8)), partial(4));
}

pub fn row_361_a_move_crosses_page_tables_on_both_sides(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING) + HUGE - 3 * PAGE;
    let src = rig.anonymous(2 * HUGE_PAGES) + HUGE - PAGE;
    for page in 0..5_u8 {
        rig.store(src + u64::from(page) * PAGE, page + 1);
    }
    assert_eq!(rig.call(move_(start, src, 5)), done(5));
    for page in 0..5_u8 {
        rig.holds(start + u64::from(page) * PAGE, page + 1);
        rig.is(src + u64::from(page) * PAGE, N);
    }
}

pub fn row_362_empty_page_tables_are_made_for_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING | WP);
    assert_eq!(rig.call(protect(start, 2 * HUGE_PAGES)), OK);
    for page in [0, HUGE_PAGES - 1, HUGE_PAGES, 2 * HUGE_PAGES - 1] {
        rig.is(start + page * PAGE, W);
    }
    // A huge page that could come whole comes into the table that is there.
    assert_eq!(rig.call(unprotect(start, 2 * HUGE_PAGES)), OK);
    rig.is(start, N);
    let src = rig.huge(7);
    assert_eq!(rig.call(move_with_holes(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, P);
    rig.holds(start, 7);
}

pub fn row_363_move_with_holes_where_the_source_has_no_tables(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, 3 * HUGE_PAGES, MISSING);
    let src = rig.anonymous(3 * HUGE_PAGES);
    rig.store(src + 2 * HUGE + PAGE, 7);
    let pages = 3 * HUGE_PAGES;
    assert_eq!(rig.call(move_(start, src, pages)), refused(ENOENT));
    assert_eq!(rig.call(move_with_holes(start, src, pages)), done(pages));
    rig.is(start + 2 * HUGE, N);
    rig.is(start + 2 * HUGE + PAGE, P);
    rig.holds(start + 2 * HUGE + PAGE, 7);
}

pub fn row_364_protection_crosses_mappings_of_any_owner(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    let other = rig.another(0);
    let src = rig.source(&[7]);
    rig.put(P, start, 1);
    rig.map_at(start + 4 * PAGE, Backing::SharedAnonymous, 4);
    assert_eq!(rig.call_on(other, register(start + 4 * PAGE, 4, MISSING | WP)), ioctls(0x17c));
    assert_eq!(rig.call(copy(start + 4 * PAGE, src, 1)), done(1));
    assert_eq!(rig.call(protect(start, 8)), OK);
    rig.is(start, PW);
    rig.is(start + 4 * PAGE, FW);
    rig.is(start + 5 * PAGE, W);
    // Messages go to the owner.
    parked(rig.world.touch(rig.process, start + 4 * PAGE, Touch::Store(8)));
    rig.says_on(other, fault(WRITE_TO_PROTECTED, start + 4 * PAGE));
    rig.silent();
}

pub fn row_365_each_descriptor_is_told_of_a_fork_in_turn(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_FORK);
    rig.reg(MISSING);
    let other = rig.another(EVENT_FORK);
    let start = rig.anonymous(4);
    assert_eq!(rig.call_on(other, register(start, 4, MISSING)), ioctls(0x13c));
    let fork = parked(rig.world.fork(rig.process));
    let mut children = Vec::new();
    for (fd, silent) in [(rig.fd, other), (other, rig.fd)] {
        rig.sleeps(fork);
        assert_eq!(rig.world.read(silent, 32), Err(EAGAIN));
        let messages = rig.world.read(fd, 96);
        let Ok([RawMessage::Fork { fd }]) = messages.as_deref() else { panic!("{messages:?}") };
        children.push(Fd(*fd));
    }
    let child = forked(rig.world.poll_ticket(fork));
    let reader = parked(rig.world.touch(child, start, Touch::Load));
    assert_eq!(rig.world.read(children[0], 32), Err(EAGAIN));
    rig.says_on(children[1], fault(READ, start));
    rig.sleeps(reader);
}

pub fn row_366_a_childs_huge_page_is_not_protected_without_the_event(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.huge(7);
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start, HUGE_PAGES)), OK);
    let child = rig.fork();
    let shared = |protected| Entry::Anonymous { exclusive: false, protected, huge: true };
    rig.is(start, shared(true));
    rig.is_in(child, start, shared(false));
    rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
}

pub fn row_367_a_guard_takes_the_place_of_what_is_there(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    for (page, entry) in (0..).zip([P, PW, Z, W, X]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        rig.advise(address, 1, Advice::GuardInstall);
        rig.is(address, G);
    }
    rig.advise(start, 8, Advice::GuardRemove);
    rig.is(start, N);
    rig.is(start + 4 * PAGE, N);
}

pub fn row_368_armed_holes_and_protected_pages_are_not_collapsed(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let collapse = |rig: &mut Rig, start| {
        finished(rig.world.advise(rig.process, start, HUGE_PAGES, Advice::Collapse))
    };
    let start = rig.anonymous(HUGE_PAGES);
    rig.arm(start, HUGE_PAGES, MISSING);
    rig.fill(start, 7);
    assert_eq!(collapse(&mut rig, start), Outcome::Returned(Err(EBUSY)));
    rig.is(start, P);
    rig.is(start + PAGE, N);
    rig.faults(start + PAGE, Touch::Load, READ);

    let start = rig.anonymous(HUGE_PAGES);
    for page in 0..HUGE_PAGES {
        rig.store(start + page * PAGE, 7);
    }
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start + 5 * PAGE, 1)), OK);
    assert_eq!(collapse(&mut rig, start), Outcome::Returned(Err(EINVAL)));
    rig.is(start + 5 * PAGE, PW);
    assert_eq!(rig.call(unprotect(start + 5 * PAGE, 1)), OK);
    assert_eq!(collapse(&mut rig, start), Outcome::Returned(Ok(0)));
    rig.is(start + 5 * PAGE, T);
}

pub fn row_369_rights_and_protection_are_two_things(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(P, start, 1);
    rig.mprotect(start, 8, Access::Read);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, PW);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.is(start, P);
    rig.mprotect(start, 8, Access::None);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.mprotect(start, 8, Access::ReadWrite);
    rig.is(start, PW);
    rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
}
