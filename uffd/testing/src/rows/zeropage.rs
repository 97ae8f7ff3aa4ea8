//! ZEROPAGE (section 4.3), and what a page in the page cache means for the calls that fill.

use super::setup::Rig;
use super::words::*;
use crate::world::{Backing, FileKind, World};

pub fn row_066_zeropage_maps_the_zero_page(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING);
    assert_eq!(rig.call(zeropage(start, 1)), done(1));
    rig.is(start, Z);
    rig.load(start, 0);
    rig.store(start, 7);
    rig.silent();
    rig.is(start, P);
    rig.holds(start, 7);
}

pub fn row_067_zeropage_wants_an_empty_entry(world: &mut dyn World) {
    let mut rig = Rig::new(world, UNPOPULATED);
    let start = rig.reg(MISSING | WP);
    for (page, entry) in (0..).zip([W, X, G, Z, P, S]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        assert_eq!(rig.call(zeropage(address, 1)), refused(EEXIST), "over {entry:?}");
        rig.is(address, entry);
    }
}

pub fn row_068_zeropage_replaces_markers_of_shared_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | WP);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.is(start, W);
    assert_eq!(rig.call(zeropage(start, 1)), done(1));
    rig.is(start, F);
    rig.holds(start, 0);
    assert_eq!(rig.world.file_load(file, 0), Some(0));
    rig.store(start, 7);
    rig.silent();
}

pub fn row_069_hugetlb_has_no_zeropage(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.armed(Backing::Hugetlb, HUGE_PAGES, MISSING);
    assert_eq!(rig.call(zeropage(start, HUGE_PAGES)), refused(EINVAL));
    rig.is(start, N);
}

pub fn row_070_calls_on_a_page_that_is_in_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING | MINOR);
    let src = rig.source(&[7]);
    for page in 0..4 {
        rig.world.file_store(file, page, 1);
    }
    assert_eq!(rig.call(copy(start, src, 1)), refused(EEXIST));
    rig.is(start, N);
    assert_eq!(rig.call(zeropage(start + PAGE, 1)), refused(EEXIST));
    rig.is(start + PAGE, N);
    assert_eq!(rig.call(poison(start + 2 * PAGE, 1)), done(1));
    rig.is(start + 2 * PAGE, X);
    assert_eq!(rig.call(continue_(start + 3 * PAGE, 1)), done(1));
    rig.is(start + 3 * PAGE, F);
    rig.holds(start + 3 * PAGE, 1);
    for page in 0..4 {
        assert_eq!(rig.world.file_load(file, page), Some(1), "page {page} of the file");
    }
}

pub fn row_071_private_memory_hides_the_cache(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 8);
    rig.world.file_store(file, 0, 1);
    rig.world.file_store(file, 1, 1);
    let start = rig.armed(private(file), 8, MISSING);
    rig.fill(start, 7);
    rig.is(start, P);
    rig.holds(start, 7);
    assert_eq!(rig.call(zeropage(start + PAGE, 1)), done(1));
    rig.is(start + PAGE, Z);
    rig.load(start + PAGE, 0);
    assert_eq!(rig.world.file_load(file, 0), Some(1));
    assert_eq!(rig.world.file_load(file, 1), Some(1));
}

pub fn row_266_the_zero_page_is_never_protected_by_zeropage(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.reg(MISSING | WP);
    assert_eq!(rig.call(zeropage(start, 4)), done(4));
    rig.is(start, Z);
    rig.is(start + 3 * PAGE, Z);
    rig.store(start, 1);
    rig.silent();
    rig.put(P, start + 5 * PAGE, 1);
    assert_eq!(rig.call(zeropage(start + 4 * PAGE, 3)), partial(1));
    rig.is(start + 6 * PAGE, N);
}

pub fn row_267_zeropage_beyond_the_end_of_a_private_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let file = rig.world.make_file(FileKind::Shmem, 1);
    let start = rig.armed(private(file), 4, MISSING);
    let src = rig.source(&[7]);
    assert_eq!(rig.call(zeropage(start + PAGE, 1)), refused(EFAULT));
    assert_eq!(rig.call(copy(start + PAGE, src, 1)), refused(EFAULT));
    rig.is(start + PAGE, N);
    assert_eq!(rig.call(zeropage(start, 1)), done(1));
    rig.is(start, Z);
}

pub fn row_268_zeropage_over_poison_and_present_pages_of_a_file(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let (file, start) = rig.shmem(MISSING);
    assert_eq!(rig.call(poison(start, 1)), done(1));
    assert_eq!(rig.call(zeropage(start, 1)), done(1));
    rig.is(start, F);
    rig.holds(start, 0);
    assert_eq!(rig.call(zeropage(start, 1)), refused(EEXIST));
    assert_eq!(rig.world.file_load(file, 0), Some(0));
}
