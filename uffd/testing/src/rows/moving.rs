//! MOVE (section 4.8).

use godwit_uffd::abi::Errno;

use super::setup::{Rig, parked, until};
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

/// A huge page with `byte` at the start of every page.
#[track_caller]
fn full_huge(rig: &mut Rig, byte: u8) -> u64 {
    let start = rig.huge(byte);
    for page in 1..HUGE_PAGES {
        rig.store(start + page * PAGE, byte);
    }
    start
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
    // The destination is looked at first, but behind the source's page table.
    let hole = rig.anonymous(2);
    assert_eq!(rig.call(move_(start, hole, 1)), refused(ENOENT));
    rig.store(hole + PAGE, 1);
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
    let src = full_huge(&mut rig, 8);
    assert_eq!(rig.call(move_(start + HUGE, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start + HUGE, P);
    rig.holds(start + HUGE, 8);
    rig.is(start + 2 * HUGE - PAGE, P);
    rig.is(src, N);

    // A destination that is not aligned.
    let start = rig.armed(Backing::Anonymous, 2 * HUGE_PAGES, MISSING);
    let src = full_huge(&mut rig, 9);
    assert_eq!(rig.call(move_(start + PAGE, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, N);
    rig.is(start + PAGE, P);
    rig.holds(start + PAGE, 9);
    rig.is(start + HUGE, P);
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

pub fn row_300_the_zero_page_moves(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    let src = rig.reg(MISSING | WP);
    for (page, entry) in (0..).zip([Z, ZW]) {
        rig.put(entry, src + page * PAGE, 0);
    }
    assert_eq!(rig.call(move_(start, src, 2)), done(2));
    rig.is(start, Z);
    rig.is(start + PAGE, Z);
    rig.is(src, N);
    rig.is(src + PAGE, N);
}

pub fn row_301_a_swapped_page_moves(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.reg(MISSING);
    rig.put(S, src, 7);
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.is(start, S);
    rig.is(src, N);
    rig.load(start, 7);
    rig.silent();
}

pub fn row_302_a_page_moves_onto_itself_if_it_is_a_hole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.fill(start, 7);
    refuses(&mut rig, start, start, EEXIST);
    assert_eq!(rig.call(move_with_holes(start + PAGE, start + PAGE, 1)), done(1));
    assert_eq!(rig.call(move_(start + PAGE, start + PAGE, 1)), refused(ENOENT));
}

pub fn row_303_the_source_may_be_registered_anywhere(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let other = rig.another(0);
    let src = rig.source(&[7, 8]);
    assert_eq!(rig.call_on(other, register(src, 2, MISSING)), ioctls(0x13c));
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.holds(start, 7);
    // What has left is missing there.
    parked(rig.world.touch(rig.process, src, Touch::Load));
    rig.says_on(other, fault(READ, src));
    rig.silent();
    // Nor need it be another mapping.
    assert_eq!(rig.call(move_(start + 5 * PAGE, start, 1)), done(1));
    rig.holds(start + 5 * PAGE, 7);
    rig.faults(start, Touch::Load, READ);
}

pub fn row_304_locked_memory_moves_to_locked_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let src = rig.source(&[7]);
    rig.mlock(src, 1);
    // Locking populates, so it waits for memory that is registered.
    let start = rig.reg(MISSING);
    let lock = parked(rig.world.lock(rig.process, start, 1, true));
    rig.says(fault(WRITE, start));
    assert_eq!(rig.call(move_(start, src, 1)), done(1));
    rig.ended(lock, Outcome::Returned(Ok(0)));
    rig.is(start, P);
    rig.holds(start, 7);
    rig.is(src, N);
}

pub fn row_305_holes_count_as_moved(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.anonymous(8);
    rig.store(src + PAGE, 7);
    rig.store(src + 4 * PAGE, 8);
    assert_eq!(rig.call(move_with_holes(start, src, 8)), done(8));
    for page in 0..8 {
        let entry = if page == 1 || page == 4 { P } else { N };
        rig.is(start + page * PAGE, entry);
        rig.is(src + page * PAGE, N);
    }
    rig.holds(start + PAGE, 7);
    rig.holds(start + 4 * PAGE, 8);
}

pub fn row_306_move_stops_at_a_page_that_is_there(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.fill(start + 2 * PAGE, 1);
    let src = rig.source(&[5, 6, 7, 8]);
    let readers = [0, 1, 3].map(|page| rig.faults(start + page * PAGE, Touch::Load, READ));
    assert_eq!(rig.call(move_(start, src, 4)), partial(2));
    rig.is(src, N);
    rig.is(src + PAGE, N);
    rig.holds(src + 2 * PAGE, 7);
    rig.holds(src + 3 * PAGE, 8);
    rig.ended(readers[0], Outcome::Loaded(5));
    rig.ended(readers[1], Outcome::Loaded(6));
    rig.sleeps(readers[2]);
}

pub fn row_307_one_page_moves_out_of_a_huge_one(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = full_huge(&mut rig, 7);
    rig.store(src + 5 * PAGE, 8);
    assert_eq!(rig.call(move_(start, src + 5 * PAGE, 1)), done(1));
    rig.holds(start, 8);
    rig.is(src, P);
    rig.is(src + 5 * PAGE, N);
    rig.is(src + 6 * PAGE, P);
    rig.holds(src, 7);
}

pub fn row_308_the_huge_zero_page_moves_whole(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, HUGE_PAGES, MISSING);
    let src = rig.map(Backing::TransparentHuge, HUGE_PAGES);
    rig.load(src, 0);
    rig.is(src, Z);
    rig.is(src + HUGE - PAGE, Z);
    assert_eq!(rig.call(move_(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, Z);
    rig.is(start + HUGE - PAGE, Z);
    rig.is(src, N);
    rig.load(start, 0);
    rig.silent();
}

pub fn row_309_several_huge_pages_move_at_once(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, 3 * HUGE_PAGES, MISSING);
    let src = rig.map(Backing::TransparentHuge, 3 * HUGE_PAGES);
    rig.store(src, 7);
    rig.store(src + 2 * HUGE, 8);
    let pages = 3 * HUGE_PAGES;
    assert_eq!(rig.call(move_(start, src, pages)), partial(HUGE_PAGES));
    let (start, src) = (start + HUGE, src + HUGE);
    assert_eq!(rig.call(move_with_holes(start, src, pages - HUGE_PAGES)), done(2 * HUGE_PAGES));
    rig.is(start - HUGE, T);
    rig.is(start, N);
    rig.is(start + HUGE, T);
    rig.holds(start + HUGE, 8);
}

pub fn row_310_a_protected_huge_page_loses_its_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Anonymous, HUGE_PAGES, MISSING | WP);
    let src = rig.huge(7);
    rig.arm(src, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(src, HUGE_PAGES)), OK);
    rig.is(src, TW);
    assert_eq!(rig.call(move_(start, src, HUGE_PAGES)), done(HUGE_PAGES));
    rig.is(start, T);
    rig.store(start, 8);
    rig.silent();
}

pub fn row_311_pages_of_zeros_are_freed_when_a_huge_page_is_split(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    let src = rig.huge(7);
    rig.store(src + 5 * PAGE, 8);
    assert_eq!(rig.call(move_(start, src, 2)), done(2));
    rig.is(start, P);
    rig.is(start + PAGE, Z);
    rig.is(src, N);
    rig.is(src + 2 * PAGE, Z);
    rig.is(src + 5 * PAGE, P);
    rig.is(src + HUGE - PAGE, Z);
}
