//! What a guest touches first after a restore is recorded, and comes first the next time.

use std::fs;
use std::path::Path;

use godwit_tests::stage::{Machine, Node, SMALL, Stage};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{RestoreState, RestoreStatus};
use rustix::process::Signal;

use crate::GODWIT;
use crate::moving::Arena;

/// A guest that goes over a quarter of its memory, again and again.
const WORKS: Machine<'static> = Machine { cmdline: "workload=dirty span=16M fill=16M", ..SMALL };

fn until_state(node: &Node, state: RestoreState) -> RestoreStatus {
    let status = node.until("the restore", |status| {
        status.restore.as_ref().is_some_and(|restore| restore.state == state)
    });
    status.restore.expect("a restore")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

#[test]
fn a_recorded_working_set_comes_first() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &WORKS);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let set = stage.folder().path("set");
    // As many pages as its arena has: it ends when the guest has gone over most of that.
    let record = ["--record", text(&set), "--record-s", "600", "--record-max", "16M"];
    let node = stage.restore("recorded", &dir, &record);
    let line = node.wait_log("the working set is recorded");
    assert!(line.contains("pages=4096"), "{line}");
    let restore = until_state(&node, RestoreState::Resident);
    assert!(restore.timeline.recorded_us.is_some(), "{restore:?}");
    let arena = Arena::of(&source);
    arena.is_verified(&node, node.verdict(arena.vcpus));

    let options = ["--mode", "workingset", "--working-set", text(&set)];
    let node = stage.restore("restored", &dir, &options);
    let restore = until_state(&node, RestoreState::Resident);
    let at = restore.timeline;
    assert!(at.working_set_us.is_some() && at.restored_us <= at.working_set_us, "{at:?}");
    assert!(at.working_set_us <= at.resident_us, "{at:?}");
    node.wait_log("working set in");
    arena.is_verified(&node, node.verdict(arena.vcpus));

    // Pages of it that are damaged are taken from the snapshot.
    let mut bytes = fs::read(&set).expect("a working set");
    let end = bytes.len();
    bytes[end - 20 * 4096..].iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
    fs::write(&set, bytes).expect("written");
    let node = stage.restore("mended", &dir, &options);
    let pages = until_state(&node, RestoreState::Resident).pages.expect("pages");
    assert_eq!((pages.damaged, pages.poisoned), (0, 0));
    arena.is_verified(&node, node.verdict(arena.vcpus));
}

#[test]
fn a_recording_ends_with_its_limit_and_with_the_guest() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &WORKS);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let set = stage.folder().path("small");
    let limited = ["--record", text(&set), "--record-s", "600", "--record-max", "1M"];
    let node = stage.restore("limited", &dir, &limited);
    let line = node.wait_log("the working set is recorded");
    assert!(line.contains("pages=256"), "{line}");
    let arena = Arena::of(&source);
    arena.is_verified(&node, node.verdict(arena.vcpus));

    let set = stage.folder().path("ended");
    let mut node = stage.restore("ended", &dir, &["--record", text(&set), "--record-s", "600"]);
    node.process.signal(Signal::TERM);
    node.process.wait_success();
    let options = ["--mode", "workingset", "--working-set", text(&set)];
    let node = stage.restore("restored", &dir, &options);
    arena.is_verified(&node, node.verdict(arena.vcpus));
}

#[test]
fn a_working_set_of_another_snapshot_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &WORKS);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let other = stage.snapshot(&source, "other", &[]);
    let set = stage.folder().path("set");
    let record = ["--record", text(&set), "--record-s", "600", "--record-max", "64K"];
    stage.restore("recorded", &dir, &record).wait_log("the working set is recorded");
    let refused = |name: &str, options: &[&str], why: &str| {
        let mut node = stage.try_restore(name, &other, options);
        node.process.wait_failure();
        let stderr = node.process.text(Stream::Stderr);
        assert!(stderr.contains(why), "{}", node.process.failure(&format!("says no {why:?}")));
        assert_eq!(node.process.text(Stream::Stdout), "", "the guest ran");
    };
    let by_set = ["--mode", "workingset", "--working-set", text(&set)];
    refused("foreign", &by_set, "belongs to snapshot");
    refused("no set", &["--mode", "workingset"], "--working-set");
    refused("no use", &["--working-set", text(&set)], "is for --mode workingset");
    refused("no record", &["--mode", "copy", "--record", text(&set)], "is for --mode ondemand");
}
