//! `peer qemu`: QEMU moving the bare guest by post-copy, between two processes over loopback TCP.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::Error;
use crate::floor::tsc;
use crate::guest::{GuestFigures, Moments, Transcript};
use crate::peer::qmp::{Event, Qmp, QmpListener};
use crate::process::Process;
use crate::workload::GuestArgs;

/// Moves the bare guest by post-copy with QEMU.
#[derive(Args, Clone)]
pub struct QemuArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program.
    #[arg(long, default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Use `postcopy-preempt`: missing pages have a channel of their own.
    #[arg(long)]
    pub preempt: bool,
}

/// What a move by QEMU was like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QemuFigures {
    /// The version as the program names it.
    pub version: String,
    /// What the guest saw.
    #[serde(flatten)]
    pub guest: GuestFigures,
    /// From the command to the last page.
    pub total_us: f64,
    /// Bytes that QEMU counts as sent, by the time from the command to the last page.
    pub bytes_per_s: f64,
    /// What QEMU itself calls the downtime.
    pub downtime_claimed_us: f64,
}

/// Moves the guest once.
///
/// # Errors
///
/// [`Error::Absent`] if there is no QEMU, [`Error::Qemu`] if it refuses something,
/// [`Error::GuestCorrupt`] if the guest has lost a byte.
pub fn measure(args: &QemuArgs) -> Result<QemuFigures, Error> {
    let version = version(&args.qemu)?;
    let tsc_khz = tsc::khz()?;
    let folder = TempDir::new().map_err(Error::system("making a temporary folder"))?;
    let transcript = Transcript::default();
    let mut destination = Machine::start(args, folder.path(), "destination", &transcript)?;
    let port = destination.prepare_to_receive(args.preempt)?;
    let mut source = Machine::start(args, folder.path(), "source", &transcript)?;
    args.guest.wait_until_ready(&transcript)?;
    let moved = source.migrate_to(&mut destination, &port, args.preempt)?;
    let moments = Moments {
        stopped: moved.stopped,
        resumed: moved.resumed,
        complete: moved.complete,
        tsc_khz,
    };
    let guest = args.guest.figures(&transcript, &moments)?;
    let answer = source.qmp.execute("query-migrate", &json!({}))?;
    let seconds = (moved.complete - moved.begun) as f64 / (tsc_khz as f64 * 1000.0);
    Ok(QemuFigures {
        version,
        guest,
        total_us: seconds * 1e6,
        bytes_per_s: number(&answer, "/ram/transferred") / seconds,
        downtime_claimed_us: number(&answer, "/downtime") * 1000.0,
    })
}

/// The first line that `program --version` prints.
///
/// # Errors
///
/// [`Error::Absent`] if there is no such program.
pub fn version(program: &Path) -> Result<String, Error> {
    match Command::new(program).arg("--version").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().next().unwrap_or_default().to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::Absent { program: program.display().to_string() })
        }
        Err(source) => Err(Error::System { what: "starting QEMU", source }),
    }
}

/// When a move reached its steps, in TSC cycles.
struct Moved {
    begun: u64,
    stopped: u64,
    resumed: u64,
    complete: u64,
}

/// One QEMU process; ended when dropped.
struct Machine {
    _process: Process,
    qmp: Qmp,
}

impl Machine {
    fn start(
        args: &QemuArgs,
        folder: &Path,
        name: &str,
        transcript: &Transcript,
    ) -> Result<Machine, Error> {
        let socket = folder.join(name);
        let listener = QmpListener::bind(&socket)?;
        let mut command = Command::new(&args.qemu);
        command
            .args(["-M", "microvm,accel=kvm,pit=on,pic=on,rtc=off,isa-serial=on"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
            .arg("-smp")
            .arg(args.guest.cpus.to_string())
            .arg("-m")
            .arg(format!("{}M", args.guest.memory >> 20))
            .arg("-qmp")
            .arg(format!("unix:{}", socket.display()))
            .arg("-kernel")
            .arg(args.guest.image_in(folder)?)
            .arg("-append")
            .arg(args.guest.command_line());
        if name == "destination" {
            command.args(["-incoming", "defer"]);
        }
        let mut process = Process::start(command, folder, name)?;
        process.collect(transcript);
        match listener.accept() {
            Ok(qmp) => Ok(Machine { _process: process, qmp }),
            Err(error) => Err(process.failure(error.to_string())),
        }
    }

    /// Listens for a guest and returns the port.
    fn prepare_to_receive(&mut self, preempt: bool) -> Result<String, Error> {
        self.set_capabilities(preempt)?;
        self.qmp.execute("migrate-incoming", &json!({ "uri": "tcp:127.0.0.1:0" }))?;
        let answer = self.qmp.execute("query-migrate", &json!({}))?;
        let port = answer.pointer("/socket-address/0/port").and_then(Value::as_str);
        port.map(str::to_owned).ok_or_else(|| Error::Qemu {
            asked: "query-migrate".to_owned(),
            answer: answer.to_string(),
        })
    }

    /// Post-copy begins as soon as QEMU lets it.
    fn migrate_to(
        &mut self,
        destination: &mut Machine,
        port: &str,
        preempt: bool,
    ) -> Result<Moved, Error> {
        self.set_capabilities(preempt)?;
        let unlimited = json!({ "max-bandwidth": 1_u64 << 40 });
        self.qmp.execute("migrate-set-parameters", &unlimited)?;
        let begun = tsc::now();
        self.qmp.execute("migrate", &json!({ "uri": format!("tcp:127.0.0.1:{port}") }))?;
        self.qmp.wait_for("migrate", |event| has_status(event, "active"))?;
        self.qmp.execute("migrate-start-postcopy", &json!({}))?;
        let stopped = self.qmp.wait_for("stop", |event| event.name == "STOP")?.tsc;
        let resumed = destination.qmp.wait_for("resume", |event| event.name == "RESUME")?.tsc;
        let done = |event: &Event| has_status(event, "completed");
        let complete = destination.qmp.wait_for("complete", done)?.tsc;
        self.qmp.wait_for("complete", done)?;
        Ok(Moved { begun, stopped, resumed, complete })
    }

    fn set_capabilities(&mut self, preempt: bool) -> Result<(), Error> {
        let capabilities = json!([
            { "capability": "events", "state": true },
            { "capability": "postcopy-ram", "state": true },
            { "capability": "postcopy-preempt", "state": preempt },
        ]);
        let arguments = json!({ "capabilities": capabilities });
        self.qmp.execute("migrate-set-capabilities", &arguments).map(drop)
    }
}

fn has_status(event: &Event, status: &str) -> bool {
    event.name == "MIGRATION" && event.data["status"] == status
}

fn number(answer: &Value, pointer: &str) -> f64 {
    answer.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}
