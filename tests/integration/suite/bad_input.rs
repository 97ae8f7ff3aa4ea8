//! What users and hosts get wrong: every time an error that says what and where, and no guest.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;

use godwit_tests::peer::PeerListener;
use godwit_tests::stage::{SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm};
use godwit_vmm::guest_image;
use godwit_vmm::memory::available_bytes;

use crate::GODWIT;
use crate::hostile::HTTP_ANSWER;

/// It fails by itself, ran no guest, and says all of this in few lines.
fn fails(mut command: Process, says: &[&str]) {
    command.wait_failure();
    let stderr = command.text(Stream::Stderr);
    for what in says {
        assert!(stderr.contains(what), "{}", command.failure(&format!("does not say {what:?}")));
    }
    assert!(stderr.lines().count() < 12, "{}", command.failure("is not to the point"));
    assert_eq!(command.text(Stream::Stdout), "", "{}", command.failure("ran a guest"));
}

/// A stage, and `godwit run` with a state directory of its own and these words.
fn run(stage: &Stage, words: &[&str]) -> Process {
    let state = stage.folder().path("state");
    let state = state.to_str().expect("a plain path");
    stage.command("run", &[&["run", "--state-dir", state], words].concat())
}

/// Writes a file and gives its path.
fn file(stage: &Stage, name: &str, bytes: &[u8]) -> String {
    let path = stage.folder().path(name);
    fs::write(&path, bytes).expect("writes");
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn words_that_make_no_sense_are_refused() {
    let stage = Stage::new(GODWIT);
    for (words, says) in [
        (&["run", "--memory", "1.5G"][..], "`1.5G` is not a size"),
        (&["run", "--memory", "99999999999T"], "beyond all memory"),
        (&["run", "--memory-backing", "paper"], "possible values: anon, memfd"),
        (&["run", "--cpus", "0"], "0 is not in 1"),
        (&["run", "--cpus", "many"], "invalid digit"),
        (&["run", "--id", "7"], "--id"),
        (&["run", "--override-grant"], "--id"),
        (&["run", "--initramfs", "/i"], "--kernel"),
        (&["receive"], "<ADDRESS>"),
        (&["receive", "localhost:7070"], "does not begin with `tcp:` or `unix:`"),
        (&["receive", "tcp:localhost"], "has no port"),
        (&["receive", "tcp::1:1"], "IPv6 address in brackets"),
        (&["receive", "tcp:localhost:70700"], "has no port between 0 and 65535"),
        (&["migrate", "tcp:localhost:7070"], "--api-socket"),
        (&["migrate", "--api-socket", "/a", "--mode", "magic", "unix:/b"], "possible values"),
        (&["status"], "--api-socket"),
        (&["teleport"], "unrecognized subcommand"),
    ] {
        fails(stage.command(&words.join(" "), words), &[says]);
    }
}

#[test]
fn what_is_not_a_kernel_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut damaged = guest_image::BARE[..4096].to_vec();
    let text = file(&stage, "text", b"This is a text, and not a kernel at all.\n");
    let empty = file(&stage, "empty", b"");
    let cut = file(&stage, "cut", &damaged);
    // The program header table is said to be far away.
    damaged[0x20..0x28].copy_from_slice(&(1u64 << 63).to_le_bytes());
    let far = file(&stage, "far", &damaged);
    let folder = stage.folder().path("");
    let folder = folder.to_str().expect("a plain path");
    for (kernel, says) in [
        ("/no/such/kernel", "No such file"),
        (&text, "is not a kernel"),
        (&empty, "it is empty"),
        (&cut, "cannot load the kernel"),
        (&far, "cannot load the kernel"),
        (folder, "it is not a file"),
        (env!("CARGO_BIN_EXE_godwit"), "not one with fixed addresses"),
    ] {
        fails(run(&stage, &["--kernel", kernel]), &[says, kernel]);
    }
    let left: Vec<_> = fs::read_dir(stage.folder().path("state")).expect("a folder").collect();
    assert!(left.is_empty(), "a guest that never ran left a record: {left:?}");
}

#[test]
fn a_kernel_in_a_file_runs_and_its_companions_are_checked() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let kernel = file(&stage, "kernel", guest_image::BARE);
    let cmdline = "workload=touch exit=3";
    let mut guest = run(&stage, &["--kernel", &kernel, "--memory", "64M", "--cmdline", cmdline]);
    assert_eq!(guest.wait_failure(), 3, "{}", guest.failure("ended otherwise"));
    let kernel = ["--kernel", &kernel, "--memory", "32M"];
    let missing = [&kernel[..], &["--initramfs", "/no/such/initramfs"]].concat();
    fails(run(&stage, &missing), &["/no/such/initramfs", "No such file"]);
    let large = file(&stage, "large", &vec![7; 40 << 20]);
    let large = [&kernel[..], &["--initramfs", &large]].concat();
    fails(run(&stage, &large), &["41943040", "32 MiB"]);
    let long = "x".repeat(70_000);
    let long = [&kernel[..], &["--cmdline", &long]].concat();
    fails(run(&stage, &long), &["command line", "70000"]);
}

#[test]
fn a_machine_that_cannot_be_had_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    fails(run(&stage, &["--memory", "0"]), &["guest memory of 0 bytes"]);
    fails(run(&stage, &["--memory", "64000001"]), &["64000001", "multiple of 4 KiB"]);
    fails(run(&stage, &["--memory", "512T"]), &["is not possible", "to"]);
    fails(run(&stage, &["--cpus", "255"]), &["255 vCPUs", "choose 1 to"]);
    let large: u64 = 250 << 30;
    if available_bytes().is_some_and(|available| available < large) {
        for backing in ["anon", "memfd"] {
            let words = ["--memory", "250G", "--memory-backing", backing];
            fails(run(&stage, &words), &["256000 MiB does not fit", "available"]);
        }
    }
}

#[test]
fn a_control_socket_that_cannot_be_had_is_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let first = stage.launch("first", &SMALL);
    let taken = first.client().path().to_str().expect("a plain path").to_owned();
    fails(run(&stage, &["--api-socket", &taken]), &[&taken, "another process listens"]);
    let receive = ["receive", "tcp:127.0.0.1:0", "--api-socket", &taken];
    fails(stage.command("receive", &receive), &[&taken, "another process listens"]);
    first.status();

    let plain = file(&stage, "plain", b"mine");
    fails(run(&stage, &["--api-socket", &plain]), &[&plain, "is not a socket"]);
    assert_eq!(fs::read(&plain).expect("it is still there"), b"mine");
    let nowhere = "/no/such/folder/api";
    fails(run(&stage, &["--api-socket", nowhere]), &[nowhere, "No such file"]);
    let long = format!("/tmp/{}", "x".repeat(120));
    fails(run(&stage, &["--api-socket", &long]), &["125 bytes", "at most 107"]);
}

#[test]
fn a_state_directory_that_cannot_be_had_is_refused() {
    let stage = Stage::new(GODWIT);
    let plain = file(&stage, "plain", b"mine");
    for words in [&["run"][..], &["receive", "tcp:127.0.0.1:0"]] {
        let words = [words, &["--state-dir", &plain]].concat();
        fails(stage.command(&words.join(" "), &words), &[&plain, "--state-dir"]);
    }
}

#[test]
fn an_address_that_cannot_be_had_is_refused() {
    let stage = Stage::new(GODWIT);
    let state = stage.folder().path("state");
    let state = state.to_str().expect("a plain path");
    let receive =
        |address: &str| stage.command("receive", &["receive", address, "--state-dir", state]);
    for taken in [PeerListener::tcp(), PeerListener::unix(&stage.folder().path("taken"))] {
        let address = taken.address().to_string();
        fails(receive(&address), &[&address, "in use"]);
    }
    // An address of a network that is kept for examples.
    fails(receive("tcp:192.0.2.1:7070"), &["tcp:192.0.2.1:7070", "assign"]);
    fails(receive("unix:/no/such/folder/socket"), &["unix:/no/such/folder/socket", "No such file"]);
    let plain = file(&stage, "plain", b"mine");
    fails(receive(&format!("unix:{plain}")), &[&plain, "in use"]);
    assert_eq!(fs::read(&plain).expect("it is still there"), b"mine");
}

const COMMANDS: [&[&str]; 5] =
    [&["status"], &["pause"], &["resume"], &["shutdown"], &["migrate", "tcp:127.0.0.1:9"]];

#[test]
fn a_control_socket_that_is_not_there_is_named() {
    let stage = Stage::new(GODWIT);
    let dead = stage.folder().path("dead");
    drop(UnixListener::bind(&dead).expect("binds"));
    let dead = dead.to_str().expect("a plain path");
    let plain = file(&stage, "plain", b"mine");
    for words in COMMANDS {
        let command =
            |socket: &str| stage.command(words[0], &[words, &["--api-socket", socket]].concat());
        fails(command("/no/such/socket"), &["no control socket /no/such/socket", "--api-socket"]);
        fails(command(dead), &["nobody listens", dead]);
        fails(command(&plain), &[&plain]);
    }
}

/// A control socket behind which is something else.
#[test]
fn a_control_socket_that_is_not_ours_is_named() {
    let stage = Stage::new(GODWIT);
    let path = stage.folder().path("socket");
    let listener = PeerListener::unix(&path);
    let socket = path.to_str().expect("a plain path");
    let answers: [&[u8]; 3] = [b"", b"\x00\xff\x00\xff garbage\r\n\r\n", HTTP_ANSWER];
    for answer in answers {
        for words in COMMANDS {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut peer = listener.accept();
                    peer.send(answer).expect("takes it");
                });
                let words = [words, &["--api-socket", socket]].concat();
                fails(stage.command(words[0], &words), &[socket]);
            });
        }
    }
}

/// Commands that do not fit what the process is doing.
#[test]
fn a_command_without_a_guest_is_refused() {
    let stage = Stage::new(GODWIT);
    let mut receiver = stage.receive("receiver", Transport::Tcp);
    for verb in ["pause", "resume"] {
        fails(stage.control(verb, &receiver, &[]), &["there is no guest"]);
    }
    fails(stage.migrate(&receiver, receiver.address()), &["no guest to move"]);
    stage.control("shutdown", &receiver, &[]).wait_success();
    receiver.process.wait_success();
    let Err(error) = fs::metadata(receiver.client().path()) else { panic!("its socket is left") };
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
