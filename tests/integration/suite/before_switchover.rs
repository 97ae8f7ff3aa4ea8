//! What breaks before the switchover leaves the guest running at the source, and the receiver
//! listening.

use godwit_migration::wire::{Channel, Kind};
use godwit_tests::proxy::{Proxy, Side, cuts_at};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};

use crate::GODWIT;

/// The guest runs at the source, which owns it, and verifies itself.
fn runs_on(source: &Node, vcpus: u64) {
    let status = source.until_migration(MigrationState::Failed);
    assert!(status.owner.owns, "{status:?}");
    source.until("a guest that runs", |status| status.guest == GuestState::Running);
    let verdict = source.verdict_from_now(vcpus);
    assert_eq!(verdict.corrupt, 0, "{}", source.process.failure("has corrupt pages"));
}

/// `migrate` says that it failed, and that the guest runs.
fn fails(mut migrate: Process) {
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("failed: "), "{}", migrate.failure("gives no reason"));
    assert!(stderr.contains("running here"), "{}", migrate.failure("does not say where it runs"));
}

/// Moves the guest after all, and lets it verify itself there.
fn moves_after_all(stage: &Stage, source: Node, destination: &Node, vcpus: u64) {
    let mut source = source;
    stage.migrate(&source, destination.address()).wait_success();
    let verdict = destination.verdict(vcpus);
    assert_eq!(verdict.corrupt, 0, "{}", destination.process.failure("has corrupt pages"));
    source.process.wait_success();
}

/// The destination is killed while it builds the machine, before it has the guest's state, and
/// when it has loaded that.
#[test]
fn a_destination_that_dies_leaves_the_guest_at_the_source() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let dies_at = [Kind::Accept, Kind::Package, Kind::Loaded];
    for (at, transport) in
        dies_at.into_iter().zip([Transport::Tcp, Transport::Unix, Transport::Tcp])
    {
        let from = if at == Kind::Package { Side::Source } else { Side::Destination };
        let mut destination = stage.receive(&format!("dies at {at:?}"), transport);
        let link = Proxy::that_holds(destination.address(), at);
        let migrate = stage.migrate(&source, link.address());
        until("the message that is kept", || (link.seen(from, at) > 0).then_some(()));
        destination.process.kill();
        fails(migrate);
        runs_on(&source, 2);
    }
    let destination = stage.receive("lives", Transport::Tcp);
    moves_after_all(&stage, source, &destination, 2);
}

/// The connection breaks instead of carrying a message; both processes live.
#[test]
fn a_link_that_breaks_leaves_the_guest_at_the_source_and_the_receiver_listening() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    for at in [Kind::Offer, Kind::Accept, Kind::Package, Kind::Loaded] {
        let mut log = destination.process.new_lines(Stream::Stderr);
        let link = Proxy::that_cuts_at(destination.address(), at);
        fails(stage.migrate(&source, link.address()));
        runs_on(&source, 1);
        log.wait("that it listens again", |line| line.contains("listening again"));
        let status = destination.until("no guest", |status| status.guest == GuestState::None);
        assert!(!status.owner.owns && status.vm.is_none(), "{status:?}");
    }
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
    moves_after_all(&stage, source, &destination, 1);
}

/// The same while pages go in rounds, with several bulk channels.
#[test]
fn a_link_that_breaks_in_a_round_leaves_the_guest_at_the_source_and_the_receiver_listening() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Unix);
    // Rounds go on for ever, or end when they stop to pay.
    let precopy = ["--mode", "precopy", "--downtime-ms", "0", "--connections", "2"];
    let hybrid = ["--mode", "hybrid", "--connections", "4", "--dirty-tracking", "write-protect"];
    let fails_at = |options: &[&str], link: &Proxy| {
        let mut log = destination.process.new_lines(Stream::Stderr);
        fails(stage.migrate_with(&source, link.address(), options));
        runs_on(&source, 1);
        log.wait("that it listens again", |line| line.contains("listening again"));
        destination.until("no guest", |status| status.guest == GuestState::None);
    };
    for number in [1, 2] {
        let link = Proxy::plain(destination.address());
        link.cut_at_hello(Channel::Bulk, number);
        fails_at(&precopy, &link);
    }
    for (kind, number) in [
        (Kind::Round, 1),
        (Kind::RoundReady, 1),
        (Kind::Pages, 1),
        (Kind::Pages, 80),
        (Kind::PushEnd, 2),
        (Kind::RoundDone, 1),
        (Kind::Discard, 1),
        (Kind::Round, 3),
    ] {
        let link = Proxy::start(destination.address(), cuts_at(&[(kind, number)]));
        fails_at(&precopy, &link);
    }
    for kind in [Kind::Round, Kind::PushEnd, Kind::Package, Kind::Loaded] {
        fails_at(&hybrid, &Proxy::that_cuts_at(destination.address(), kind));
    }
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
    moves_after_all(&stage, source, &destination, 1);
}

/// Nobody listens, or somebody who already has a guest.
#[test]
fn a_destination_that_takes_no_guest_leaves_it_at_the_source() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let gone = stage.receive("gone", Transport::Tcp);
    let nobody = gone.address().clone();
    drop(gone);
    let mut migrate = stage.migrate(&source, &nobody);
    migrate.wait_failure();
    assert!(migrate.text(Stream::Stderr).contains(&nobody.to_string()));
    runs_on(&source, 1);

    let other = stage.launch_filled("other", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&other, destination.address()).wait_success();
    let mut migrate = stage.migrate(&source, destination.address());
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("runs here already"), "{}", migrate.failure("gives no reason"));
    runs_on(&source, 1);
    assert_eq!(destination.verdict_from_now(1).corrupt, 0);
}

/// The operator ends the source while the destination is being set up.
#[test]
fn a_source_that_is_shut_down_leaves_the_receiver_listening() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_holds(destination.address(), Kind::Accept);
    let mut migrate = stage.migrate(&source, link.address());
    until("an accept", || (link.seen(Side::Destination, Kind::Accept) > 0).then_some(()));
    stage.control("shutdown", &source, &[]).wait_success();
    source.process.wait_success();
    migrate.wait_failure();
    destination.wait_log("listening again");
    let source = stage.launch_filled("another source", &SMALL);
    moves_after_all(&stage, source, &destination, 1);
}

/// Without a durable record there is no grant, and without a grant the guest stays.
#[test]
fn a_grant_that_cannot_be_recorded_is_not_given() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    // A folder in the place of the record can be prepared for and cannot be written.
    let id = source.client().status().expect("answers").id.expect("a guest");
    let record = stage.folder().path("source.state").join(format!("{id}.json"));
    std::fs::create_dir(&record).expect("no record yet");
    let mut migrate = stage.migrate(&source, destination.address());
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("record of guest"), "{}", migrate.failure("does not name the record"));
    runs_on(&source, 1);
    destination.wait_log("listening again");

    std::fs::remove_dir(&record).expect("an empty folder");
    moves_after_all(&stage, source, &destination, 1);
}
