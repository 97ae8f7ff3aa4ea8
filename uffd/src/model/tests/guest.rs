//! Guest ranges over the model: the same layer that runs over the kernel.

use std::sync::Arc;

use super::super::threads::{ModelUffd, touch};
use super::*;
use crate::guest::{Filled, GuestSpace, GuestUffd, Protected, Region};
use crate::page::{Gpa, Hva, PageIndex, PageRun};
use crate::trial::Trials;
use crate::{Event, Features, Holes, MemoryKind, Mode, RegisterMode, Wake};

fn run(first: u32, count: u32) -> PageRun {
    PageRun { first: PageIndex(first), count }
}

/// Two memslots of four and two pages with a hole between them; where they begin.
fn guest() -> (Arc<Machine>, Process, GuestUffd<ModelUffd>, [u64; 2]) {
    guest_for(Features::EVENT_REMOVE, RegisterMode::MISSING | RegisterMode::WRITE_PROTECT)
}

/// The same with other features, registered for another mode.
fn guest_for(
    features: Features,
    mode: RegisterMode,
) -> (Arc<Machine>, Process, GuestUffd<ModelUffd>, [u64; 2]) {
    let rig = Rig::new(Profile::V6_18, features.bits());
    let starts = [rig.map(4), rig.map(2)];
    let [low, high] = starts;
    let memory = MemoryKind::Anonymous;
    let region =
        |gpa, hva, pages| Region { gpa: Gpa(gpa), hva: Hva(hva), bytes: pages * PAGE, memory };
    let space = GuestSpace::of([region(0, low, 4), region(1 << 32, high, 2)]).expect("memslots");
    let Rig { machine, process, caller, context } = rig;
    let machine = Arc::new(machine);
    let uffd = ModelUffd::new(machine.clone(), caller, context);
    let guest = GuestUffd::register(uffd, space, mode, features, |_| Trials::NONE);
    (machine, process, guest.expect("it registers"), starts)
}

#[test]
fn a_guest_range_is_filled_moved_and_protected_over_the_model() {
    let (machine, process, guest, [low, high]) = guest();
    let load = |address| touch(&machine, machine.thread(process), address, Touch::Load);
    let bytes: Vec<u8> = [3_u8, 4].iter().flat_map(|&byte| [byte; 4096]).collect();
    let protected = Mode::protected(Wake::Now);
    assert_eq!(guest.copy(run(3, 2), &bytes, protected).expect("copies"), Filled::All);
    assert_eq!(load(low + 3 * PAGE), Outcome::Loaded(3));
    assert_eq!(load(high), Outcome::Loaded(4));
    let mut store = machine.access(machine.thread(process), high, Touch::Store(9));
    let Progress::Parked(parked) = store else { panic!("a protected page was written") };
    assert_eq!(guest.unprotect(run(3, 2), Wake::Now).expect("unprotects"), Protected::All);
    store = parked.resume();
    assert!(matches!(store, Progress::Done(Outcome::Stored)), "{store:?}");
    let moved = guest.move_pages(run(0, 2), run(3, 2), Holes::Refused, Wake::Now);
    assert_eq!(moved.expect("moves"), Filled::All);
    assert_eq!([load(low), load(low + PAGE)], [Outcome::Loaded(3), Outcome::Loaded(9)]);
    let zeroed = guest.zero(run(1, 5), Wake::Now).expect("tries");
    assert_eq!(zeroed, Filled::AlreadyPresent { done: 0 });
    let mut staged = vec![6; 4096];
    assert_eq!(guest.move_in(run(5, 1), &mut staged, Wake::Now).expect("moves"), Filled::All);
    assert_eq!((load(high + PAGE), staged[0]), (Outcome::Loaded(6), 0));
}

#[test]
fn a_guest_range_waits_for_events_of_the_model() {
    let (machine, process, guest, [low, _]) = guest();
    assert_eq!(guest.zero(run(0, 2), Wake::Now).expect("zeroes"), Filled::All);
    let advice = machine.advise(machine.thread(process), low, PAGE, Advice::DontNeed);
    let parked = sleeping(advice);
    let filled = guest.zero(run(2, 2), Wake::Now).expect("tries");
    assert_eq!(filled, Filled::EventsFirst { done: 0 });
    let mut events = Vec::new();
    guest.read_events(&mut events).expect("events");
    assert_eq!(events, [Event::Remove { start: Hva(low), end: Hva(low + PAGE) }]);
    assert_eq!(ended(parked), Outcome::Returned(Ok(0)));
    assert_eq!(guest.zero(run(2, 2), Wake::Now).expect("zeroes"), Filled::All);
}

#[test]
fn written_pages_of_a_guest_are_told_once_over_the_model() {
    let (machine, process, guest, [low, high]) =
        guest_for(Features::WP_ASYNC, RegisterMode::WRITE_PROTECT);
    assert_eq!(guest.protect(run(0, 6)).expect("protects"), Protected::All);
    let store = |address| touch(&machine, machine.thread(process), address, Touch::Store(1));
    let take = |asked| {
        let mut told = Vec::new();
        let taken = guest.take_written(asked, |run| told.push(run)).expect("scans");
        assert_eq!(taken, Protected::All);
        told
    };
    for address in [low + PAGE, low + 2 * PAGE, high] {
        assert_eq!(store(address), Outcome::Stored);
    }
    assert_eq!(take(run(2, 4)), [run(2, 1), run(4, 1)]);
    assert_eq!(take(run(0, 6)), [run(1, 1)]);
    assert_eq!(take(run(0, 6)), []);
    assert_eq!(store(high + PAGE), Outcome::Stored);
    assert_eq!(take(run(0, 6)), [run(5, 1)]);
}
