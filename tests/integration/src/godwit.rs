//! The real binary, and a place for what it leaves behind.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_vmm::api::Client;
use tempfile::TempDir;

use crate::{DEADLINE, Process};

/// The `godwit` binary under test.
#[derive(Clone, Copy, Debug)]
pub struct Godwit {
    binary: &'static str,
}

impl Godwit {
    /// The binary at this path: `env!("CARGO_BIN_EXE_godwit")`, which only the suite has.
    pub const fn new(binary: &'static str) -> Godwit {
        Godwit { binary }
    }

    /// Starts it with these arguments. `name` is what failures call it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(&self, name: &str, arguments: &[S]) -> Process {
        let mut command = Command::new(self.binary);
        command.args(arguments);
        // A panic is a failure; where it came from is part of the message.
        command.env("RUST_BACKTRACE", "1");
        Process::start(name, command)
    }
}

/// A folder that ends with the test. Its path is short enough for sockets.
#[derive(Debug)]
pub struct TestDir {
    folder: TempDir,
}

impl TestDir {
    /// An empty folder.
    ///
    /// # Panics
    /// If there is no room for it.
    #[track_caller]
    pub fn new() -> TestDir {
        let folder = tempfile::Builder::new().prefix("godwit-").tempdir();
        TestDir { folder: folder.expect("a folder for temporary files") }
    }

    /// A path in it. Nothing is made.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client of the control socket at that path in it.
    pub fn client(&self, name: &str) -> Client {
        Client::new(self.path(name)).with_timeout(DEADLINE)
    }
}

impl Default for TestDir {
    fn default() -> TestDir {
        TestDir::new()
    }
}

impl AsRef<Path> for TestDir {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}
