//! The program `godwit`, started and asked as a user would.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Error;
use crate::godwit::MoveArgs;
use crate::guest::Transcript;
use crate::process::Process;
use crate::workload::GuestArgs;

/// How `godwit` is called.
pub struct Godwit<'a> {
    /// The program.
    pub program: PathBuf,
    /// Where sockets and records are made.
    pub folder: &'a Path,
}

impl Godwit<'_> {
    /// Starts a destination that listens at `address`.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it does not come up.
    pub fn receive(&self, address: &str, transcript: &Transcript) -> Result<Process, Error> {
        let mut command = self.command("receive");
        command.arg(address);
        self.start_host(command, "destination", transcript)
    }

    /// Starts a source with a guest.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it does not come up.
    pub fn run(&self, guest: &GuestArgs, transcript: &Transcript) -> Result<Process, Error> {
        let mut command = self.command("run");
        command
            .arg("--kernel")
            .arg(guest.image_in(self.folder)?)
            .arg("--cmdline")
            .arg(guest.command_line())
            .arg("--cpus")
            .arg(guest.cpus.to_string())
            .arg("--memory")
            .arg(guest.memory.to_string());
        self.start_host(command, "source", transcript)
    }

    /// Starts a process that holds a guest, and waits until it can be asked.
    fn start_host(
        &self,
        mut command: Command,
        name: &str,
        transcript: &Transcript,
    ) -> Result<Process, Error> {
        command.arg("--api-socket").arg(self.folder.join(name));
        command.arg("--state-dir").arg(self.folder.join(format!("{name}.state")));
        let mut process = Process::start(command, self.folder, name)?;
        process.collect(transcript);
        let deadline = Instant::now() + START_PATIENCE;
        while let Err(error) = self.status(name) {
            if Instant::now() > deadline {
                return Err(process.failure(format!("it does not answer: {error}")));
            }
            thread::sleep(START_PAUSE);
        }
        Ok(process)
    }

    /// Moves the guest to `address`, or tries to, and returns what the source says of it.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it is refused or never ends.
    pub fn migrate(&self, address: &str, how: &MoveArgs) -> Result<Value, Error> {
        let mut command = self.command("migrate");
        command.arg(address).args(how.words());
        command.arg("--json").arg("--api-socket").arg(self.folder.join("source"));
        let ended = Process::start(command, self.folder, "migrate")?.end(MOVE_PATIENCE)?;
        // What ended otherwise than wanted has a status all the same.
        match ended.text.is_empty() {
            true => Err(ended.failure()),
            false => parse(ended.text),
        }
    }

    /// What the process says of itself that was started under this name.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it does not answer.
    pub fn status(&self, name: &str) -> Result<Value, Error> {
        let mut command = self.command("status");
        command.arg("--json").arg("--api-socket").arg(self.folder.join(name));
        parse(Process::start(command, self.folder, "status")?.finish(START_PATIENCE)?)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name);
        command
    }
}

fn parse(text: String) -> Result<Value, Error> {
    serde_json::from_str(&text).map_err(|_| Error::NotUnderstood { what: "godwit", text })
}

/// A loopback address that nobody listens at.
///
/// # Errors
///
/// [`Error::System`] if there is none.
pub fn free_address() -> Result<String, Error> {
    let address = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    address.map(|address| format!("tcp:{address}")).map_err(Error::system("finding a free port"))
}

const START_PATIENCE: Duration = Duration::from_secs(20);
const START_PAUSE: Duration = Duration::from_millis(20);
const MOVE_PATIENCE: Duration = Duration::from_secs(300);
