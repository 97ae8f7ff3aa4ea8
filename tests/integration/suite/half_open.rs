//! Links that go silent: what is sent does not arrive, and no connection says that it is gone. The
//! patience of the protocol or the keepalive of the kernel finds it, and then it is a loss like any
//! other: before the switchover the guest stays where it is, after it the session goes on.

use std::thread;

use godwit_migration::wire::{Channel, Kind};
use godwit_tests::proxy::{Fate, Passing, Proxy, Side};
use godwit_tests::stage::{Machine, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::GuestState;

use crate::GODWIT;
use crate::moving::{fails, is_whole, runs_on};

/// A guest that looks at all of its memory each second, and costs little while others wait.
const IDLE: Machine<'static> = Machine {
    cpus: 1,
    memory: "32M",
    backing: "anon",
    cmdline: "workload=halt timer=100 fill=24M",
};

/// What does not arrive any more on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// What this side says. Something between the hosts takes it and says that it is alive.
    From(Side),
    /// What anybody says.
    Both,
    /// Any packet, as when there is no link any more.
    Packets,
}

/// On which channel, and at which frame of it: this kind and number, after this one.
#[derive(Clone, Copy, Debug)]
struct Place {
    channel: Channel,
    after: Option<Kind>,
    kind: Kind,
    number: usize,
}

const fn place(channel: Channel, after: Option<Kind>, kind: Kind, number: usize) -> Place {
    Place { channel, after, kind, number }
}

const FIRST_REQUEST: Place = place(Channel::Urgent, Some(Kind::Owned), Kind::Request, 1);
const IN_THE_PUSH: Place = place(Channel::Bulk, Some(Kind::Owned), Kind::Pages, 20);
const END_OF_PUSH: Place = place(Channel::Bulk, Some(Kind::Owned), Kind::PushEnd, 1);
const IN_A_ROUND: Place = place(Channel::Bulk, None, Kind::Pages, 20);
const ROUND_BEGINS: Place = place(Channel::Urgent, None, Kind::RoundReady, 1);

/// The connection of the first frame at `place` falls silent there; others do not.
fn falls_silent(place: Place, silence: Silence) -> impl FnMut(&mut Passing<'_>) -> Fate + Send {
    let (mut after, mut left, mut silent) = (place.after, place.number, None);
    move |passing| {
        if after == Some(passing.kind) {
            after = None;
        } else if after.is_none() && silent.is_none() && passing.channel == place.channel {
            left -= usize::from(passing.kind == place.kind);
            silent = (left == 0).then_some(passing.connection);
        }
        match silence {
            _ if silent != Some(passing.connection) => Fate::Forward,
            Silence::From(side) if side != passing.from => Fate::Forward,
            Silence::From(_) | Silence::Both => Fate::Hold,
            Silence::Packets => Fate::Vanish,
        }
    }
}

/// All of these wait for long, so they do it at the same time.
#[test]
fn a_link_that_goes_silent_is_found_and_nothing_is_lost() {
    require_kvm!();
    let [source, destination] = [Side::Source, Side::Destination].map(Silence::From);
    thread::scope(|scope| {
        for silence in [source, destination, Silence::Both, Silence::Packets] {
            scope.spawn(move || goes_on(FIRST_REQUEST, silence, true));
        }
        for silence in [source, Silence::Packets] {
            scope.spawn(move || goes_on(IN_THE_PUSH, silence, true));
            // All pages are there, and the guest needs no source any more.
            scope.spawn(move || goes_on(END_OF_PUSH, silence, false));
            scope.spawn(move || stays(IN_A_ROUND, silence));
        }
        scope.spawn(|| stays(ROUND_BEGINS, Silence::Both));
    });
}

/// After the switchover the guest comes to have all of its pages.
fn goes_on(place: Place, silence: Silence, interrupts: bool) {
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &IDLE);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::start(destination.address(), falls_silent(place, silence));
    // The push takes longer than it takes to find that nothing is heard on the urgent channel.
    let cap = if place.channel == Channel::Urgent { "1500K" } else { "100M" };
    let options = ["--compression", "none", "--bandwidth", cap];
    let mut migrate = stage.migrate_with(&source, link.address(), &options);
    migrate.wait_success();
    is_whole(&destination, &source);
    let interruptions = destination.migration().interruptions;
    assert_eq!(interruptions > 0, interrupts, "{place:?} {silence:?}: {interruptions}");
    assert!(link.calls(Channel::Resume) > 0, "{place:?} {silence:?}: the source lost nobody");
    source.process.wait_success();
}

/// Before it the guest does not leave, and the receiver listens again.
fn stays(place: Place, silence: Silence) {
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &IDLE);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::start(destination.address(), falls_silent(place, silence));
    let options = ["--mode", "hybrid", "--compression", "none"];
    fails(stage.migrate_with(&source, link.address(), &options));
    runs_on(&source);
    destination.wait_log("listening again");
    assert_eq!(destination.status().guest, GuestState::None);
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
}
