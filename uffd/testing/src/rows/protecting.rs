//! WRITEPROTECT, and what becomes of protection (sections 4.7 and 5).

use godwit_uffd::abi::Call;

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Advice, Backing, Outcome, Signal, Step, Touch, World};

pub fn row_085_a_hole_without_the_feature_is_not_protected(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, N);
    rig.store(start, 1);
    rig.silent();
    rig.is(start, P);
}

pub fn row_086_a_protected_hole_reads_as_zero_and_tells_of_a_write(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(WP);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, W);
    rig.load(start, 0);
    rig.silent();
    rig.is(start, ZW);
    let writer = rig.faults(start, Touch::Store(1), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.is(start, P);
    rig.holds(start, 1);
}

pub fn row_087_a_protected_hole_is_missing_first(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(W, start, 0);
    let writer = rig.faults(start, Touch::Store(1), WRITE);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy_protected(start, src, 1)), done(1));
    rig.sleeps(writer);
    rig.is(start, PW);
    rig.says(fault(WRITE_TO_PROTECTED, start));
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 1);
}

pub fn row_088_unprotect_takes_a_marker_away(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(WP);
    rig.put(W, start, 0);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.is(start, N);
}

pub fn row_089_protect_without_a_wake_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    let call = Call::WriteProtect { start, len: PAGE, mode: 3 };
    assert_eq!(rig.call(call), untouched(EINVAL));
}

pub fn row_090_protect_steps_over_holes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(P, start, 1);
    rig.put(P, start + 7 * PAGE, 1);
    rig.munmap(start + 2 * PAGE, 2);
    assert_eq!(rig.call(protect(start, 8)), OK);
    rig.is(start, PW);
    rig.is(start + 7 * PAGE, PW);
    assert_eq!(rig.call(protect(start + 2 * PAGE, 2)), untouched(ENOENT));
}

pub fn row_091_protect_stops_at_memory_that_is_not_registered(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(P, start, 1);
    rig.put(P, start + 7 * PAGE, 1);
    assert_eq!(rig.call(unregister(start + 4 * PAGE, 4)), OK);
    assert_eq!(rig.call(protect(start, 8)), untouched(ENOENT));
    rig.is(start, PW);
    rig.is(start + 7 * PAGE, P);
}

pub fn row_092_memory_given_up_forgets_or_remembers(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    rig.advise(start, 1, Advice::DontNeed);
    rig.is(start, N);

    let (_, start) = rig.shmem(MISSING | WP);
    rig.fill(start, 1);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, FW);
    rig.advise(start, 1, Advice::DontNeed);
    rig.is(start, W);
}

pub fn row_093_mprotect_keeps_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    for access in [Access::Read, Access::None] {
        rig.mprotect(start, 8, access);
        rig.mprotect(start, 8, Access::ReadWrite);
        rig.is(start, PW);
    }
    rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
}

pub fn row_094_the_right_to_write_is_asked_first(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    rig.mprotect(start, 8, Access::Read);
    let signal = Outcome::Signal(Signal::Segv { address: start });
    assert_eq!(rig.touch(start, Touch::Store(2)), signal);
    rig.silent();
    rig.is(start, PW);
}

pub fn row_095_unprotecting_a_part_splits_a_huge_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.huge(1);
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start, HUGE_PAGES)), OK);
    rig.is(start, TW);
    rig.is(start + HUGE - PAGE, TW);
    assert_eq!(rig.call(unprotect(start + PAGE, 1)), OK);
    rig.is(start, PW);
    rig.is(start + PAGE, P);
    rig.is(start + 2 * PAGE, PW);
    rig.is(start + HUGE - PAGE, PW);
    rig.holds(start, 1);
}

pub fn row_096_protection_survives_the_swap(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(SW, start, 1);
    rig.load(start, 1);
    rig.silent();
    rig.is(start, PW);

    rig.put(SW, start + PAGE, 1);
    let writer = rig.faults(start + PAGE, Touch::Store(2), WRITE_TO_PROTECTED);
    rig.is(start + PAGE, PW);
    assert_eq!(rig.call(unprotect(start + PAGE, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_283_protection_comes_and_goes(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    let states = [(P, PW), (Z, ZW), (N, W), (PW, PW), (ZW, ZW), (W, W), (X, X), (G, G)];
    for (page, (before, _)) in (0..).zip(states) {
        if before != N {
            rig.put(before, start + page * PAGE, 7);
        }
    }
    assert_eq!(rig.call(protect(start, 8)), OK);
    for (page, (_, protected)) in (0..).zip(states) {
        rig.is(start + page * PAGE, protected);
    }
    assert_eq!(rig.call(unprotect(start, 8)), OK);
    for (page, after) in (0..).zip([P, Z, N, P, Z, N, X, G]) {
        rig.is(start + page * PAGE, after);
    }
    rig.store(start, 8);
    rig.silent();
}

pub fn row_284_swapped_pages_are_protected_in_place(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(S, start, 7);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, SW);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.is(start, S);
    rig.store(start, 8);
    rig.silent();
}

pub fn row_285_holes_of_files_are_protected_without_the_feature(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(WP);
    rig.world.file_store(file, 0, 7);
    assert_eq!(rig.call(protect(start, 8)), OK);
    rig.is(start, W);
    rig.is(start + 7 * PAGE, W);
    rig.load(start, 7);
    rig.is(start, FW);
    // The end of a page of the file is not the end of its protection.
    rig.world.file_punch(file, 0);
    rig.is(start, W);
    rig.advise(start + PAGE, 1, Advice::Remove);
    rig.is(start + PAGE, W);
    assert_eq!(rig.call(unprotect(start, 8)), OK);
    rig.is(start, N);
}

pub fn row_286_a_protected_page_of_a_file_is_swapped_out(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (_, start) = rig.shmem(MISSING | WP);
    rig.fill(start, 7);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.advise(start, 1, Advice::PageOut);
    rig.is(start, W);
    let writer = rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
    rig.is(start, FW);
    rig.holds(start, 7);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_287_a_huge_page_of_a_file_is_protected_page_by_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.map(Backing::SharedAnonymous, HUGE_PAGES);
    for page in 0..HUGE_PAGES {
        rig.store(start + page * PAGE, 7);
    }
    rig.advise(start, HUGE_PAGES, Advice::Collapse);
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start, HUGE_PAGES)), OK);
    // The mapping of the huge page is dropped; its pages stay in the page cache.
    rig.is(start, W);
    rig.is(start + HUGE - PAGE, W);
    rig.load(start, 7);
    rig.silent();
    rig.is(start, FW);
    let writer = rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_288_a_part_of_a_huge_page_is_protected(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.huge(7);
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start + PAGE, 1)), OK);
    rig.is(start, P);
    rig.is(start + PAGE, PW);
    rig.is(start + 2 * PAGE, P);
    rig.holds(start, 7);
}

pub fn row_289_a_page_that_is_shared_is_copied_when_protection_is_gone(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(PW, start, 7);
    let child = rig.fork();
    let writer = rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 8);
    rig.is(start, P);
    let loaded = rig.world.touch(child, start, Touch::Load);
    assert_eq!(loaded, Step::Done(Outcome::Loaded(7)));
}
