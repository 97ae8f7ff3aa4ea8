//! Snapshots that are not what was written: refused with the reason before a guest runs, or what is
//! damaged is never seen by the guest as if it were right.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use godwit_tests::stage::{Machine, Node, SMALL, Stage};
use godwit_tests::{Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, RestoreState};

use crate::GODWIT;
use crate::moving::Arena;

/// A guest that looks at the clock and touches little of its memory.
const CLOCK: Machine<'static> = Machine { cmdline: "workload=clock span=16M fill=16M", ..SMALL };

/// A page of the arena of [`CLOCK`], which it has written and does not touch any more: byte 0 of it
/// is at this offset of the memory file.
const QUIET: u64 = (16 << 20) + (8 << 20);

/// Saves a guest, and ends it.
fn saved(stage: &Stage, machine: &Machine<'_>) -> PathBuf {
    let source = stage.launch_filled("source", machine);
    stage.snapshot(&source, "snapshot", &[])
}

fn flip(file: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(file).expect("a file of ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside it");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

#[track_caller]
fn is_refused(mut node: Node, why: &str) {
    node.process.wait_failure();
    let stderr = node.process.text(Stream::Stderr);
    assert!(stderr.contains(why), "{}", node.process.failure(&format!("does not say {why:?}")));
    assert_eq!(node.process.text(Stream::Stdout), "", "the guest ran");
}

#[test]
fn what_is_not_a_whole_snapshot_is_refused_before_a_guest_runs() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let dir = saved(&stage, &SMALL);
    let other = stage.folder().path("other");
    let mut n = 0;
    let mut refused = |name: &str, why: &str, change: &dyn Fn(&Path)| {
        let file = dir.join(name);
        // The memory file is long, and its length is what counts here.
        let before = (name != "memory").then(|| fs::read(&file).expect("a file"));
        change(&file);
        for mode in ["copy", "mmap", "ondemand"] {
            n += 1;
            let node = stage.try_restore(&format!("refused {n}"), &dir, &["--mode", mode]);
            is_refused(node, why);
        }
        match before {
            Some(bytes) => fs::write(&file, bytes).expect("written back"),
            None => {
                let file = fs::File::options().write(true).open(&file).expect("a file of ours");
                file.set_len(64 << 20).expect("lengthened");
            }
        }
    };
    let cut = |file: &Path| {
        let file = fs::File::options().write(true).open(file).expect("a file of ours");
        let bytes = file.metadata().expect("of ours").len();
        file.set_len(bytes - 1).expect("cut off");
    };
    refused("manifest.json", "its checksum is wrong", &|file| flip(file, 30));
    refused("manifest.json", "not a snapshot", &|file| fs::write(file, "{}").expect("written"));
    refused("state", "checksum of section", &|file| flip(file, 100));
    refused("state", "were written", &cut);
    refused("pages", "the checksum of its contents is wrong", &|file| flip(file, 1000));
    refused("pages", "were written", &cut);
    refused("memory", "were written", &cut);
    refused("state", "cannot open", &|file| fs::rename(file, &other).expect("moved away"));
    is_refused(stage.try_restore("none", &stage.folder().path("none"), &[]), "No such file");
    stage.restore("whole", &dir, &[]);
}

#[test]
fn copy_refuses_a_damaged_page() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let dir = saved(&stage, &CLOCK);
    flip(&dir.join("memory"), QUIET);
    is_refused(stage.try_restore("copy", &dir, &["--mode", "copy"]), "checksum of page");
}

#[test]
fn a_guest_on_a_damaged_file_is_paused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let dir = saved(&stage, &CLOCK);
    flip(&dir.join("memory"), QUIET);
    let node = stage.restore("mmap", &dir, &["--mode", "mmap"]);
    let status = node.until("a guest that was stopped", |s| s.guest == GuestState::Paused);
    let restore = status.restore.expect("a restore");
    assert_eq!(restore.state, RestoreState::Failed);
    assert!(restore.error.expect("why").message.contains("checksum of page"));
    node.wait_log("it is paused");
}

#[test]
fn a_damaged_page_is_lost_to_the_guest_and_nothing_else_is() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let dir = saved(&stage, &CLOCK);
    let bad = [QUIET, QUIET + 3 * 4096 + 17, QUIET + (1 << 20)];
    bad.iter().for_each(|&at| flip(&dir.join("memory"), at));
    let node = stage.restore("ondemand", &dir, &["--mode", "ondemand"]);
    let status = node.until("all other pages", |status| {
        status.restore.as_ref().is_some_and(|restore| restore.state == RestoreState::Resident)
    });
    let restore = status.restore.expect("a restore");
    let pages = restore.pages.expect("pages");
    assert_eq!((pages.damaged, pages.poisoned, pages.remaining), (3, 3, 0));
    assert!(restore.error.expect("why").message.contains("its checksum is wrong"));
    node.wait_log("it is lost to the guest");
    // Nobody has touched them.
    assert_eq!(status.guest, GuestState::Running);
    let lines = node.process.text(Stream::Stdout).lines().count();
    until("a guest that runs on", || {
        (node.process.text(Stream::Stdout).lines().count() > lines).then_some(())
    });
}

/// What the image loses on its way through a tool that does not know of holes is only room.
#[test]
fn a_copy_without_holes_is_the_same_snapshot() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let dir = stage.snapshot(&source, "snapshot", &[]);
    let other = stage.folder().path("other");
    fs::create_dir(&other).expect("a directory");
    for name in ["manifest.json", "state", "pages", "memory"] {
        let bytes = fs::read(dir.join(name)).expect("a file");
        fs::write(other.join(name), bytes).expect("written");
    }
    fs::remove_dir_all(&dir).expect("removed");
    let node = stage.restore("restored", &other, &[]);
    let arena = Arena::of(&source);
    arena.is_verified(&node, node.verdict(arena.vcpus));
}
