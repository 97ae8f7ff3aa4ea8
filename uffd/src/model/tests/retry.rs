//! What a call does again after it had to sleep: saved state, partial progress, fatal signals.

use super::super::context::Modes;
use super::super::retry_state::RetryState;
use super::*;
use crate::model::{FileKind, PAGES_PER_HUGE, Remap};

/// A COPY of two pages whose second source page is missing in another userfaultfd.
fn half_done(rig: &Rig, dst: u64) -> (Parked, ContextId, u64) {
    let owner = rig.another(0);
    let src = rig.map(2);
    rig.arm(owner, src + PAGE, 1, MISSING);
    assert!(matches!(rig.touch(src, Touch::Store(6)), Progress::Done(Outcome::Stored)));
    let parked = rig.start(copy(dst, src, 2));
    (parked, owner, src + PAGE)
}

fn serve(rig: &Rig, owner: ContextId, at: u64) {
    let page = vec![9; 4096];
    assert_eq!(rig.machine.copy_bytes(rig.caller, owner, at, &page, 0), done(1));
}

#[test]
fn a_copy_goes_on_where_it_was() {
    let rig = Rig::new(Profile::NEWEST, 0);
    let dst = rig.armed(2, MISSING);
    let (parked, owner, missing) = half_done(&rig, dst);
    assert_eq!((rig.load(dst), rig.entry(dst + PAGE)), (6, Observed::None));
    serve(&rig, owner, missing);
    assert_eq!(ended(parked), Outcome::Ioctl(done(2)));
    assert_eq!(rig.load(dst + PAGE), 9);
}

#[test]
fn progress_counts_when_the_map_has_changed_meanwhile() {
    for (profile, expected) in [(Profile::NEWEST, partial(1)), (Profile::V6_18, done(2))] {
        let rig = Rig::new(profile, 0);
        let dst = rig.armed(2, MISSING);
        let (parked, owner, missing) = half_done(&rig, dst);
        rig.arm(rig.context, dst, 2, MISSING | WP);
        serve(&rig, owner, missing);
        assert_eq!(ended(parked), Outcome::Ioctl(expected));
    }
}

#[test]
fn progress_counts_when_the_source_cannot_be_read() {
    let rig = Rig::new(Profile::V6_18, 0);
    let dst = rig.armed(2, MISSING);
    let (parked, owner, missing) = half_done(&rig, dst);
    let poison = Call::Poison { start: missing, len: PAGE, mode: 0 };
    assert_eq!(rig.call_on(owner, poison), done(1));
    assert_eq!(ended(parked), Outcome::Ioctl(partial(1)));
}

#[test]
fn no_lock_is_held_while_a_copy_sleeps() {
    within_deadline(|| {
        let rig = Rig::new(Profile::V6_18, 0);
        let dst = rig.armed(2, MISSING);
        let (parked, owner, missing) = half_done(&rig, dst);
        // Each of these wants a lock that the copy had: the map, the VMA, `map_changing`, the
        // page table.
        let protected = rig.machine.protect(rig.process, dst, 2 * PAGE, Access::Read);
        assert_eq!(protected, Ok(()));
        assert_eq!(rig.call(zero(dst + PAGE, 1)), done(1));
        assert!(matches!(rig.machine.unmap(rig.caller, dst, 2 * PAGE), Progress::Done(_)));
        serve(&rig, owner, missing);
        assert_eq!(ended(parked), Outcome::Ioctl(partial(1)));
    });
}

#[test]
fn the_saved_state_tells_kinds_of_memory_apart() {
    let rig = Rig::new(Profile::NEWEST, 0);
    let file = rig.machine.make_file(FileKind::Shmem, 8);
    let of_file = |page, shared| Material::File { file, page, shared, read_only: false };
    let places = [
        rig.map(1),
        rig.map_of(of_file(0, true), 1),
        rig.map_of(of_file(0, false), 1),
        rig.map_of(of_file(1, true), 1),
        rig.map_of(Material::SharedAnonymous, 1),
    ];
    let space = rig.machine.space(rig.process);
    for saved_at in places {
        let saved =
            space.with_vma(saved_at, |vma| RetryState::save(vma.expect("mapped"), saved_at));
        for at in places {
            let changed = space.with_vma(at, |vma| saved.has_changed(vma.expect("mapped"), at));
            assert_eq!(changed, saved_at != at, "saved at {saved_at:#x}, found {at:#x}");
        }
    }
    // Modes count, the owner does not.
    let saved = space.with_vma(places[0], |vma| RetryState::save(vma.expect("mapped"), places[0]));
    rig.arm(rig.context, places[0], 1, MISSING);
    space.with_vma(places[0], |vma| {
        let vma = vma.expect("mapped");
        assert_eq!(vma.modes(), Modes::MISSING);
        assert!(saved.has_changed(vma, places[0]));
    });
}

#[test]
fn a_dying_thread_stops_behind_the_page_it_has_done() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(4, MISSING);
    rig.machine.kill(rig.caller);
    assert_eq!(rig.call(zero(start, 3)), partial(1));
    assert_eq!(rig.call(zero(start + PAGE, 1)), done(1), "the last page is all there is to do");
    assert_eq!(rig.call(moving(start + 2 * PAGE, start, 1)), refused(Errno::EINTR));
}

#[test]
fn a_move_waits_for_a_migration_and_goes_on() {
    let rig = Rig::new(Profile::V6_18, 0);
    let (dst, src) = (rig.armed(3, MISSING), rig.armed(3, MISSING));
    (0..).zip([1, 2, 3]).for_each(|(page, byte)| rig.fill(src + page * PAGE, byte));
    let migration = rig.machine.begin_migration(rig.process, src + PAGE);
    let reader = sleeping(rig.touch(src + PAGE, Touch::Load));
    let moving = rig.start(moving(dst, src, 3));
    assert_eq!((rig.load(dst), rig.entry(src + PAGE)), (1, Observed::Migration));
    rig.machine.end_migration(&migration);
    assert_eq!(ended(reader), Outcome::Loaded(2));
    assert_eq!(ended(moving), Outcome::Ioctl(done(3)));
    assert_eq!((rig.load(dst + PAGE), rig.load(dst + 2 * PAGE)), (2, 3));
}

#[test]
fn a_migration_ends_in_a_child_and_at_a_new_place_too() {
    let rig = Rig::new(Profile::V6_18, 0);
    let (start, elsewhere) = (rig.armed(1, MISSING), rig.map(1));
    rig.fill(start, 1);
    let migration = rig.machine.begin_migration(rig.process, start);
    let forked = rig.machine.fork(rig.caller);
    let Progress::Done(Outcome::Forked(child)) = forked else { panic!("{forked:?}") };
    let reader = sleeping(rig.machine.access(rig.machine.thread(child), start, Touch::Load));
    let remap =
        Remap { from: start, len: PAGE, new_len: PAGE, to: Some(elsewhere), dont_unmap: false };
    let moved = rig.machine.remap(rig.caller, remap);
    assert!(matches!(moved, Progress::Done(Outcome::Returned(Ok(_)))), "{moved:?}");
    assert_eq!(rig.entry(elsewhere), Observed::Migration);
    rig.machine.end_migration(&migration);
    assert_eq!(ended(reader), Outcome::Loaded(1));
    assert_eq!(rig.load(elsewhere), 1);
}

#[test]
fn a_populating_thread_goes_on_behind_the_page_it_has_slept_for() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(3, MISSING);
    rig.fill(start, 1);
    let advice = Advice::PopulateWrite;
    let parked = sleeping(rig.machine.advise(rig.caller, start, 3 * PAGE, advice));
    rig.fill(start + PAGE, 2);
    let parked = sleeping(parked.resume());
    rig.fill(start + 2 * PAGE, 3);
    assert_eq!(ended(parked), Outcome::Returned(Ok(0)));
}

#[test]
fn a_huge_page_that_is_read_outside_of_the_locks_counts_whole() {
    let rig = Rig::new(Profile::V6_18, 0);
    let dst = rig.map_of(Material::Hugetlb, PAGES_PER_HUGE);
    rig.arm(rig.context, dst, PAGES_PER_HUGE, MISSING);
    let owner = rig.another(0);
    let src = rig.map(PAGES_PER_HUGE);
    rig.arm(owner, src + 5 * PAGE, 1, MISSING);
    let parked = rig.start(copy(dst, src, PAGES_PER_HUGE));
    serve(&rig, owner, src + 5 * PAGE);
    assert_eq!(ended(parked), Outcome::Ioctl(done(512)));
    assert_eq!((rig.load(dst + 5 * PAGE), rig.load(dst + 6 * PAGE)), (9, 0));
}
