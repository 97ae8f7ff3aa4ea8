//! `godwit`: Godwit moving the bare guest, started and asked as a user would.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::error::Error;
use crate::floor::tsc::Timebase;
use crate::guest::{GuestFigures, Moments, Transcript};
use crate::process::Process;
use crate::workload::GuestArgs;

/// Moves the bare guest with Godwit.
#[derive(Args, Clone)]
pub struct GodwitArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program [default: `godwit` beside this program]
    #[arg(long)]
    pub godwit: Option<PathBuf>,
}

/// What a move by Godwit was like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GodwitFigures {
    /// What the guest saw.
    #[serde(flatten)]
    pub guest: GuestFigures,
    /// From the beginning at the source to the last page.
    pub total_us: f64,
    /// Bytes of pages moved, by the time from the switchover to the last page.
    pub bytes_per_s: f64,
    /// How long no vCPU ran, as the source measured it.
    pub blackout_us: f64,
    /// Faults that the destination served, and the median time from reading one to waking its
    /// vCPU.
    pub served: u64,
    /// The median of the time from reading a fault to waking its vCPU, as Godwit measured it.
    pub served_p50_us: f64,
}

/// Moves the guest once.
///
/// # Errors
///
/// [`Error::Absent`] if there is no `godwit`, [`Error::Program`] if it fails,
/// [`Error::GuestCorrupt`] if the guest has lost a byte.
pub fn measure(args: &GodwitArgs) -> Result<GodwitFigures, Error> {
    let folder = TempDir::new().map_err(Error::system("making a temporary folder"))?;
    let godwit = Godwit { program: args.program()?, folder: folder.path() };
    let timebase = Timebase::now()?;
    let transcript = Transcript::default();
    let address = free_address()?;
    let _destination = godwit.receive(&address, &transcript)?;
    let _source = godwit.run(&args.guest, &transcript)?;
    args.guest.wait_until_ready(&transcript)?;
    let sent = godwit.migrate(&address)?;
    let received = godwit.status("destination")?;
    let mark = |status: &Value, name: &str| -> Result<u64, Error> {
        let began = number(status, "began_monotonic_us")?;
        Ok(timebase.tsc_at(began + number(status, name)?))
    };
    let moments = Moments {
        stopped: mark(&sent, "paused_us")?,
        resumed: mark(&received, "first_instruction_us")?,
        complete: mark(&received, "last_page_us")?,
        tsc_khz: timebase.khz(),
    };
    let begun = timebase.tsc_at(number(&sent, "began_monotonic_us")?);
    let guest = args.guest.figures(&transcript, &moments)?;
    Ok(GodwitFigures {
        guest,
        total_us: moments.complete.saturating_sub(begun) as f64 * 1000.0 / timebase.khz() as f64,
        bytes_per_s: figure(&received, "/migration/drain_bytes_per_s"),
        blackout_us: figure(&sent, "/migration/blackout_us"),
        served: number(&received, "/migration/faults/count")?,
        served_p50_us: figure(&received, "/migration/faults/p50_us"),
    })
}

impl GodwitArgs {
    /// The program as a path.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if this program does not know where it is.
    pub fn program(&self) -> Result<PathBuf, Error> {
        match &self.godwit {
            Some(program) => Ok(program.clone()),
            None => {
                let here = std::env::current_exe();
                Ok(here.map_err(Error::system("finding this program"))?.with_file_name("godwit"))
            }
        }
    }
}

/// How `godwit` is called.
struct Godwit<'a> {
    program: PathBuf,
    folder: &'a Path,
}

impl Godwit<'_> {
    fn receive(&self, address: &str, transcript: &Transcript) -> Result<Process, Error> {
        let mut command = self.command("receive");
        command.arg(address);
        self.start_host(command, "destination", transcript)
    }

    fn run(&self, guest: &GuestArgs, transcript: &Transcript) -> Result<Process, Error> {
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

    /// Moves the guest and returns what the source says of it.
    fn migrate(&self, address: &str) -> Result<Value, Error> {
        let mut command = self.command("migrate");
        command.arg(address).arg("--json").arg("--api-socket").arg(self.folder.join("source"));
        self.ask(command, MOVE_PATIENCE)
    }

    fn status(&self, name: &str) -> Result<Value, Error> {
        let mut command = self.command("status");
        command.arg("--json").arg("--api-socket").arg(self.folder.join(name));
        self.ask(command, START_PATIENCE)
    }

    fn ask(&self, command: Command, patience: Duration) -> Result<Value, Error> {
        let text = Process::start(command, self.folder, "asked")?.finish(patience)?;
        serde_json::from_str(&text).map_err(|_| Error::NotUnderstood { what: "godwit", text })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name);
        command
    }
}

/// A loopback address that nobody listens at.
fn free_address() -> Result<String, Error> {
    let address = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    address.map(|address| format!("tcp:{address}")).map_err(Error::system("finding a free port"))
}

/// A figure that must be there: a pointer into the status, or the name of a mark of the timeline.
fn number(status: &Value, at: &str) -> Result<u64, Error> {
    let found = match at.starts_with('/') {
        true => status.pointer(at),
        false => status.pointer(&format!("/migration/timeline/{at}")),
    };
    found.and_then(Value::as_u64).ok_or_else(|| Error::NotUnderstood {
        what: "godwit status",
        text: format!("{status} (without {at})"),
    })
}

fn figure(status: &Value, pointer: &str) -> f64 {
    status.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}

const START_PATIENCE: Duration = Duration::from_secs(20);
const START_PAUSE: Duration = Duration::from_millis(20);
const MOVE_PATIENCE: Duration = Duration::from_secs(300);
