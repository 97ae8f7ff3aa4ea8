//! Hosts without KVM or userfaultfd, or that keep them from us: the error says what to do.
//!
//! Each command runs in a mount namespace of its own, where the device is hidden, and without the
//! powers of root. Making one takes root: other users skip these tests, and are told so.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use godwit_tests::stage::{SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, TestDir, device, require_kvm};

use crate::GODWIT;

/// A user who has nothing: `nobody`.
const NOBODY: u32 = 65534;

/// Returns from the test, saying why, unless this user may hide devices.
macro_rules! require_namespaces {
    () => {
        if !may_hide_devices() {
            return device::say_skipped("hiding a device takes root and mount namespaces");
        }
    };
}

fn may_hide_devices() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--mount", "mount", "-t", "tmpfs", "none", "/dev"]);
    Process::start("unshare", command).wait().success()
}

/// `godwit` with these words, behind `script`, which ends with `exec "$@"`.
fn behind(name: &str, script: &str, words: &[&str]) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh", env!("CARGO_BIN_EXE_godwit")]).args(words);
    Process::start(name, command)
}

/// Hides `node` behind one that only somebody else may open, and gives up the powers of root.
fn forbidding(folder: &TestDir, node: &str) -> String {
    let closed = folder.path("closed");
    std::fs::write(&closed, b"").expect("writes");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o600)).expect("closes it");
    chown(&closed, Some(NOBODY), Some(NOBODY)).expect("gives it away");
    let closed = closed.display();
    format!(
        "mount --bind {closed} {node}; exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\""
    )
}

fn fails(mut command: Process, says: &[&str]) {
    command.wait_failure();
    let stderr = command.text(Stream::Stderr);
    for what in says {
        assert!(stderr.contains(what), "{}", command.failure(&format!("does not say {what:?}")));
    }
    assert_eq!(command.text(Stream::Stdout), "", "{}", command.failure("ran a guest"));
}

fn run_words(folder: &TestDir) -> [String; 3] {
    ["run".to_owned(), "--state-dir".to_owned(), folder.path("state").display().to_string()]
}

#[test]
fn a_host_without_kvm_is_told_so() {
    require_namespaces!();
    let folder = TestDir::new();
    let words = run_words(&folder);
    let script = "mount -t tmpfs none /dev; exec \"$@\"";
    fails(
        behind("run", script, &words.each_ref().map(String::as_str)),
        &["no /dev/kvm", "modprobe"],
    );
}

#[test]
fn a_user_who_may_not_use_kvm_is_told_so() {
    require_namespaces!();
    require_kvm!();
    let folder = TestDir::new();
    let words = run_words(&folder);
    let script = forbidding(&folder, "/dev/kvm");
    let says = ["no permission to open /dev/kvm", "setfacl"];
    fails(behind("run", &script, &words.each_ref().map(String::as_str)), &says);
}

/// The receiver says it, and so does the source, whose guest runs on.
#[test]
fn a_user_who_may_not_use_userfaultfd_is_told_so() {
    require_namespaces!();
    require_kvm!();
    if !Path::new("/dev/userfaultfd").exists() || may_all_use_userfaultfd() {
        return device::say_skipped("this host forbids userfaultfd to nobody");
    }
    let stage = Stage::new(GODWIT);
    let script = forbidding(stage.folder(), "/dev/userfaultfd");
    let state = stage.folder().path("state").display().to_string();
    let words = ["receive", "tcp:127.0.0.1:0", "--state-dir", &state];
    let mut receiver = behind("receive", &script, &words);
    let says = ["userfaultfd is forbidden", "setfacl", "vm.unprivileged_userfaultfd=1"];
    let line = receiver.wait_line(Stream::Stderr, "an address or an error", |_| true);
    let Some((_, address)) = line.split_once("listening at ") else {
        return fails(receiver, &says);
    };
    let source = stage.launch("source", &SMALL);
    let mut migrate = stage.migrate(&source, &address.trim().parse().expect("an address"));
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(says.iter().all(|what| stderr.contains(what)), "{}", migrate.failure("says not why"));
    receiver.wait_line(Stream::Stderr, says[0], |line| line.contains(says[0]));
    assert!(receiver.is_running());
    assert_eq!(source.verdict_from_now(1).corrupt, 0);
    let destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
}

fn may_all_use_userfaultfd() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    setting.is_ok_and(|setting| setting.trim() == "1")
}
