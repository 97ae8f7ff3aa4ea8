//! MOVE (section 4.8).

use godwit_uffd::abi::Errno;

use super::setup::{Rig, until};
use super::words::*;
use crate::world::{Access, Advice, Backing, FileKind, Outcome, Touch, World};

/// Expects that a MOVE of one page, with holes or without, is refused and changes nothing.
#[track_caller]
fn refuses(rig: &mut Rig, dst: u64, src: u64, errno: Errno) {
    for call in [move_(dst, src, 1), move_with_holes(dst, src, 1)] {
        let before = [dst, src].map(|address| rig.world.entry(rig.process, address));
        assert_eq!(rig.call(call), refused(errno));
        let after = [dst, src].map(|address| rig.world.entry(rig.process, address));
        assert_eq!(before, after, "the entries of destination and source");
    }
}

pub fn row_099_move_takes_the_page_along(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.is(src, N);
    rig.is(start, P);
    rig.holds(start, 7);
    rig.store(start, 8);
    rig.silent();
    rig.load(src, 0);
}

pub fn row_100_a_hole_is_moved_on_request(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.anonymous(4);
    assert_eq!(rig.call(move_(start, src, 1)), refused(ENOENT));
    assert_eq!(rig.call(move_with_holes(start, src, 1)), done(1));
    rig.is(start, N);
    rig.is(src, N);
}

pub fn row_101_move_wants_an_empty_destination(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    let src = rig.source(&[7]);
    for (page, entry) in (0..).zip([P, W, X, Z, G]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        refuses(&mut rig, address, src, EEXIST);
    }
    // The destination is looked at first, if the source has a page table at all.
    let hole = rig.anonymous(2);
    rig.store(hole + PAGE, 7);
    refuses(&mut rig, start, hole, EEXIST);
}

pub fn row_102_move_stops_at_a_hole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.anonymous(4);
    rig.store(src, 7);
    assert_eq!(rig.call(move_(start, src, 2)), partial(1));
    rig.is(start, P);
    rig.holds(start, 7);
    rig.is(start + PAGE, N);
    rig.is(src, N);
}

pub fn row_103_markers_do_not_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING);
    let src = rig.reg(MISSING | WP);
    for (page, entry) in (0..).zip([W, X, G]) {
        let address = src + page * PAGE;
        rig.put(entry, address, 1);
        refuses(&mut rig, start, address, EFAULT);
    }
}

pub fn row_104_a_page_loses_its_protection_when_it_moves(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let src = rig.reg(MISSING | WP);
    rig.put(PW, src, 7);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.is(start, P);
    rig.is(src, N);
    rig.store(start, 8);
    rig.silent();
}

pub fn row_105_a_swapped_page_keeps_its_protection_when_it_moves(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let src = rig.reg(MISSING | WP);
    rig.put(SW, src, 7);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.is(start, SW);
    rig.is(src, N);
    rig.load(start, 7);
    rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
}

pub fn row_106_a_page_with_other_users_does_not_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.reg(MISSING);
    rig.put(S, src, 1);
    rig.put(P, src + PAGE, 1);
    rig.fork();
    refuses(&mut rig, start, src, EBUSY);
    rig.is(src + PAGE, PS);
    refuses(&mut rig, start, src + PAGE, EBUSY);

    let pinned = rig.source(&[1]);
    rig.world.pin(rig.process, pinned);
    refuses(&mut rig, start, pinned, EBUSY);
    rig.world.unpin(rig.process, pinned);
    assert_eq!(rig.call(move_(start, pinned, 1)), done(1));

    let merged = rig.source(&[9, 9]);
    rig.advise(merged, 2, Advice::Mergeable);
    until("the pages are merged", || rig.world.entry(rig.process, merged) == PS);
    refuses(&mut rig, start + PAGE, merged, EBUSY);
}

pub fn row_107_a_page_moves_again_once_its_owner_has_written_to_it(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[7]);
    let child = rig.fork();
    rig.world.exit(child);
    refuses(&mut rig, start, src, EBUSY);
    rig.store(src, 8);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.holds(start, 8);
}

pub fn row_108_memory_that_does_not_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);

    let other_rights = rig.source(&[1]);
    rig.mprotect(other_rights, 1, Access::Read);
    refuses(&mut rig, start, other_rights, EINVAL);
    let read_only = rig.map_as(Backing::Anonymous, 4, Access::Read);
    rig.arm(read_only, 4, MISSING);
    refuses(&mut rig, read_only, other_rights, EINVAL);

    let locked = rig.source(&[1]);
    rig.mlock(locked, 1);
    refuses(&mut rig, start, locked, EINVAL);

    let shared = rig.map(Backing::SharedAnonymous, 4);
    rig.store(shared, 1);
    refuses(&mut rig, start, shared, EINVAL);
    let src = rig.source(&[1]);
    let shared = rig.armed(Backing::SharedAnonymous, 4, MISSING);
    refuses(&mut rig, shared, src, EINVAL);

    let file = rig.world.make_file(FileKind::Shmem, 4);
    let of_file = rig.map(private(file), 4);
    rig.store(of_file, 1);
    rig.is(of_file, P);
    refuses(&mut rig, start, of_file, EINVAL);
    let hugetlb = rig.map(Backing::Hugetlb, HUGE_PAGES);
    refuses(&mut rig, start, hugetlb, EINVAL);

    let unregistered = rig.anonymous(4);
    refuses(&mut rig, unregistered, src, EINVAL);

    let short = rig.source(&[1]);
    assert_eq!(rig.call(move_(start, short, 2)), refused(EINVAL));
    let long = rig.source(&[1, 2]);
    assert_eq!(rig.call(move_(start + 7 * PAGE, long, 2)), refused(EINVAL));
    rig.is(start, N);
    rig.is(start + 7 * PAGE, N);
}

pub fn row_109_both_ends_of_a_move_are_mapped(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.source(&[1, 2, 3]);
    rig.munmap(src + PAGE, 1);
    refuses(&mut rig, start, src + PAGE, ENOENT);
    rig.munmap(start + PAGE, 1);
    refuses(&mut rig, start + PAGE, src, ENOENT);
}

pub fn row_110_a_huge_page_moves_whole_or_in_parts(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING);
    let src = rig.huge(7);
    assert_eq!(rig.call(move_(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, T);
    rig.holds(start, 7);
    rig.is(src, N);

    // A page table in the way, although it is empty.
    rig.fill(start + HUGE, 1);
    rig.advise(start + HUGE, 1, Advice::DontNeed);
    let src = rig.huge(8);
    assert_eq!(rig.call(move_(start + HUGE, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start + HUGE, P);
    rig.holds(start + HUGE, 8);
    // The split gives the parts that hold zeros only back.
    rig.is(start + 2 * HUGE - PAGE, Z);
    rig.is(src, N);

    // A destination that is not aligned.
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING);
    let src = rig.huge(9);
    assert_eq!(rig.call(move_(start + PAGE, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, N);
    rig.is(start + PAGE, P);
    rig.holds(start + PAGE, 9);
    rig.is(start + HUGE, Z);
    rig.is(src, N);
}

pub fn row_111_a_huge_page_with_other_users_does_not_move(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, HUGE_PAGES, MISSING);
    let pinned = rig.huge(7);
    rig.world.pin(rig.process, pinned);
    assert_eq!(rig.call(move_(start, pinned, HUGE_PAGES)), refused(EBUSY));
    assert_eq!(rig.call(move_(start, pinned, 1)), refused(EBUSY));
    rig.world.unpin(rig.process, pinned);

    let shared = rig.huge(7);
    rig.fork();
    assert_eq!(rig.call(move_(start, shared, HUGE_PAGES)), refused(EBUSY));
    assert_eq!(rig.call(move_(start, shared, 1)), refused(EBUSY));
    rig.is(start, N);
    rig.holds(shared, 7);
}

pub fn row_112_pages_move_in_ascending_order(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.fill(start, 1);
    rig.fill(start + PAGE, 2);
    assert_eq!(rig.call(move_(start + PAGE, start, 2)), refused(EEXIST));
    rig.holds(start, 1);
    rig.holds(start + PAGE, 2);

    let start = rig.reg(MISSING);
    rig.fill(start + PAGE, 1);
    rig.fill(start + 2 * PAGE, 2);
    assert_eq!(rig.call(move_(start, start + PAGE, 2)), done(2));
    rig.holds(start, 1);
    rig.holds(start + PAGE, 2);
    rig.is(start + 2 * PAGE, N);
}

pub fn row_113_who_waits_for_a_moved_hole_faults_again(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.anonymous(4);
    let reader = rig.faults(start, Touch::Load, READ);
    rig.silent();
    assert_eq!(rig.call(move_with_holes(start, src, 1)), done(1));
    rig.sleeps(reader);
    rig.says(fault(READ, start));
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
}
