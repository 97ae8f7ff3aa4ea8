//! After the switchover the link breaks wherever it can, again and again, and the session goes on
//! by itself.

use std::thread;
use std::time::Duration;

use godwit_migration::wire::{Channel, Kind};
use godwit_tests::proxy::{Fate, Pace, Passing, Proxy, cuts_at};
use godwit_tests::stage::{Machine, SMALL, Stage, Transport};
use godwit_tests::{require_kvm, until};
use godwit_vmm::api::types::MigrationState;

use crate::GODWIT;
use crate::moves::{holds_as_much, resources_at_rest};
use crate::moving::{Moving, ToAndFro, is_kept, is_refused, is_whole};

/// Where the link breaks: at these frames, and at what this channel begins with.
type Break = (&'static [(Kind, usize)], Option<(Channel, usize)>);

/// All after the grant. The destination needs the source at all of them.
const BREAKS: [Break; 9] = [
    (&[(Kind::Owned, 1)], None),
    (&[(Kind::Request, 1)], None),
    (&[(Kind::Pages, 1)], None),
    (&[(Kind::Pages, 90)], None),
    (&[(Kind::PushEnd, 1)], None),
    // While the session is being resumed.
    (&[(Kind::Pages, 40)], Some((Channel::Resume, 1))),
    (&[(Kind::Pages, 40), (Kind::Received, 1)], None),
    (&[(Kind::Pages, 40), (Kind::Resumed, 1)], None),
    (&[(Kind::Pages, 40)], Some((Channel::Bulk, 3))),
];

/// The destination has all pages at these.
const LAST_WORDS: [Kind; 2] = [Kind::Complete, Kind::Released];

#[test]
fn a_link_that_breaks_anywhere_after_the_grant_is_dialled_again_and_nothing_is_left_behind() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut guest = ToAndFro::start(&stage, &Machine { cpus: 2, ..SMALL });
    let options = ["--connections", "2", "--compression", "none"];
    let breaks = |guest: &mut ToAndFro<'_>, (frames, hello): Break| {
        let moved = guest.moves(&options, |to| {
            let link = Proxy::start(to, cuts_at(frames));
            if let Some((channel, number)) = hello {
                link.cut_at_hello(channel, number);
            }
            link
        });
        let told = [&moved.source, &moved.destination].map(|migration| migration.interruptions);
        assert!(told.iter().all(|&times| times >= 1), "{frames:?} {hello:?}: {told:?}");
    };
    // There and back: after that everything has been used once.
    [BREAKS[3], BREAKS[3]].into_iter().for_each(|once| breaks(&mut guest, once));
    let before = guest.nodes.each_ref().map(resources_at_rest);
    BREAKS.into_iter().for_each(|each| breaks(&mut guest, each));
    for at in LAST_WORDS {
        let moved = guest.moves(&options, |to| Proxy::that_cuts_at(to, at));
        assert_eq!(moved.destination.interruptions, 0, "{at:?}");
    }
    // The guest is where it was, and the other has none.
    guest.moves(&options, Proxy::plain);
    for (node, before) in guest.nodes.iter().zip(before) {
        holds_as_much(node, before);
    }
}

/// Breaks the link at every so many runs of pages after the switchover, so often.
fn cuts_often(runs: usize, times: usize) -> impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static {
    let (mut owned, mut seen, mut left) = (false, 0, times);
    move |passing| {
        owned |= passing.kind == Kind::Owned;
        seen += usize::from(owned && passing.kind == Kind::Pages);
        if seen < runs || left == 0 {
            return Fate::Forward;
        }
        (seen, left) = (0, left - 1);
        Fate::Cut
    }
}

/// A link that breaks again and again, or is slow as well, in different modes. The source waits
/// longer each time, so all of these go at the same time.
#[test]
fn a_link_that_breaks_again_and_again_loses_nothing() {
    require_kvm!();
    let slow = Pace { delay: Duration::from_millis(10), bytes_per_s: 40 << 20 };
    thread::scope(|scope| {
        scope.spawn(|| breaks_often(&[], None, 10, "anon"));
        let hybrid = ["--mode", "hybrid", "--connections", "2"];
        scope.spawn(move || breaks_often(&hybrid, None, 3, "memfd"));
        let several = ["--connections", "4", "--compression", "lz4"];
        scope.spawn(move || breaks_often(&several, Some(slow), 4, "memfd"));
    });
}

fn breaks_often(options: &[&str], pace: Option<Pace>, times: usize, backing: &str) {
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &Machine { backing, ..SMALL });
    let destination = stage.receive("destination", Transport::Tcp);
    // In rounds most pages come before the switchover.
    let runs = if options.contains(&"hybrid") { 1 } else { 12 };
    let link = Proxy::paced(destination.address(), pace, cuts_often(runs, times));
    stage.migrate_with(&source, link.address(), options).wait_success();
    is_whole(&destination, &source);
    let interruptions = destination.migration().interruptions as usize;
    assert!(0 < interruptions && interruptions <= times, "{interruptions} of {times}");
    // Several channels may be cut in one interruption.
    assert!(!options.is_empty() || interruptions == times, "{interruptions}");
    source.process.wait_success();
}

/// The address is gone, and the destination listens at another one.
#[test]
fn a_session_goes_on_at_another_address() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    is_refused(&stage, "recover", &source, "no migration leaves here");
    let mut moving = Moving::without_pages(&stage, source);
    is_refused(&stage, "recover", &moving.destination, "the source dials");
    // The address is no more.
    let elsewhere = {
        stage.control("recover", &moving.destination, &["tcp:127.0.0.1:0"]).wait_success();
        let line = moving.destination.wait_log(" as well");
        let (_, rest) = line.split_once("listening at ").expect("says where");
        let (address, _) = rest.split_once(" as well").expect("says so");
        address.parse().expect("an address")
    };
    moving.link = Proxy::that_keeps_pages(&elsewhere);
    is_kept(&moving.source, &moving.migrate);
    let address = moving.link.address().to_string();
    stage.control("recover", &moving.source, &[&address]).wait_success();
    moving.source.until_migration(MigrationState::PostcopyActive);
    assert!(moving.link.calls(Channel::Resume) >= 1);
    // And at yet another one, while nothing is wrong with this.
    let next = Proxy::plain(&elsewhere);
    let address = next.address().to_string();
    stage.control("recover", &moving.source, &[&address]).wait_success();
    until("a call over the next link", || (next.calls(Channel::Resume) > 0).then_some(()));
    moving.link = next;
    moving.completes();
}
