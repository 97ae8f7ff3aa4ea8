//! `godwit cancel`: before the switchover the guest stays, wherever the migration stood; after it,
//! it is refused.

use godwit_migration::wire::Kind;
use godwit_tests::proxy::{Proxy, Side, holds_from};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};

use crate::GODWIT;
use crate::moving::{Moving, is_refused, is_whole, runs_on};

const POSTCOPY: &[&str] = &["--mode", "postcopy"];
const HYBRID: &[&str] = &["--mode", "hybrid", "--connections", "2"];
const PRECOPY: &[&str] = &["--mode", "precopy", "--downtime-ms", "0"];

/// What the link keeps while the migration is cancelled, and who has said it.
const PHASES: [(&[&str], Side, Kind); 9] = [
    (POSTCOPY, Side::Source, Kind::Offer),
    (POSTCOPY, Side::Destination, Kind::Accept),
    (HYBRID, Side::Source, Kind::Round),
    (HYBRID, Side::Destination, Kind::RoundReady),
    (PRECOPY, Side::Source, Kind::Pages),
    (PRECOPY, Side::Destination, Kind::RoundDone),
    (PRECOPY, Side::Source, Kind::Discard),
    (POSTCOPY, Side::Source, Kind::Package),
    (HYBRID, Side::Destination, Kind::Loaded),
];

/// Begins a migration that the link keeps at this frame, with all that follows.
fn kept_at(
    stage: &Stage,
    source: &Node,
    destination: &Node,
    (options, from, kind): (&[&str], Side, Kind),
) -> (Proxy, Process) {
    let link = Proxy::start(destination.address(), holds_from(kind, 1));
    let migrate = stage.migrate_with(source, link.address(), options);
    until("the frame that is kept", || (link.seen(from, kind) > 0).then_some(()));
    (link, migrate)
}

/// `migrate` says that it was cancelled and what the guest does.
fn says_cancelled(mut migrate: Process, guest: &str) {
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    for what in ["was cancelled", guest] {
        assert!(stderr.contains(what), "{}", migrate.failure(&format!("does not say {what:?}")));
    }
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_guest_and_the_receiver_as_they_were() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    is_refused(&stage, "cancel", &source, "no migration leaves here");
    let destination = stage.receive("destination", Transport::Tcp);
    is_refused(&stage, "cancel", &destination, "no migration leaves here");
    for phase in PHASES {
        let mut log = destination.process.new_lines(Stream::Stderr);
        let (_link, migrate) = kept_at(&stage, &source, &destination, phase);
        stage.control("cancel", &source, &[]).wait_success();
        source.until_migration(MigrationState::Cancelled);
        says_cancelled(migrate, "running here");
        runs_on(&source);
        log.wait("that it listens again", |line| line.contains("listening again"));
        destination.until("no guest", |status| status.guest == GuestState::None);
        is_refused(&stage, "cancel", &source, "no migration leaves here");
    }
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
    stage.migrate(&source, destination.address()).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

#[test]
fn a_guest_that_is_paused_stays_so_when_its_migration_is_cancelled() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    stage.control("pause", &source, &[]).wait_success();
    let loaded = (POSTCOPY, Side::Destination, Kind::Loaded);
    let (_link, migrate) = kept_at(&stage, &source, &destination, loaded);
    stage.control("cancel", &source, &[]).wait_success();
    says_cancelled(migrate, "paused here");
    assert_eq!(source.status().guest, GuestState::Paused);
    stage.control("resume", &source, &[]).wait_success();
    runs_on(&source);
}

#[test]
fn a_migration_is_not_cancelled_after_its_switchover() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let destination = stage.receive("first", Transport::Tcp);
    // The grant is recorded, and has not arrived.
    let grant = (HYBRID, Side::Source, Kind::Grant);
    let (link, mut migrate) = kept_at(&stage, &source, &destination, grant);
    is_refused(&stage, "cancel", &source, "too late");
    link.release();
    migrate.wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();

    let moving = Moving::without_pages(&stage, stage.launch_filled("next", &SMALL));
    is_refused(&stage, "cancel", &moving.source, "too late");
    is_refused(&stage, "cancel", &moving.destination, "no migration leaves here");
    moving.link.release();
    moving.completes();
}
