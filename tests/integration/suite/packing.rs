//! How pages travel, and how fast they may: what the operator asks for, on real guests.

use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{Classes, Direction, MigrationState, MigrationStatus, Status};

use crate::GODWIT;

/// Moves a guest with these options of `godwit migrate` and lets it verify its memory, unless it
/// has halted. The migration as the source and as the destination tell it.
fn moves(machine: &Machine<'_>, options: &[&str]) -> [MigrationStatus; 2] {
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", machine);
    let destination = stage.receive("destination", Transport::Tcp);
    let address = destination.address().to_string();
    let words = [&["--json", &address], options].concat();
    let mut migrate = stage.control("migrate", &source, &words);
    migrate.wait_success();
    if !machine.cmdline.contains("halt") {
        assert_eq!(destination.verdict(machine.cpus.into()).corrupt, 0);
    }
    source.process.wait_success();
    let told: Status = serde_json::from_str(&migrate.text(Stream::Stdout)).expect("a status");
    let sent = told.migration.expect("a migration");
    assert_eq!(sent.direction, Direction::Outgoing);
    [sent, received(&destination)]
}

fn received(destination: &Node) -> MigrationStatus {
    destination.until_migration(MigrationState::Completed).migration.expect("a migration")
}

/// What was sent has arrived, in the way in which it was sent, and is all the guest has.
fn classes(migration: &[MigrationStatus; 2]) -> Classes {
    let [sent, received] = migration;
    assert_eq!(sent.classes, received.classes);
    let Classes { zero, word, lz4, raw, poisoned } = sent.classes;
    let pages = zero.pages + word.pages + lz4.pages + raw.pages;
    assert_eq!((pages, poisoned.pages), (sent.pages.total, 0));
    assert_eq!(word.pages + lz4.pages + raw.pages, received.pages.data);
    sent.classes
}

/// What the guest fills its memory with does not shrink; its image and its tables do.
#[test]
fn packed_pages_arrive_whole_and_are_fewer_bytes() {
    require_kvm!();
    let lz4 = classes(&moves(&SMALL, &["--compression", "lz4"])).lz4;
    assert!(lz4.pages > 0, "{lz4:?}");
    assert!(lz4.bytes < lz4.pages * 4096, "{lz4:?}");
}

#[test]
fn nothing_is_packed_that_shall_not_be() {
    require_kvm!();
    let classes = classes(&moves(&SMALL, &["--compression", "none"]));
    assert_eq!(classes.lz4.pages, 0);
    assert!(classes.raw.bytes > classes.raw.pages * 4096, "{classes:?}");
}

/// The guest halts, so that the push sends all there is.
#[test]
fn a_cap_on_bandwidth_is_kept() {
    require_kvm!();
    let rate = 32 << 20;
    let words = ["--bandwidth", "32M", "--compression", "none"];
    let [sent, _] = moves(&Machine { cmdline: "workload=halt fill=32M", ..SMALL }, &words);
    assert_eq!(sent.pages.requested, 0);
    let bytes = sent.classes.raw.bytes;
    let began = sent.timeline.granted_us.expect("granted");
    let took = sent.timeline.released_us.expect("released") - began;
    // A burst and the last run are free.
    let least = (bytes - (1 << 20)) * 1_000_000 / rate;
    assert!(bytes > 4 << 20, "{:?}", sent.classes);
    assert!(took >= least, "{bytes} bytes in {took} us");
}

#[test]
fn a_cap_below_what_the_protocol_bears_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let mut migrate = stage.control("migrate", &source, &["--bandwidth", "1K", "tcp:127.0.0.1:1"]);
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("the least is 65536"), "{}", migrate.failure("does not say it"));
    assert!(source.status().migration.is_none());
}
