//! Guests with a disk and a source of random numbers, which write, verify and move.

use std::path::PathBuf;

use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{GuestState, MigrationState};

use crate::GODWIT;

/// A guest that writes 256 blocks and verifies them, sweep after sweep, with its pages.
const WRITER: Machine<'static> =
    Machine { cpus: 2, cmdline: "workload=disk blocks=256 timer=100", ..SMALL };

/// An empty disk of 1 MiB in a folder of its own.
fn disk(stage: &Stage) -> (PathBuf, String) {
    let folder = stage.folder().path("disks");
    std::fs::create_dir(&folder).expect("a new folder");
    let path = folder.join("disk");
    let file = std::fs::File::create(&path).expect("a new file");
    file.set_len(1 << 20).expect("an empty disk");
    (folder, format!("path={}", path.display()))
}

fn launch(stage: &Stage, name: &str, machine: &Machine<'_>, disk: &str) -> Node {
    stage.launch_with(name, machine, &["--disk", disk, "--rng"])
}

fn receive(stage: &Stage, name: &str, folder: &std::path::Path) -> Node {
    let folder = folder.to_str().expect("a name in UTF-8");
    stage.receive_with(name, Transport::Tcp, &["--disk-dir", folder])
}

/// Waits until the guest has been through all blocks twice from now on.
fn two_sweeps(node: &Node) {
    let mut lines = node.process.new_lines(Stream::Stdout);
    let mut sweeps = 0;
    lines.wait("sweeps over the disk", |line| {
        assert!(!line.contains("error"), "{}", node.process.failure(line));
        sweeps += u32::from(line.contains("godwit-guest: disk n="));
        sweeps == 3
    });
}

/// Moves a guest with a disk once, and then `more` times, at most twice.
fn moves(mode: &str, more: usize) {
    let stage = Stage::new(GODWIT);
    let (folder, disk) = disk(&stage);
    let mut source = launch(&stage, "source", &WRITER, &disk);
    two_sweeps(&source);
    let mut nodes = [receive(&stage, "a", &folder), receive(&stage, "b", &folder)];
    stage.migrate_with(&source, nodes[0].address(), &["--mode", mode]).wait_success();
    source.process.wait_success();
    two_sweeps(&nodes[0]);
    assert_eq!(nodes[0].verdict_from_now(2).corrupt, 0);
    // On to the next, and back: the lock follows.
    for (here, there) in [(0, 1), (1, 0)].into_iter().take(more) {
        stage.migrate_with(&nodes[here], nodes[there].address(), &["--mode", mode]).wait_success();
        two_sweeps(&nodes[there]);
        assert_eq!(nodes[there].verdict_from_now(2).corrupt, 0);
    }
    let last = usize::from(more == 1);
    nodes[last].client().shutdown(false).expect("shuts down");
    nodes[last].process.wait_success();
}

#[test]
fn a_disk_is_written_and_verified_through_moves_by_post_copy() {
    require_kvm!();
    moves("postcopy", 2);
}

#[test]
fn a_disk_is_written_and_verified_through_moves_by_pre_copy() {
    require_kvm!();
    moves("precopy", 0);
}

#[test]
fn a_disk_is_written_and_verified_through_hybrid_moves() {
    require_kvm!();
    moves("hybrid", 0);
}

#[test]
fn a_receiver_lets_in_only_disks_that_it_was_told_of() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let (folder, disk) = disk(&stage);
    let mut source = launch(&stage, "source", &WRITER, &disk);
    let strict = stage.receive("strict", Transport::Tcp);
    let mut refused = stage.migrate(&source, strict.address());
    refused.wait_failure();
    assert!(refused.text(Stream::Stderr).contains("--disk-dir"), "{}", refused.failure("?"));
    source.until_migration(MigrationState::Failed);
    two_sweeps(&source);
    let open = receive(&stage, "open", &folder);
    stage.migrate(&source, open.address()).wait_success();
    source.process.wait_success();
    two_sweeps(&open);
}

#[test]
fn a_disk_that_a_guest_writes_is_not_given_to_another() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let (_, disk) = disk(&stage);
    let first = launch(&stage, "first", &WRITER, &disk);
    let mut second = stage.command("second", &["run", "--disk", &disk]);
    second.wait_failure();
    assert!(second.text(Stream::Stderr).contains("is in use"), "{}", second.failure("?"));
    two_sweeps(&first);
    assert_eq!(first.status().guest, GuestState::Running);
}

#[test]
fn a_pause_leaves_the_disk_as_it_is() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let (folder, disk) = disk(&stage);
    let source = launch(&stage, "source", &WRITER, &disk);
    two_sweeps(&source);
    for _ in 0..20 {
        source.client().pause().expect("pauses");
        let held = std::fs::read(folder.join("disk")).expect("a disk");
        std::thread::yield_now();
        assert!(held == std::fs::read(folder.join("disk")).expect("a disk"));
        source.client().resume().expect("resumes");
    }
    two_sweeps(&source);
}
