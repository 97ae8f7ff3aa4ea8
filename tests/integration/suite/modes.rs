//! Every mode, with one and several channels, with and without compression, on both kinds of memory
//! and with both ways to note what a guest writes; and how rounds end.

use godwit_migration::wire::Kind;
use godwit_tests::proxy::{Proxy, Side};
use godwit_tests::stage::{Machine, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm, until};
use godwit_vmm::api::types::{MigrationMode, MigrationState};

use crate::GODWIT;
use crate::moving::{Moved, ToAndFro, fails, fails_with, is_refused, is_whole, runs_on};

/// How a guest is moved: mode, connections, compression, and what notes its writes.
pub type Way = [&'static str; 4];

pub fn moves(guest: &mut ToAndFro<'_>, way: Way) -> Moved {
    let [mode, connections, compression, tracking] = way;
    let options = ["--mode", mode, "--connections", connections, "--compression", compression];
    // Whatever the guest writes meanwhile may be left at the end.
    let rounds = ["--dirty-tracking", tracking, "--downtime-ms", "20000"];
    let moved = guest.moves(&[&options[..], &rounds].concat(), Proxy::plain);
    let Moved { source, destination } = &moved;
    let expected = match mode {
        "postcopy" => MigrationMode::Postcopy,
        "precopy" => MigrationMode::Precopy,
        _ => MigrationMode::Hybrid,
    };
    assert_eq!((source.mode, destination.mode), (expected, expected));
    let rounds = source.timeline.first_round_us.is_some();
    assert_eq!(rounds, expected != MigrationMode::Postcopy, "{way:?}");
    let faults = destination.faults.as_ref().expect("a destination has faults");
    if expected == MigrationMode::Precopy {
        assert_eq!(faults.count, 0, "{way:?}: a page was missing");
    }
    if tracking == "write-faults" && rounds {
        assert!(source.writes_held.writes > 0, "{way:?}: no write was held up");
    }
    if compression == "none" {
        assert_eq!(source.classes.lz4.pages, 0, "{way:?}");
    }
    assert_eq!(destination.interruptions, 0);
    moved
}

// The next two: each mode with each number of connections, and each of both packed and not.

#[test]
fn every_mode_moves_anonymous_memory() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut guest = ToAndFro::start(&stage, &SMALL);
    for way in [
        ["postcopy", "1", "lz4", "kvm-log"],
        ["precopy", "2", "lz4", "kvm-log"],
        ["hybrid", "4", "none", "kvm-log"],
        ["postcopy", "8", "none", "kvm-log"],
        ["precopy", "1", "none", "write-protect"],
        ["hybrid", "2", "none", "write-protect"],
    ] {
        moves(&mut guest, way);
    }
}

#[test]
fn every_mode_moves_shared_memory() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let cmdline = "workload=random windows=0 seed=7";
    let machine = Machine { cpus: 2, memory: "64M", backing: "memfd", cmdline };
    let mut guest = ToAndFro::start(&stage, &machine);
    for way in [
        ["postcopy", "2", "none", "kvm-log"],
        ["precopy", "8", "lz4", "kvm-log"],
        ["hybrid", "1", "lz4", "kvm-log"],
        ["postcopy", "4", "lz4", "kvm-log"],
        ["precopy", "4", "none", "write-protect"],
        ["hybrid", "8", "lz4", "write-protect"],
    ] {
        moves(&mut guest, way);
    }
}

/// A guest that writes all the time, with both ways to note it, on memory that is shared.
#[test]
fn a_guest_that_writes_all_the_time_moves_in_rounds() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut guest = ToAndFro::start(&stage, &Machine { cpus: 2, backing: "memfd", ..SMALL });
    for way in [
        ["precopy", "1", "auto", "kvm-log"],
        ["hybrid", "2", "none", "kvm-log"],
        ["precopy", "2", "none", "write-protect"],
        ["hybrid", "1", "auto", "write-protect"],
        ["precopy", "2", "auto", "write-faults"],
        ["hybrid", "1", "none", "write-faults"],
    ] {
        moves(&mut guest, way);
    }
}

#[test]
fn a_guest_that_writes_all_the_time_is_held_up_until_what_it_writes_is_sent() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut guest = ToAndFro::start(&stage, &Machine { cpus: 2, ..SMALL });
    for mode in ["hybrid", "precopy"] {
        let options = ["--mode", mode, "--dirty-tracking", "write-faults", "--bandwidth", "64M"];
        let Moved { source, .. } =
            guest.moves(&[&options[..], &["--downtime-ms", "20000"]].concat(), Proxy::plain);
        let held = source.writes_held;
        assert!(held.pushed_first > 0 && held.pushed_first <= held.writes, "{held:?}");
    }
}

#[test]
fn a_guest_that_writes_little_comes_in_rounds_within_the_downtime() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let machine = Machine { cmdline: "workload=dirty rate=200", ..SMALL };
    let mut guest = ToAndFro::start(&stage, &machine);
    for tracking in ["kvm-log", "write-protect", "write-faults"] {
        let options = ["--mode", "precopy", "--dirty-tracking", tracking];
        let Moved { destination, .. } = guest.moves(&options, Proxy::plain);
        assert_eq!(destination.faults.expect("a destination has faults").count, 0);
    }
}

/// Rounds of which none leaves nothing: the guest writes all the time, and may not stand still.
/// They are slow, because a busy host may not run the guest in a round of a few milliseconds.
const ENDLESS: [&str; 6] = ["--mode", "precopy", "--downtime-ms", "0", "--bandwidth", "128M"];

#[test]
fn rounds_that_do_not_converge_end_as_the_operator_said() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let with = |options: &[&'static str]| [&ENDLESS[..], options].concat();

    let cancel = with(&["--timeout-s", "1", "--timeout-strategy", "cancel"]);
    let migrate = stage.migrate_with(&source, destination.address(), &cancel);
    migrate.wait_line(Stream::Stderr, "why", |line| line.contains("did not converge in time"));
    fails(migrate);
    runs_on(&source);
    destination.wait_log("listening again");

    let go_on = with(&["--timeout-s", "0", "--timeout-strategy", "ignore"]);
    let link = Proxy::plain(destination.address());
    let mut log = destination.process.new_lines(Stream::Stderr);
    let mut migrate = stage.migrate_with(&source, link.address(), &go_on);
    until("many rounds", || (link.seen(Side::Source, Kind::Round) >= 5).then_some(()));
    assert_eq!(source.migration().state, MigrationState::Active);
    assert!(source.status().owner.owns);
    stage.control("cancel", &source, &[]).wait_success();
    migrate.wait_failure();
    runs_on(&source);
    log.wait("that it listens again", |line| line.contains("listening again"));

    let switch = with(&["--timeout-s", "1", "--timeout-strategy", "switch"]);
    stage.migrate_with(&source, destination.address(), &switch).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

#[test]
fn rounds_end_when_the_operator_says_so() {
    require_kvm!();
    for mode in ["precopy", "hybrid"] {
        let stage = Stage::new(GODWIT);
        let mut source = stage.launch_filled("source", &SMALL);
        is_refused(&stage, "switch-over", &source, "no migration leaves here");
        let destination = stage.receive("destination", Transport::Tcp);
        let link = Proxy::that_holds(destination.address(), Kind::Owned);
        // The first round would take long.
        let options = ["--mode", mode, "--downtime-ms", "0", "--timeout-strategy", "ignore"];
        let slowly = ["--bandwidth", "4M", "--connections", "2", "--compression", "none"];
        let options = [&options[..], &slowly].concat();
        let mut migrate = stage.migrate_with(&source, link.address(), &options);
        until("pages of a round", || (link.seen(Side::Source, Kind::Pages) > 0).then_some(()));
        assert!(source.status().owner.owns);
        stage.control("switch-over", &source, &[]).wait_success();
        until("the switchover", || (link.seen(Side::Destination, Kind::Owned) > 0).then_some(()));
        let first = link.seen(Side::Source, Kind::Round);
        assert_eq!(first, 1, "it was the round under way that ended");
        is_refused(&stage, "switch-over", &source, "too late");
        link.release();
        migrate.wait_success();
        is_whole(&destination, &source);
        source.process.wait_success();
    }
}

/// What cannot be is refused before anything is begun.
#[test]
fn what_cannot_be_asked_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let slow = stage.migrate_with(&source, destination.address(), &["--bandwidth", "1K"]);
    fails_with(slow, "the least is");
    assert_eq!(source.status().migration, None);
}
