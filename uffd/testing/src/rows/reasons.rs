//! Which fault an access raises, by the state of the page and the modes (section 3.2).

use super::setup::Rig;
use super::words::*;
use crate::world::{Access, Advice, Backing, FileKind, Outcome, Signal, Touch, World};

pub fn row_220_a_write_to_a_protected_hole_makes_a_page_first(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(WP);
    rig.put(W, start, 0);
    let writer = rig.faults(start, Touch::Store(1), WRITE_TO_PROTECTED);
    rig.is(start, PW);
    rig.holds(start, 0);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
}

pub fn row_221_a_read_of_a_protected_hole_can_be_missing(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    rig.put(W, start, 0);
    let reader = rig.faults(start, Touch::Load, READ);
    rig.fill(start, 7);
    rig.ended(reader, Outcome::Loaded(7));
    rig.is(start, P);
}

pub fn row_222_a_protected_zero_page_tells_of_a_write(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(WP);
    rig.put(ZW, start, 0);
    rig.load(start, 0);
    rig.silent();
    let writer = rig.faults(start, Touch::Store(1), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.is(start, P);
    rig.holds(start, 1);
}

pub fn row_223_a_swapped_page_is_not_missing(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(S, start, 7);
    rig.load(start, 7);
    rig.put(S, start + PAGE, 7);
    rig.store(start + PAGE, 8);
    rig.silent();
}

pub fn row_224_minor_alone_lets_an_absent_page_be_made(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MINOR);
    rig.load(start, 0);
    rig.silent();
    assert_eq!(rig.world.file_load(file, 0), Some(0));
    rig.store(start + PAGE, 7);
    rig.silent();
    assert_eq!(rig.world.file_load(file, 1), Some(7));
}

pub fn row_225_a_page_in_the_cache_is_a_minor_fault(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 0, 7);
    rig.world.file_store(file, 1, 8);
    for (backing, mode) in [(shared(file), MINOR), (private(file), MINOR), (shared(file), 7)] {
        let start = rig.armed(backing, 8, mode);
        let reader = rig.faults(start, Touch::Load, MINOR_READ);
        let writer = rig.faults(start + PAGE, Touch::Store(9), MINOR_WRITE);
        assert_eq!(rig.call(continue_(start, 2)), done(2));
        rig.ended(reader, Outcome::Loaded(7));
        rig.ended(writer, Outcome::Stored);
        rig.silent();
    }
}

pub fn row_226_missing_alone_maps_what_is_in_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING);
    rig.world.file_store(file, 0, 7);
    rig.load(start, 7);
    rig.silent();
    rig.faults(start + PAGE, Touch::Load, READ);
}

pub fn row_227_all_modes_make_an_absent_page_missing(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (_, start) = rig.shmem(MISSING | WP | MINOR);
    rig.faults(start, Touch::Load, READ);
    rig.faults(start + PAGE, Touch::Store(1), WRITE);
}

pub fn row_228_a_protected_page_in_the_cache_is_minor_first(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | WP | MINOR);
    rig.world.file_store(file, 0, 7);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, W);
    let writer = rig.faults(start, Touch::Store(8), MINOR_WRITE);
    assert_eq!(rig.call(continue_protected(start, 1)), done(1));
    rig.sleeps(writer);
    rig.says(fault(WRITE_TO_PROTECTED, start));
    rig.is(start, FW);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    assert_eq!(rig.world.file_load(file, 0), Some(8));
}

pub fn row_229_a_guard_is_a_signal(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.put(G, start, 0);
    let signal = Outcome::Signal(Signal::Segv { address: start + 5 });
    assert_eq!(rig.touch(start + 5, Touch::Load), signal);
    assert_eq!(rig.touch(start + 5, Touch::Store(1)), signal);
    rig.silent();
    rig.advise(start, 1, Advice::GuardRemove);
    rig.is(start, N);
    rig.faults(start, Touch::Load, READ);
}

pub fn row_230_rights_are_asked_before_modes(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    rig.mprotect(start, 8, Access::None);
    let signal = Outcome::Signal(Signal::Segv { address: start });
    assert_eq!(rig.touch(start, Touch::Load), signal);
    rig.mprotect(start, 8, Access::Read);
    assert_eq!(rig.touch(start, Touch::Store(1)), signal);
    rig.silent();
    rig.faults(start, Touch::Load, READ);
}

pub fn row_231_huge_pages_are_missing_or_minor(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Hugetlb, 2 * HUGE_PAGES);
    rig.world.file_store(file, 0, 7);
    let start = rig.map(shared(file), 2 * HUGE_PAGES);
    rig.arm(start, 2 * HUGE_PAGES, MISSING | MINOR);
    rig.wait(start + 5 * PAGE, Touch::Load);
    rig.says(fault(MINOR_READ, start));
    rig.wait(start + HUGE + 5 * PAGE, Touch::Store(1));
    rig.says(fault(WRITE, start + HUGE));
}

pub fn row_232_a_swapped_page_of_a_file_is_minor(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 0, 7);
    let other = rig.map(shared(file), 8);
    rig.load(other, 7);
    rig.advise(other, 1, Advice::PageOut);
    rig.is(other, N);
    let start = rig.armed(shared(file), 8, MISSING | MINOR);
    let src = rig.source(&[9]);
    assert_eq!(rig.call(copy(start, src, 1)), refused(EEXIST));
    let reader = rig.faults(start, Touch::Load, MINOR_READ);
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.ended(reader, Outcome::Loaded(7));
}

pub fn row_233_a_protected_page_of_a_file_tells_of_a_write(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::SharedAnonymous, 8, WP);
    rig.store(start, 1);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, FW);
    rig.load(start, 1);
    rig.silent();
    let writer = rig.faults(start, Touch::Store(2), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.holds(start, 2);
}
