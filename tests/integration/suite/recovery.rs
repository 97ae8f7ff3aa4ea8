//! After the switchover the link breaks wherever it can, and processes are killed: the session goes
//! on by itself, or the guest is the source's again, or its loss is said.

use std::thread;
use std::time::Duration;

use godwit_migration::wire::{Channel, Kind};
use godwit_tests::proxy::{Fate, Pace, Passing, Proxy, Side, cuts_at, holds_from};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};

use crate::GODWIT;
use crate::moves::{holds_as_much, resources_at_rest};
use crate::moving::{Moving, ToAndFro, fails, fails_with, is_kept, is_refused, is_whole, runs_on};

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

/// A guest on its way, as far as a link lets it.
struct Held {
    source: Node,
    destination: Node,
    link: Proxy,
    migrate: Process,
}

/// Moves the guest of `source` until the link keeps the `number`th frame of this kind.
fn held(stage: &Stage, source: Node, from: Side, kind: Kind, number: usize) -> Held {
    let destination = stage.receive("destination", Transport::Unix);
    let link = Proxy::start(destination.address(), holds_from(kind, number));
    let migrate = stage.migrate(&source, link.address());
    until("the frame that is kept", || (link.seen(from, kind) >= number).then_some(()));
    Held { source, destination, link, migrate }
}

/// A destination that is killed before it owns the guest proves, when it is back, that it never ran
/// there.
#[test]
fn a_destination_that_is_restarted_before_it_owned_the_guest_gives_it_back() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    for (from, at) in [
        (Side::Destination, Kind::Accept),
        (Side::Source, Kind::Package),
        (Side::Destination, Kind::Loaded),
        (Side::Source, Kind::Grant),
    ] {
        let mut moving = held(&stage, source, from, at, 1);
        moving.destination.process.kill();
        moving.link.decide(|_| Fate::Forward);
        let destination = stage.restart("destination", moving.destination);
        fails(moving.migrate);
        runs_on(&moving.source);
        assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
        source = moving.source;
    }
    let destination = stage.receive("last", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

/// A destination that is killed when it owned the guest: that is lost, wherever its pages are.
#[test]
fn a_destination_that_is_restarted_after_it_owned_the_guest_has_lost_it() {
    require_kvm!();
    for (from, at, number) in [
        (Side::Destination, Kind::Owned, 1),
        (Side::Source, Kind::Pages, 100),
        (Side::Destination, Kind::Complete, 1),
    ] {
        let stage = Stage::new(GODWIT);
        let source = stage.launch_filled("source", &SMALL);
        let mut moving = held(&stage, source, from, at, number);
        moving.destination.process.kill();
        moving.link.decide(|_| Fate::Forward);
        let destination = stage.restart("destination", moving.destination);
        let status = moving.source.until_migration(MigrationState::Failed);
        assert!(status.lost() && status.guest == GuestState::Paused, "{at:?}: {status:?}");
        fails_with(moving.migrate, "the guest is lost");
        is_refused(&stage, "resume", &moving.source, "granted");
        assert_eq!(destination.status().guest, GuestState::None);
        assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there again");
    }
}

/// With the source the guest is gone until it is granted: the receiver listens again, and never ran
/// it.
#[test]
fn a_source_that_is_killed_before_the_switchover_leaves_the_receiver_listening() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for (from, at) in [
        (Side::Source, Kind::Offer),
        (Side::Destination, Kind::Accept),
        (Side::Source, Kind::Package),
        (Side::Destination, Kind::Loaded),
        (Side::Source, Kind::Grant),
    ] {
        let source = stage.launch(&format!("source {at:?}"), &SMALL);
        let id = source.status().id.expect("a guest").to_string();
        let mut moving = held(&stage, source, from, at, 1);
        moving.source.process.kill();
        moving.migrate.wait_failure();
        moving.destination.wait_log("listening again");
        assert_eq!(moving.destination.status().guest, GuestState::None);
        assert_eq!(moving.destination.process.text(Stream::Stdout), "", "no guest ran there");
        if at == Kind::Grant {
            // The source does not know whether the grant has arrived.
            let state = stage.folder().path(&format!("source {at:?}.state"));
            let state = state.to_str().expect("a plain path");
            let words = ["run", "--memory", "64M", "--id", &id, "--state-dir", state];
            fails_with(stage.command("run again", &words), "--override-grant");
        }
    }
}

/// A source that is killed later takes the pages with it that it alone has.
#[test]
fn a_source_that_is_killed_after_the_switchover_leaves_the_guest_with_what_it_has() {
    require_kvm!();
    for (from, at, number) in
        [(Side::Destination, Kind::Owned, 1), (Side::Source, Kind::Pages, 100)]
    {
        let stage = Stage::new(GODWIT);
        let source = stage.launch_filled("source", &SMALL);
        let mut moving = held(&stage, source, from, at, number);
        moving.source.process.kill();
        moving.migrate.wait_failure();
        let status = moving.destination.until_migration(MigrationState::PostcopyPaused);
        assert!(status.owner.owns, "{at:?}: {status:?}");
        assert!(status.migration.expect("a migration").pages.remaining > 0);
        stage.control("shutdown", &moving.destination, &[]).wait_success();
        moving.destination.process.wait();
        let console = moving.destination.process.text(Stream::Stdout);
        assert!(!console.contains("corrupt vcpu"), "it ran on without its pages: {console}");
    }
    for (from, at) in [(Side::Destination, Kind::Complete), (Side::Source, Kind::Released)] {
        let stage = Stage::new(GODWIT);
        let source = stage.launch_filled("source", &SMALL);
        let mut moving = held(&stage, source, from, at, 1);
        moving.source.process.kill();
        moving.migrate.wait();
        is_whole(&moving.destination, &moving.source);
    }
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
