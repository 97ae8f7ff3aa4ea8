//! What is left behind, and what is not: memory, pools, registrations, merged VMAs.

use std::sync::Arc;

use super::*;
use crate::model::{FileKind, PAGES_PER_HUGE};

#[test]
fn a_machine_takes_its_memory_with_it() {
    let rig = Rig::new(Profile::V6_18, 1 << 1);
    let start = rig.armed(2, MISSING);
    rig.fill(start, 1);
    let space = Arc::downgrade(&rig.machine.space(rig.process));
    let waiter = sleeping(rig.touch(start + PAGE, Touch::Load));
    waiter.cancel();
    drop(rig);
    assert!(space.upgrade().is_none(), "the space and its userfaultfd keep each other");
}

#[test]
fn memory_that_was_used_before_does_not_show_what_it_held() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(1, MISSING);
    let plain = rig.map(1);
    for _ in 0..4 {
        rig.fill(start, 7);
        rig.advise(start, 1, Advice::DontNeed);
        assert!(matches!(rig.touch(plain, Touch::Store(1)), Progress::Done(Outcome::Stored)));
        assert_eq!(rig.load(plain + 1), 0);
        rig.advise(plain, 1, Advice::DontNeed);
    }
}

#[test]
fn huge_pages_go_back_to_the_pool() {
    let rig = Rig::new(Profile::V6_18, 0);
    let before = rig.machine.free_hugetlb_pages();
    let start = rig.map_of(Material::Hugetlb, 2 * PAGES_PER_HUGE);
    assert_eq!(rig.machine.free_hugetlb_pages(), before - 2, "they are reserved");
    assert!(matches!(rig.touch(start, Touch::Store(1)), Progress::Done(Outcome::Stored)));
    assert_eq!(rig.machine.free_hugetlb_pages(), before - 2, "one is in use, one reserved");
    let unmapped = rig.machine.unmap(rig.caller, start, 2 * PAGES_PER_HUGE * PAGE);
    assert!(matches!(unmapped, Progress::Done(_)));
    assert_eq!(rig.machine.free_hugetlb_pages(), before);
}

#[test]
fn neighbours_that_do_not_differ_become_one() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(8, MISSING);
    assert_eq!(rig.machine.protect(rig.process, start + 2 * PAGE, PAGE, Access::Read), Ok(()));
    // A call must not leave the VMA that it begins in.
    assert_eq!(rig.call(zero(start, 4)), refused(Errno::ENOENT));
    let access = Access::ReadWrite;
    assert_eq!(rig.machine.protect(rig.process, start + 2 * PAGE, PAGE, access), Ok(()));
    assert_eq!(rig.call(zero(start, 4)), done(4));
    let part = Call::Unregister { start: start + 4 * PAGE, len: PAGE };
    assert_eq!(rig.call(part).result, Ok(()));
    assert_eq!(rig.call(zero(start + 4 * PAGE, 2)), refused(Errno::ENOENT));
    rig.arm(rig.context, start + 4 * PAGE, 1, MISSING);
    assert_eq!(rig.call(zero(start + 4 * PAGE, 4)), done(4));
}

#[test]
fn a_closed_userfaultfd_leaves_ordinary_memory() {
    let rig = Rig::new(Profile::V6_18, 1 << 13);
    let start = rig.armed(3, MISSING | WP);
    rig.fill(start, 7);
    let protect = Call::WriteProtect { start, len: 2 * PAGE, mode: 1 };
    assert_eq!(rig.call(protect).result, Ok(()));
    let waiter = sleeping(rig.touch(start + 2 * PAGE, Touch::Load));
    rig.machine.close(rig.context);
    assert_eq!(ended(waiter), Outcome::Loaded(0));
    let plain = Observed::Anonymous { exclusive: true, protected: false, huge: false };
    assert_eq!((rig.entry(start), rig.entry(start + PAGE)), (plain, Observed::None));
}

#[test]
fn a_closed_file_stays_for_who_maps_it() {
    let rig = Rig::new(Profile::V6_18, 0);
    let file = rig.machine.make_file(FileKind::Shmem, 1);
    rig.machine.file_store(file, 0, &[7]).expect("room");
    let material = Material::File { file, page: 0, shared: true, read_only: false };
    let start = rig.map_of(material, 1);
    rig.machine.close_file(file);
    assert_eq!(rig.load(start), 7);
}

#[test]
fn a_read_maps_cached_neighbours_unless_somebody_waits_for_their_faults() {
    let rig = Rig::new(Profile::V6_18, 0);
    let file = rig.machine.make_file(FileKind::Shmem, 4);
    [0, 1, 3].into_iter().for_each(|page| {
        rig.machine.file_store(file, page, &[7]).expect("room");
    });
    let material = Material::File { file, page: 0, shared: true, read_only: false };
    let start = rig.map_of(material, 4);
    rig.arm(rig.context, start, 4, MISSING);
    assert_eq!(rig.load(start), 7);
    let file = Observed::File { protected: false };
    let entries = [0, 1, 2, 3].map(|page| rig.entry(start + page * PAGE));
    assert_eq!(entries, [file, file, Observed::None, file]);

    let start = rig.map_of(material, 4);
    rig.arm(rig.context, start, 4, WP);
    assert_eq!(rig.load(start), 7);
    assert_eq!(rig.entry(start + PAGE), Observed::None);
}
