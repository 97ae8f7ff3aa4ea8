//! The locks: their order, what they keep out, and that real threads get through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::page_table::{Directory, PairGuard, lock_pair};
use super::*;
use crate::model::{HUGE, PAGES_PER_HUGE};

#[test]
fn two_tables_are_locked_in_address_order_and_one_once() {
    let tables = Directory::default();
    let (low, high) = (tables.get(0), tables.get(HUGE));
    for (source, destination) in [(0, HUGE), (HUGE, 0)] {
        let of = |address: u64| if address == 0 { &low } else { &high };
        let pair = lock_pair((of(source), source), (of(destination), destination));
        assert!(matches!(pair, PairGuard::Two { .. }));
    }
    assert!(matches!(lock_pair((&low, PAGE), (&low, 0)), PairGuard::One(_)));
}

#[test]
fn moves_in_opposite_directions_do_not_wait_for_each_other() {
    within_deadline(|| {
        let rig = Arc::new(Rig::new(Profile::V6_18, 0));
        let (low, high) = (rig.armed(PAGES_PER_HUGE, MISSING), rig.armed(PAGES_PER_HUGE, MISSING));
        // Two pages: one goes up while the other goes down, again and again.
        rig.fill(low, 1);
        rig.fill(high + PAGE, 2);
        let there_and_back = |from: u64, to: u64| {
            let rig = rig.clone();
            thread::spawn(move || {
                for _ in 0..5_000 {
                    assert_eq!(rig.call(moving(to, from, 1)), done(1));
                    assert_eq!(rig.call(moving(from, to, 1)), done(1));
                }
            })
        };
        let threads = [there_and_back(low, high), there_and_back(high + PAGE, low + PAGE)];
        threads.into_iter().for_each(|thread| thread.join().expect("every move works"));
        assert_eq!((rig.load(low), rig.load(high + PAGE)), (1, 2));
    });
}

#[test]
fn a_page_whose_lock_is_held_is_waited_for() {
    within_deadline(|| {
        let rig = Arc::new(Rig::new(Profile::V6_18, 0));
        let (dst, src) = (rig.armed(1, MISSING), rig.armed(1, MISSING));
        rig.fill(src, 7);
        let space = rig.machine.space(rig.process);
        let folio = match space.tables.get(src).lock().entry(src) {
            Some(super::super::page_table::Entry::Page(mapped)) => mapped.folio.clone(),
            other => panic!("no page: {other:?}"),
        };
        let held = folio.lock.try_lock().expect("nobody has it");
        let mover = {
            let rig = rig.clone();
            thread::spawn(move || rig.call(moving(dst, src, 1)))
        };
        // The mover holds no page-table lock while it waits, so the page can be looked at.
        assert_eq!(rig.load(src), 7);
        drop(held);
        assert_eq!(mover.join().expect("no panic"), done(1));
        assert_eq!(rig.load(dst), 7);
    });
}

#[test]
fn an_event_begins_only_between_operations_and_stops_the_next() {
    within_deadline(|| {
        let rig = Rig::new(Profile::V6_18, 0);
        let start = rig.armed(1, MISSING);
        let context = rig.machine.context(rig.context);
        let running = context.map_changing.read();
        let announced = Arc::new(AtomicBool::new(false));
        let announcer = {
            let (context, announced) = (context.clone(), announced.clone());
            thread::spawn(move || {
                context.begin_change();
                announced.store(true, Ordering::SeqCst);
            })
        };
        assert!(!context.is_changing(), "an operation is in flight");
        drop(running);
        announcer.join().expect("no panic");
        assert!(announced.load(Ordering::SeqCst) && context.is_changing());
        assert_eq!(rig.call(zero(start, 1)), refused(Errno::EAGAIN));
        context.end_change();
        assert_eq!(rig.call(zero(start, 1)), done(1));
    });
}

#[test]
fn everything_at_once_ends() {
    within_deadline(|| {
        let rig = Arc::new(Rig::new(Profile::V6_18, 0));
        let pages = 32;
        let (area, other) = (rig.armed(pages, MISSING | WP), rig.armed(pages, MISSING));
        let worker = |work: fn(&Rig, u64, u64, u64)| {
            let rig = rig.clone();
            thread::spawn(move || {
                for round in 0..2_000 {
                    let page = round * 7 % pages * PAGE;
                    work(&rig, area + page, other + page, round);
                }
            })
        };
        let threads = [
            worker(|rig, at, _, _| {
                rig.call(zero(at, 1));
            }),
            worker(|rig, at, other, _| {
                rig.call(moving(other, at, 1));
            }),
            worker(|rig, at, other, _| {
                rig.call(moving(at, other, 1));
            }),
            worker(|rig, at, _, round| {
                let mode = round % 2;
                rig.call(Call::WriteProtect { start: at, len: PAGE, mode });
            }),
            worker(|rig, at, _, _| {
                let access = Access::ReadWrite;
                assert_eq!(rig.machine.protect(rig.process, at, PAGE, access), Ok(()));
                rig.advise(at, 1, Advice::DontNeed);
            }),
            worker(|rig, at, _, round| {
                if round % 100 == 0 {
                    rig.call(Call::Unregister { start: at, len: PAGE });
                    rig.arm(rig.context, at, 1, MISSING | WP);
                }
            }),
        ];
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(rig.call(Call::Unregister { start: area, len: pages * PAGE }).result, Ok(()));
        (0..pages).for_each(|page| assert_eq!(rig.load(area + page * PAGE), 0));
    });
}
