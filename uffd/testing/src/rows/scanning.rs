//! Async protection and PAGEMAP_SCAN (section 5).

use super::setup::Rig;
use super::words::*;
use crate::world::{FileKind, Scan, ScanRegion, Touch, World};

/// Categories of a page.
const WPALLOWED: u64 = 1;
const WRITTEN: u64 = 2;
const FILE: u64 = 4;
const PRESENT: u64 = 8;
const SWAPPED: u64 = 0x10;
const PFNZERO: u64 = 0x20;
const HUGE_PAGE: u64 = 0x40;
const GUARD: u64 = 0x100;

/// Protect what is reported; and insist that this works.
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 2;

/// The categories of one page, with those that say what it is made of left aside.
#[track_caller]
fn categories(rig: &mut Rig, address: u64) -> u64 {
    let scan = Scan { start: address, end: address + PAGE, flags: 0, mask: 0 };
    match rig.world.scan(rig.process, scan).expect("a scan").as_slice() {
        [] => 0,
        [region] => region.categories,
        many => panic!("one page is {many:?}"),
    }
}

pub fn row_097_async_protection_records_writes(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    rig.put(PW, start, 1);
    rig.put(PW, start + PAGE, 1);
    rig.store(start, 2);
    rig.silent();
    rig.is(start, P);
    rig.is(start + PAGE, PW);

    let flags = WP_MATCHING | CHECK_WPASYNC;
    let scan = Scan { start, end: start + 2 * PAGE, flags, mask: WRITTEN };
    let regions = rig.world.scan(rig.process, scan).expect("a scan");
    let ranges: Vec<_> = regions.iter().map(|region| (region.start, region.end)).collect();
    assert_eq!(ranges, [(start, start + PAGE)]);
    assert_eq!(regions[0].categories & WRITTEN, WRITTEN);
    rig.is(start, PW);
    assert_eq!(rig.world.scan(rig.process, scan), Ok(vec![]));
}

pub fn row_098_a_scan_can_insist_on_async_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let unregistered = rig.source(&[1]);
    let registered = rig.reg(WP);
    rig.fill(registered, 1);
    for start in [unregistered, registered] {
        let scan = Scan { start, end: start + PAGE, flags: CHECK_WPASYNC, mask: WRITTEN };
        assert_eq!(rig.world.scan(rig.process, scan), Err(EPERM));
    }
}

pub fn row_290_async_writes_to_any_protected_page_are_silent(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    for (page, entry) in (0..).zip([W, ZW, PW]) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        rig.store(address, 2);
        rig.is(address, P);
        rig.holds(address, 2);
    }
    // A page of the page cache too.
    let (_, start) = rig.shmem(WP);
    rig.fill(start, 1);
    assert_eq!(rig.call(protect(start, 1)), OK);
    rig.store(start, 2);
    rig.is(start, F);
    rig.silent();
}

pub fn row_291_missing_pages_are_told_with_async_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(MISSING | WP);
    rig.put(W, start, 0);
    rig.faults(start, Touch::Store(1), WRITE);
    rig.faults(start + PAGE, Touch::Load, READ);
}

pub fn row_292_a_write_to_a_protected_huge_page_splits_it(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.huge(1);
    rig.arm(start, HUGE_PAGES, WP);
    assert_eq!(rig.call(protect(start, HUGE_PAGES)), OK);
    rig.is(start, TW);
    rig.store(start + 5 * PAGE, 2);
    rig.silent();
    rig.is(start + 4 * PAGE, PW);
    rig.is(start + 5 * PAGE, P);
    rig.is(start + 6 * PAGE, PW);
}

pub fn row_293_a_scan_tells_what_a_page_is(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    let states = [
        (P, PRESENT | WRITTEN),
        (PW, PRESENT),
        (Z, PRESENT | PFNZERO | WRITTEN),
        (ZW, PRESENT | PFNZERO),
        (W, SWAPPED),
        (X, SWAPPED | WRITTEN),
        (G, SWAPPED | WRITTEN | GUARD),
    ];
    for (page, (entry, expected)) in (0..).zip(states) {
        let address = start + page * PAGE;
        rig.put(entry, address, 1);
        let found = categories(&mut rig, address);
        assert_eq!(found, expected | WPALLOWED, "{entry:?}");
    }
    let (_, start) = rig.shmem(WP);
    rig.fill(start, 1);
    assert_eq!(categories(&mut rig, start), WPALLOWED | PRESENT | FILE | WRITTEN);
    // Synchronous protection is not allowed for.
    rig.fd = rig.another(0);
    let start = rig.reg(WP);
    rig.put(P, start, 1);
    assert_eq!(categories(&mut rig, start), PRESENT | WRITTEN);
    rig.put(PW, start + PAGE, 1);
    assert_eq!(categories(&mut rig, start + PAGE), PRESENT);
}

pub fn row_294_a_scan_tells_of_swap(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    rig.put(S, start, 1);
    assert_eq!(categories(&mut rig, start), WPALLOWED | SWAPPED | WRITTEN);
    rig.put(SW, start + PAGE, 1);
    assert_eq!(categories(&mut rig, start + PAGE), WPALLOWED | SWAPPED);
}

pub fn row_295_a_scan_tells_of_huge_pages(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.huge(1);
    rig.arm(start, HUGE_PAGES, WP);
    let scan = Scan { start, end: start + HUGE, flags: 0, mask: 0 };
    let all = WPALLOWED | PRESENT | WRITTEN | HUGE_PAGE;
    let region = ScanRegion { start, end: start + HUGE, categories: all };
    assert_eq!(rig.world.scan(rig.process, scan), Ok(vec![region]));
    let flags = WP_MATCHING | CHECK_WPASYNC;
    let scan = Scan { start, end: start + HUGE, flags, mask: WRITTEN };
    assert_eq!(rig.world.scan(rig.process, scan), Ok(vec![region]));
    rig.is(start, TW);
    assert_eq!(rig.world.scan(rig.process, scan), Ok(vec![]));
}

pub fn row_296_a_scan_protects_holes_and_steps_over_other_memory(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(WP);
    let scan = |start, flags| Scan { start, end: start + 4 * PAGE, flags, mask: WRITTEN };
    let flags = WP_MATCHING | CHECK_WPASYNC;
    // A hole counts as written until it is protected.
    let regions = rig.world.scan(rig.process, scan(start, flags)).expect("a scan");
    let ranges: Vec<_> = regions.iter().map(|region| (region.start, region.end)).collect();
    assert_eq!(ranges, [(start, start + 4 * PAGE)]);
    rig.is(start, W);
    assert_eq!(rig.world.scan(rig.process, scan(start, flags)), Ok(vec![]));

    rig.fd = rig.another(0);
    let start = rig.reg(WP);
    rig.fill(start, 1);
    assert_eq!(rig.world.scan(rig.process, scan(start, WP_MATCHING)), Ok(vec![]));
    rig.is(start, P);
}

pub fn row_297_a_page_copied_over_a_marker_is_written(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let start = rig.reg(MISSING | WP);
    rig.put(W, start, 0);
    rig.put(W, start + PAGE, 0);
    rig.fill(start, 7);
    let scan = Scan { start, end: start + 2 * PAGE, flags: CHECK_WPASYNC, mask: WRITTEN };
    let regions = rig.world.scan(rig.process, scan).expect("a scan");
    let ranges: Vec<_> = regions.iter().map(|region| (region.start, region.end)).collect();
    assert_eq!(ranges, [(start, start + PAGE)]);
}

pub fn row_298_a_regular_file_is_tracked_by_async_protection(world: &mut dyn World) {
    let mut rig = Rig::new(world, ASYNC);
    let file = rig.world.make_file(FileKind::Regular, 4);
    let start = rig.map(shared(file), 4);
    rig.store(start, 1);
    rig.arm(start, 4, WP);
    assert_eq!(rig.call(protect(start, 4)), OK);
    rig.is(start, FW);
    rig.is(start + PAGE, W);
    rig.store(start, 2);
    rig.silent();
    rig.is(start, F);
}
