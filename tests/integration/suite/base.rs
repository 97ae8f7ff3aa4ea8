//! Guests that move with a base: a snapshot that both hosts have, of which no page is sent.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use godwit_migration::snapshot::MEMORY_FILE;
use godwit_migration::wire::{Channel, PREAMBLE_BYTES, Preamble};
use godwit_tests::peer::PeerListener;
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{Classes, MigrationState};

use crate::GODWIT;
use crate::moving::{Arena, fails, fails_with, runs_on};

/// A guest that writes a page now and then.
const CALM: Machine<'static> = Machine { cmdline: "workload=dirty rate=500", ..SMALL };

/// A guest that was saved, and what it says of its memory.
struct Saved {
    stage: Stage,
    arena: Arena,
    /// The snapshot, as each of the two hosts has it.
    dirs: [PathBuf; 2],
}

impl Saved {
    #[track_caller]
    fn new(machine: &Machine<'_>) -> Saved {
        let stage = Stage::new(GODWIT);
        let mut first = stage.launch_filled("first", machine);
        let here = stage.snapshot(&first, "base-here", &[]);
        let there = stage.folder().path("base-there");
        std::fs::create_dir(&there).expect("a folder");
        for file in std::fs::read_dir(&here).expect("a snapshot").flatten() {
            std::fs::copy(file.path(), there.join(file.file_name())).expect("copies");
        }
        let arena = Arena::of(&first);
        first.process.kill();
        Saved { stage, arena, dirs: [here, there] }
    }

    fn words(dir: &Path) -> [&str; 2] {
        ["--base", dir.to_str().expect("a plain path")]
    }

    /// The guest, restored in a process of this name, and all of its memory in place.
    #[track_caller]
    fn restore(&self, name: &str) -> Node {
        let source = self.stage.restore(name, &self.dirs[0], &["--mode", "copy"]);
        self.arena.is_verified(&source, source.verdict(self.arena.vcpus));
        source
    }

    /// Moves the restored guest with these options and its base. How its pages travelled, as the
    /// destination tells.
    #[track_caller]
    fn moves(&self, name: &str, options: &[&str]) -> (Node, Classes) {
        let mut source = self.restore(&format!("source {name}"));
        let options = [&Saved::words(&self.dirs[0])[..], options].concat();
        let base = Saved::words(&self.dirs[1]);
        let name = format!("destination {name}");
        let destination = self.stage.receive_with(&name, Transport::Tcp, &base);
        self.stage.migrate_with(&source, destination.address(), &options).wait_success();
        self.arena.is_verified(&destination, destination.verdict(self.arena.vcpus));
        let migration = destination.until_migration(MigrationState::Completed).migration;
        let classes = migration.expect("a migration").classes;
        source.process.wait_success();
        (destination, classes)
    }
}

/// Pages with contents that had to travel.
fn sent(classes: &Classes) -> u64 {
    classes.raw.pages + classes.lz4.pages + classes.word.pages
}

#[test]
fn pages_of_the_base_are_not_sent_and_those_that_changed_are() {
    require_kvm!();
    let saved = Saved::new(&CALM);
    let (_, classes) = saved.moves("postcopy", &["--compression", "none"]);
    // Most of the guest is as it was, and the rest is what it wrote and what faults asked for.
    assert!(classes.same.pages > sent(&classes), "{classes:?}");
    assert!(classes.same.bytes < classes.same.pages * 64, "{classes:?}");
    assert!(sent(&classes) > 0, "{classes:?}");
    let several = ["--mode", "hybrid", "--connections", "4", "--compression", "lz4"];
    let (_, classes) = saved.moves("hybrid", &several);
    assert!(classes.same.pages > sent(&classes), "{classes:?}");
    let (_, classes) = saved.moves("precopy", &["--mode", "precopy", "--downtime-ms", "20000"]);
    assert!(classes.same.pages > sent(&classes), "{classes:?}");
}

#[test]
fn a_base_that_the_receiver_does_not_have_is_refused_and_the_guest_runs_on() {
    require_kvm!();
    let saved = Saved::new(&CALM);
    let stage = &saved.stage;
    let mut source = stage.launch_filled("source", &CALM);
    let base = Saved::words(&saved.dirs[0]);
    let without = stage.receive("without", Transport::Tcp);
    let migrate = stage.migrate_with(&source, without.address(), &base);
    migrate.wait_line(Stream::Stderr, "what to do", |line| line.contains("receive --base"));
    fails(migrate);
    runs_on(&source);

    // The same guest, saved once more: another snapshot.
    let other = stage.snapshot(&source, "other", &[]);
    let with_other = stage.receive_with("other", Transport::Tcp, &Saved::words(&other));
    let migrate = stage.migrate_with(&source, with_other.address(), &base);
    migrate.wait_line(Stream::Stderr, "which", |line| line.contains(" is of "));
    fails(migrate);
    runs_on(&source);

    // A base of another memory, or none.
    let small = Saved::new(&Machine { memory: "32M", ..CALM });
    let migrate = stage.migrate_with(&source, with_other.address(), &Saved::words(&small.dirs[0]));
    fails_with(migrate, "not laid out as in");
    let nothing = stage.folder().path("nothing");
    let migrate = stage.migrate_with(&source, with_other.address(), &Saved::words(&nothing));
    fails_with(migrate, "nothing");

    // A peer that knows of no base.
    let listener = PeerListener::tcp();
    let migrate = stage.migrate_with(&source, &listener.address(), &base);
    let mut old = listener.accept();
    old.receive(PREAMBLE_BYTES);
    let preamble = Preamble { version: 2, version_min: 2, channel: Channel::Urgent };
    old.send(&preamble.encode()).expect("takes it");
    assert!(old.receive_to_end().is_empty(), "it was offered something");
    fails_with(migrate, "knows no base");
    runs_on(&source);

    // And it goes without, to a receiver that has one.
    stage.migrate(&source, with_other.address()).wait_success();
    let migration = with_other.until_migration(MigrationState::Completed).migration;
    assert_eq!(migration.expect("a migration").classes.same.pages, 0);
    saved.arena.is_verified(&with_other, with_other.verdict(saved.arena.vcpus));
    source.process.wait_success();
}

/// Pages of the base there in which a byte is another one.
const DAMAGED: u64 = 14;

/// One byte of many pages of the base there is another one: none of these is installed.
#[test]
fn a_base_that_is_damaged_is_found_and_its_pages_are_sent() {
    require_kvm!();
    let saved = Saved::new(&Machine { cmdline: "workload=checksum", ..SMALL });
    let memory = OpenOptions::new().read(true).write(true).open(saved.dirs[1].join(MEMORY_FILE));
    let memory = memory.expect("the memory of the base");
    for page in (32 << 8..60 << 8).step_by(512) {
        let (mut byte, at) = ([0], page * 4096 + 1234);
        memory.read_exact_at(&mut byte, at).expect("reads");
        memory.write_all_at(&[byte[0] ^ 1], at).expect("writes");
    }
    // In a round the guest stays where it is.
    let source = saved.restore("stays");
    let base = Saved::words(&saved.dirs[1]);
    let destination = saved.stage.receive_with("turns away", Transport::Tcp, &base);
    let options = [&Saved::words(&saved.dirs[0])[..], &["--mode", "hybrid"]].concat();
    let migrate = saved.stage.migrate_with(&source, destination.address(), &options);
    migrate.wait_line(Stream::Stderr, "why", |line| line.contains("it is damaged"));
    fails(migrate);
    destination.wait_log("listening again");
    saved.arena.is_verified(&source, source.verdict_from_now(saved.arena.vcpus));
    drop((source, destination));
    // After the switchover all goes on without a base.
    let (destination, classes) = saved.moves("damaged", &["--compression", "none"]);
    assert!(destination.migration().interruptions > 0);
    assert!(sent(&classes) >= DAMAGED, "{classes:?}");
    destination.wait_log("it is damaged");
}
