//! CONTINUE, and the end of a file (section 4.4).

use super::setup::Rig;
use super::words::*;
use crate::world::{FileKind, Outcome, Touch, World};

pub fn row_072_continue_wants_a_page_in_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MINOR);
    assert_eq!(rig.call(continue_(start, 1)), refused(EFAULT));
    rig.is(start, N);
    assert_eq!(rig.world.file_load(file, 0), None);
}

pub fn row_073_calls_beyond_the_end_of_the_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 1);
    let start = rig.armed(shared(file), 8, MISSING | WP | MINOR);
    let beyond = start + PAGE;
    let src = rig.source(&[7]);
    assert_eq!(rig.call(copy(beyond, src, 1)), refused(EFAULT));
    assert_eq!(rig.call(zeropage(beyond, 1)), refused(EFAULT));
    assert_eq!(rig.call(poison(beyond, 1)), refused(EFAULT));
    let errno = if rig.newest() { EFAULT } else { EINVAL };
    assert_eq!(rig.call(continue_(beyond, 1)), refused(errno));
    rig.is(beyond, N);
    assert_eq!(rig.call(protect(beyond, 1)), OK);
    rig.is(beyond, W);
}

pub fn row_074_copy_stops_at_the_end_of_the_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 1);
    let start = rig.armed(shared(file), 8, MISSING);
    let src = rig.source(&[7, 8]);
    assert_eq!(rig.call(copy(start, src, 2)), partial(1));
    rig.is(start, F);
    rig.holds(start, 7);
    rig.is(start + PAGE, N);
}

pub fn row_075_anonymous_memory_has_no_continue(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(continue_(start, 1)), refused(EINVAL));
    rig.is(start, N);
}

pub fn row_076_continue_over_a_marker_of_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(WP | MINOR);
    rig.world.file_store(file, 0, 7);
    rig.world.file_store(file, 1, 8);
    assert_eq!(rig.call(protect(start, 2)), OK);
    rig.is(start, W);
    rig.is(start + PAGE, W);
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.is(start, F);
    rig.holds(start, 7);
    rig.store(start, 9);
    assert_eq!(rig.call(continue_protected(start + PAGE, 1)), done(1));
    rig.is(start + PAGE, FW);
    rig.holds(start + PAGE, 8);
    rig.silent();
}

pub fn row_077_a_private_page_is_copied_when_it_is_written(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 0, 7);
    let start = rig.armed(private(file), 8, MINOR);
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.is(start, F);
    rig.store(start, 8);
    rig.silent();
    rig.is(start, P);
    rig.holds(start, 8);
    assert_eq!(rig.world.file_load(file, 0), Some(7));
}

pub fn row_270_continue_replaces_poison_and_stops_at_what_is_mapped(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MINOR);
    for page in 0..3 {
        rig.world.file_store(file, page, 7);
    }
    assert_eq!(rig.call(poison(start, 1)), done(1));
    assert_eq!(rig.call(continue_(start, 1)), done(1));
    rig.is(start, F);
    assert_eq!(rig.call(continue_(start, 1)), refused(EEXIST));
    assert_eq!(rig.call(continue_(start + PAGE, 7)), partial(2));
    assert_eq!(rig.call(continue_(start + 3 * PAGE, 5)), refused(EFAULT));
    rig.is(start + 3 * PAGE, N);
}

pub fn row_271_continue_protected_needs_the_mode_of_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MINOR);
    rig.world.file_store(file, 0, 7);
    assert_eq!(rig.call(continue_protected(start, 1)), refused(EINVAL));
    rig.is(start, N);
}

pub fn row_272_a_private_page_that_is_continued_protected(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 0, 7);
    let start = rig.armed(private(file), 8, WP | MINOR);
    assert_eq!(rig.call(continue_protected(start, 1)), done(1));
    rig.is(start, FW);
    let writer = rig.faults(start, Touch::Store(8), WRITE_TO_PROTECTED);
    assert_eq!(rig.call(unprotect(start, 1)), OK);
    rig.ended(writer, Outcome::Stored);
    rig.is(start, P);
    assert_eq!(rig.world.file_load(file, 0), Some(7));
}
