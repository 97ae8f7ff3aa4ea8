//! Guests that are saved and brought back: each verifies all of its memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use godwit_tests::disk::SmallDisk;
use godwit_tests::resources::descriptors;
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{
    GuestState, MigrationState, RestoreState, RestoreStatus, Role, SnapshotState,
};
use rustix::process::Signal;

use crate::GODWIT;
use crate::moving::{Arena, is_refused, runs_on};

/// All ways to bring a guest back.
const MODES: [&str; 3] = ["copy", "mmap", "ondemand"];

/// The guest that `source` launched is in `node`, and finds all of its memory right.
#[track_caller]
fn is_back(node: &Node, source: &Node) {
    let arena = Arena::of(source);
    arena.is_verified(node, node.verdict(arena.vcpus));
    let status = node.status();
    assert_eq!((status.role, status.guest), (Role::Restore, GuestState::Running));
    assert!(status.owner.owns);
    assert_ne!(status.id, source.status().id, "a clone is somebody else");
}

/// Waits until the guest has all of its pages.
#[track_caller]
fn resident(node: &Node) -> RestoreStatus {
    let status = node.until("a guest with all of its pages", |status| {
        let restore = status.restore.as_ref().expect("a restore");
        assert_ne!(restore.state, RestoreState::Failed, "{restore:?}");
        restore.state == RestoreState::Resident
    });
    status.restore.expect("a restore")
}

#[test]
fn a_guest_is_saved_while_it_runs_and_comes_back_in_every_way() {
    require_kvm!();
    for backing in ["anon", "memfd"] {
        let stage = Stage::new(GODWIT);
        let machine = Machine { cpus: 2, backing, ..SMALL };
        let source = stage.launch_filled("source", &machine);
        let dir = stage.snapshot(&source, "snapshot", &[]);
        let saved = source.status().snapshot.expect("a snapshot");
        assert_eq!((saved.state, saved.pages.remaining), (SnapshotState::Completed, 0));
        assert!(saved.blackout_us < saved.duration_us, "{saved:?}");
        runs_on(&source);
        for mode in MODES {
            let node = stage.restore(mode, &dir, &["--mode", mode]);
            is_back(&node, &source);
            let vm = node.status().vm.expect("a machine");
            assert_eq!((vm.cpus, vm.memory_bytes), (2, 64 << 20));
        }
    }
}

#[test]
fn files_are_for_their_owner_only_and_say_what_they_are() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    for entry in fs::read_dir(&dir).expect("a directory") {
        let meta = entry.expect("a file").metadata().expect("of ours");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    let manifest = fs::read(dir.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("json");
    assert_eq!(manifest["guest"], source.status().id.expect("an id").to_string());
    assert_eq!(manifest["memslots"][0]["bytes"], 64 << 20);
    assert_eq!(manifest["machine"]["cpus"], 1);
    let listed = |what: &str| manifest["machine"][what].as_array().is_some_and(|l| !l.is_empty());
    assert!(listed("devices") && listed("cpu_features"), "{manifest}");
}

#[test]
fn the_three_instants_are_told_apart() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let node = stage.restore("restored", &dir, &["--mode", "ondemand"]);
    let restore = resident(&node);
    let at = restore.timeline;
    assert!(at.opened_us <= at.restored_us && at.restored_us <= at.resident_us, "{at:?}");
    assert_eq!((at.working_set_us, at.checked_us), (None, None));
    let pages = restore.pages.expect("pages");
    assert_eq!((pages.total, pages.remaining), ((64 << 20) / 4096, 0));
    assert_eq!(pages.zero + pages.data, pages.total);
    assert!(pages.data > 0 && pages.zero > 0, "{pages:?}");
    assert_eq!(restore.faults.expect("faults").outstanding, 0);
    node.wait_log("restored");
    node.wait_log("fully resident");
    // The memory is ordinary again.
    let kinds = descriptors(node.process.pid());
    assert!(kinds.keys().all(|kind| !kind.contains("userfaultfd")), "{kinds:?}");
    is_back(&node, &source);

    let node = stage.restore("copied", &dir, &["--mode", "copy", "--huge-pages"]);
    let at = resident(&node).timeline;
    assert!(at.resident_us <= at.restored_us, "{at:?}");
    is_back(&node, &source);

    let node = stage.restore("mapped", &dir, &["--mode", "mmap"]);
    let status = node.until("a file that was checked", |status| {
        let restore = status.restore.as_ref().expect("a restore");
        restore.timeline.checked_us.is_some()
    });
    let restore = status.restore.expect("a restore");
    assert_eq!((restore.state, restore.timeline.resident_us), (RestoreState::Mapped, None));
    is_back(&node, &source);
}

/// A guest that came back is like any other: it is paused, moved, saved again.
#[test]
fn a_restored_guest_is_an_ordinary_guest() {
    require_kvm!();
    for mode in MODES {
        let stage = Stage::new(GODWIT);
        let source = stage.launch_filled("source", &SMALL);
        let dir = stage.snapshot(&source, "first", &[]);
        let mut node = stage.restore("restored", &dir, &["--mode", mode]);
        if mode == "ondemand" {
            resident(&node);
        }
        stage.control("pause", &node, &[]).wait_success();
        assert_eq!(node.status().guest, GuestState::Paused);
        stage.control("resume", &node, &[]).wait_success();
        is_back(&node, &source);

        let again = stage.snapshot(&node, "second", &[]);
        is_back(&stage.restore("again", &again, &["--mode", mode]), &source);

        let destination = stage.receive("destination", Transport::Unix);
        stage.migrate(&node, destination.address()).wait_success();
        let arena = Arena::of(&source);
        arena.is_verified(&destination, destination.verdict(arena.vcpus));
        destination.until_migration(MigrationState::Completed);
        node.process.wait_success();

        let third = stage.snapshot(&destination, "third", &[]);
        is_back(&stage.restore("at last", &third, &["--mode", "ondemand"]), &source);
    }
}

#[test]
fn a_guest_is_left_as_its_operator_wants_it() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    // It was paused before, and stays so.
    stage.control("pause", &source, &[]).wait_success();
    stage.snapshot(&source, "paused", &[]);
    assert_eq!(source.status().guest, GuestState::Paused);
    stage.control("resume", &source, &[]).wait_success();
    let dir = stage.snapshot(&source, "kept", &["--pause"]);
    assert_eq!(source.status().guest, GuestState::Paused);
    let console = source.process.text(Stream::Stdout);

    let node = stage.restore("restored", &dir, &["--paused"]);
    assert_eq!(node.status().guest, GuestState::Paused);
    resident(&node);
    assert_eq!(node.process.text(Stream::Stdout), "", "it ran");
    stage.control("resume", &node, &[]).wait_success();
    is_back(&node, &source);
    assert_eq!(source.process.text(Stream::Stdout), console, "it ran");
    stage.control("resume", &source, &[]).wait_success();
    runs_on(&source);
}

#[test]
fn many_guests_come_from_one_snapshot() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let start = |n: usize| {
        let mode = MODES[n % MODES.len()];
        stage.try_restore(&format!("clone {n}"), &dir, &["--mode", mode])
    };
    let clones: Vec<Node> = (0..6).map(start).collect();
    let mut ids = Vec::new();
    for clone in &clones {
        is_back(clone, &source);
        ids.push(clone.status().id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), clones.len(), "each has an identity of its own");
    runs_on(&source);
}

/// Ending a guest whose pages are not all there ends its process, and the guest's own end is that
/// of its process.
#[test]
fn a_restored_guest_ends_as_it_wants_and_when_it_is_told() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let cmdline = "workload=clock passes=3 exit=7 span=4M fill=4M";
    let source = stage.launch_filled("source", &Machine { cmdline, ..SMALL });
    let dir = stage.snapshot(&source, "snapshot", &[]);
    for mode in MODES {
        let mut node = stage.restore(mode, &dir, &["--mode", mode]);
        assert_eq!(node.process.wait_failure(), 7);
        let mut node = stage.restore(&format!("{mode} ended"), &dir, &["--mode", mode]);
        node.process.signal(Signal::TERM);
        node.process.wait_success();
    }
}

#[test]
fn an_identity_runs_once() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let id = source.status().id.expect("an id").to_string();
    let records = stage.folder().path("source.state");
    let records = records.to_str().expect("a path of ours");
    let options = ["--id", &id, "--state-dir", records];
    let mut twice = stage.try_restore("twice", &dir, &options);
    twice.process.wait_failure();
    twice.wait_log("runs here already");
    drop(source);
    let node = stage.restore("instead", &dir, &options);
    assert_eq!(node.status().id.expect("an id").to_string(), id);
}

#[test]
fn what_cannot_be_saved_is_refused_and_the_guest_runs_on() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let refused = |dir: &Path, why: &str| {
        let mut snapshot = stage.snapshot_to(&source, dir, &[]);
        snapshot.wait_failure();
        let stderr = snapshot.text(Stream::Stderr);
        assert!(stderr.contains(why), "{}", snapshot.failure(&format!("does not say {why:?}")));
        assert_eq!(source.status().guest, GuestState::Running);
    };
    refused(&dir, "exists already");
    refused(Path::new("/proc/none/snapshot"), "cannot make");
    runs_on(&source);
    let receiver = stage.receive("destination", Transport::Unix);
    let words = stage.folder().path("none");
    is_refused_with(&stage, &receiver, &words, "no guest to save");
    is_refused(&stage, "cancel", &source, "no migration leaves here");
}

#[track_caller]
fn is_refused_with(stage: &Stage, node: &Node, dir: &Path, why: &str) {
    crate::moving::fails_with(stage.snapshot_to(node, dir, &[]), why);
}

/// The file system takes no more: whoever asked is told, nothing is left, and the guest runs on.
#[test]
fn a_full_disk_costs_the_guest_nothing() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let Some(disk) = SmallDisk::mount(stage.folder().path("disk"), 16) else { return };
    let source = stage.launch_filled("source", &SMALL);
    let dir = disk.path().join("snapshot");
    let mut snapshot = stage.snapshot_to(&source, &dir, &[]);
    snapshot.wait_failure();
    let stderr = snapshot.text(Stream::Stderr);
    let told = ["no snapshot was taken", "memory", "No space left", "running here"];
    let told = told.iter().all(|word| stderr.contains(word));
    assert!(told, "{}", snapshot.failure("does not say what happened"));
    let status = source.status().snapshot.expect("one that failed");
    assert_eq!(status.state, SnapshotState::Failed);
    assert_eq!(fs::read_dir(disk.path()).expect("a folder").count(), 0, "something is left");
    runs_on(&source);
    // Elsewhere there is room.
    stage.snapshot(&source, "snapshot", &[]);
}
