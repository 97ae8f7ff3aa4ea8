//! The control API of a process, seen from another one.

use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use godwit_tests::resources::Resources;
use godwit_tests::{Process, Stream, TestDir, until};
use godwit_vmm::api::types::{
    GuestState, MigrateRequest, Ownership, RecoverRequest, Role, SnapshotRequest, Status,
};
use godwit_vmm::api::{ClientError, Control, ControlError, Server};

/// Tells this test that it is the process to look at, and where to serve.
const SERVE: &str = "GODWIT_TEST_SERVE";

/// A process that waits for a guest.
struct Empty;

impl Control for Empty {
    fn status(&self) -> Status {
        Status {
            id: Default::default(),
            role: Role::Receive,
            guest: GuestState::None,
            owner: Ownership { owns: false, grant: 0, record: None },
            vm: None,
            memory: None,
            migration: None,
            snapshot: None,
            restore: None,
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("pause", "there is no guest", None))
    }

    fn resume(&self) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("resume", "there is no guest", None))
    }

    fn shutdown(&self, _force: bool) -> Result<(), ControlError> {
        Ok(())
    }

    fn migrate(&self, _request: MigrateRequest) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("migrate", "there is no guest", None))
    }

    fn cancel(&self) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("cancel", "there is no guest", None))
    }

    fn switch_over(&self) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("switch over", "there is no guest", None))
    }

    fn recover(&self, _request: RecoverRequest) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("recover", "there is no guest", None))
    }

    fn snapshot(&self, _request: SnapshotRequest) -> Result<(), ControlError> {
        Err(ControlError::wrong_state("snapshot", "there is no guest", None))
    }
}

/// Starts and stops many servers, then serves until it is killed.
fn serve(path: &Path) -> ! {
    for _ in 0..20 {
        drop(Server::start(path, Arc::new(Empty)).expect("starts"));
    }
    let _server = Server::start(path, Arc::new(Empty)).expect("starts");
    println!("serving");
    // The test kills this process.
    loop {
        std::thread::park();
    }
}

/// Servers that came and went, hundreds of requests and broken connections leave a process with
/// the descriptors and threads that it had.
#[test]
fn commands_and_broken_connections_leave_nothing_behind() {
    if let Some(path) = env::var_os(SERVE) {
        serve(Path::new(&path));
    }
    let folder = TestDir::new();
    let path = folder.path("api");
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(["--exact", "--nocapture"]);
    command.arg("api::commands_and_broken_connections_leave_nothing_behind");
    command.env(SERVE, &path);
    let process = Process::start("server", command);
    process.wait_line(Stream::Stdout, "a server", |line| line.ends_with("serving"));

    let client = folder.client("api");
    client.status().expect("a status");
    let before = until("blocking threads to end", || {
        let now = Resources::of(process.pid());
        (now.threads <= 3).then_some(now)
    });
    for _ in 0..100 {
        client.status().expect("a status");
        match client.pause() {
            Err(ClientError::Refusal { status: 409, .. }) => {}
            other => panic!("{}", process.failure(&format!("answered {other:?}"))),
        }
        drop(std::os::unix::net::UnixStream::connect(&path).expect("connects"));
    }
    until("descriptors and threads to be as before", || {
        let now = Resources::of(process.pid());
        let same = (now.descriptors, now.threads) == (before.descriptors, before.threads);
        same.then_some(())
    });
}
