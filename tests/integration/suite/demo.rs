//! `godwit demo`, as a user runs it.

use std::path::Path;
use std::process::Command;

use godwit_tests::{Process, Stream, TestDir, require_kvm, until};
use rustix::process::Signal;
use serde_json::Value;

/// Starts a demo of a small guest whose temporary files go to `folder`.
fn demo(folder: &TestDir, options: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.env("TMPDIR", folder.as_ref()).args(["demo", "--memory", "64M"]).args(options);
    Process::start("demo", command)
}

/// The one object on its stdout.
fn json(demo: &Process) -> Value {
    let stdout = demo.text(Stream::Stdout);
    assert_eq!(stdout.lines().count(), 1, "{}", demo.failure("wrote more or less than one line"));
    let value = serde_json::from_str(&stdout);
    value.unwrap_or_else(|error| panic!("{}", demo.failure(&format!("wrote no JSON: {error}"))))
}

fn is_empty(folder: &TestDir) -> bool {
    std::fs::read_dir(folder).expect("the folder is there").next().is_none()
}

/// The processes that `parent` has started and that have not ended.
fn children(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).expect("it runs");
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("children")).ok()
    };
    let pids = tasks.filter_map(of_task).collect::<Vec<_>>().join(" ");
    pids.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

#[test]
fn a_demo_ends_with_the_guests_verdict() {
    require_kvm!();
    let folder = TestDir::new();
    let mut demo = demo(&folder, &["--json", "--link", "2G,500us"]);
    demo.wait_success();
    let report = json(&demo);
    assert_eq!(report["verdict"], "verified", "{report}");
    assert_eq!((&report["pages_corrupt"], &report["error"]), (&0.into(), &Value::Null));
    assert_eq!(report["pages_verified"], report["pages_to_verify"]);
    for field in ["pages_verified", "blackout_us", "guest_gap_us", "drain_bytes_per_s", "total_us"]
    {
        assert!(report[field].as_u64().is_some_and(|figure| figure > 0), "{field}: {report}");
    }
    let pages = |class: &str| report["pages"][class].as_u64().expect("a count");
    assert_eq!(pages("zero") + pages("data"), pages("total"));
    assert!(is_empty(&folder));
}

#[test]
fn a_byte_that_changes_on_the_way_is_found_and_shown() {
    require_kvm!();
    let folder = TestDir::new();
    let mut demo = demo(&folder, &["--json", "--corrupt-page", "--memory-backing", "memfd"]);
    assert_eq!(demo.wait_failure(), 1);
    let report = json(&demo);
    assert_eq!((&report["verdict"], &report["pages_corrupt"]), (&"corrupt".into(), &1.into()));
    assert!(report["page_changed"].is_u64(), "{report}");
    let complaint = "godwit-guest: corrupt vcpu=";
    assert!(demo.text(Stream::Stderr).contains(complaint), "{}", demo.failure("hides it"));
    assert!(is_empty(&folder));
}

#[test]
fn a_demo_that_is_ended_in_the_middle_leaves_nothing_running() {
    require_kvm!();
    for signal in [Signal::TERM, Signal::KILL] {
        let folder = TestDir::new();
        // Slow enough never to be done.
        let mut demo = demo(&folder, &["--link", "1M,1ms"]);
        demo.wait_line(Stream::Stdout, "the switchover", |line| line.contains("switchover"));
        let children = children(demo.pid());
        assert_eq!(children.len(), 2, "{}", demo.failure("has other children"));
        demo.signal(signal);
        if signal == Signal::TERM {
            assert_eq!(demo.wait_failure(), 128 + 15);
            assert!(is_empty(&folder), "{}", demo.failure("left its folder"));
        }
        for pid in children {
            let is_gone = || !Path::new(&format!("/proc/{pid}")).exists();
            until("the end of its processes", || is_gone().then_some(()));
        }
    }
}
