//! `godwit`: Godwit moving the bare guest, started and asked as a user would.

mod program;

use std::path::PathBuf;

use clap::Args;
use godwit_vmm::demo::Link;
use godwit_vmm::demo::link::{Options, Proxy};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::error::Error;
use crate::floor::tsc::Timebase;
use crate::godwit::program::{Godwit, free_address};
use crate::guest::{GuestFigures, Moments, Transcript};
use crate::workload::GuestArgs;

/// Moves the bare guest with Godwit.
#[derive(Args, Clone)]
pub struct GodwitArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
    #[command(flatten)]
    pub moving: MoveArgs,
    /// The program [default: `godwit` beside this program]
    #[arg(long)]
    pub godwit: Option<PathBuf>,
}

/// How the guest is moved; all but the link are words of `godwit migrate`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct MoveArgs {
    /// Which part of memory goes before the guest, and which after it.
    #[arg(long, default_value = "postcopy", value_parser = ["postcopy", "precopy", "hybrid"])]
    pub mode: String,
    /// The number of bulk channels.
    #[arg(long, default_value_t = 1)]
    pub connections: u8,
    /// Whether pages are packed.
    #[arg(long, default_value = "auto", value_parser = ["auto", "lz4", "none"])]
    pub compression: String,
    /// The most bytes a second of pages that no fault asks for, with K, M or G.
    #[arg(long)]
    pub bandwidth: Option<String>,
    /// How long rounds may take, in seconds.
    #[arg(long, default_value_t = 3600)]
    pub timeout_s: u32,
    /// What happens to a pre-copy that takes longer.
    #[arg(long, default_value = "cancel", value_parser = ["cancel", "ignore", "switch"])]
    pub timeout_strategy: String,
    /// How writes of the guest are noted during rounds.
    #[arg(
        long,
        default_value = "kvm-log",
        value_parser = ["kvm-log", "write-protect", "write-faults"]
    )]
    pub dirty_tracking: String,
    /// A link of this rate in bits per second and round-trip time between the two, as in `1G,2ms`.
    #[arg(long)]
    pub link: Option<Link>,
}

/// What a move by Godwit was like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GodwitFigures {
    /// How it ended: `completed`, or what else the source calls it.
    pub outcome: String,
    /// From the beginning at the source to the last page, or to the end of an attempt.
    pub total_us: f64,
    /// Pages and their headers that crossed the link, in bytes.
    pub link_bytes: f64,
    /// What a guest that has moved tells of it.
    #[serde(flatten)]
    pub moved: Option<MovedFigures>,
}

/// What the move of a guest that changed hands was like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MovedFigures {
    /// What the guest saw.
    #[serde(flatten)]
    pub guest: GuestFigures,
    /// Bytes of pages moved with their contents, by the time from the switchover to the last page.
    pub bytes_per_s: f64,
    /// All of the guest's memory by that time, whatever travelled of it.
    pub drained_bytes_per_s: f64,
    /// How long no vCPU ran, as the source measured it.
    pub blackout_us: f64,
    /// Faults that the destination served, and the median time from reading one to waking its
    /// vCPU.
    pub served: u64,
    /// The median of the time from reading a fault to waking its vCPU, as Godwit measured it.
    pub served_p50_us: f64,
    /// 99 % took at most this long.
    pub served_p99_us: f64,
    /// How long a vCPU waited for pages, on average over the vCPUs. What the kernel's threads
    /// waited in the place of vCPUs counts.
    pub blocktime_us: f64,
    /// Where the time of faults went, as Godwit gives it.
    pub stages: Value,
    /// How pages travelled, as Godwit gives it.
    pub classes: Value,
}

/// Moves the guest once, or tries to.
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
    let mut address = free_address()?;
    let _destination = godwit.receive(&address, &transcript)?;
    let proxy = args.moving.link.map(|link| proxy(link, &address)).transpose()?;
    if let Some(proxy) = &proxy {
        address = proxy.address().to_string();
    }
    let _source = godwit.run(&args.guest, &transcript)?;
    args.guest.wait_until_ready(&transcript)?;
    let sent = godwit.migrate(&address, &args.moving)?;
    let outcome = text(&sent, "/migration/state")?;
    let link_bytes = figure(&sent, "/migration/bytes");
    if outcome != "completed" {
        GuestFigures::check(&transcript.lines())?;
        let total_us = number(&sent, "ended_us")? as f64;
        return Ok(GodwitFigures { outcome, total_us, link_bytes, moved: None });
    }
    let received = godwit.status("destination")?;
    let moments = moments(&sent, &received, &timebase)?;
    let begun = timebase.tsc_at(number(&sent, "began_monotonic_us")?);
    let guest = args.guest.figures(&transcript, &moments)?;
    let total_us = moments.complete.saturating_sub(begun) as f64 * 1000.0 / timebase.khz() as f64;
    let moved = Some(MovedFigures::of(guest, args.guest.memory, &sent, &received)?);
    Ok(GodwitFigures { outcome, total_us, link_bytes, moved })
}

/// When the guest stopped and went on, by the marks of both sides.
fn moments(sent: &Value, received: &Value, timebase: &Timebase) -> Result<Moments, Error> {
    let mark = |status: &Value, name: &str| -> Result<u64, Error> {
        let began = number(status, "began_monotonic_us")?;
        Ok(timebase.tsc_at(began + number(status, name)?))
    };
    let resumed = mark(received, "first_instruction_us")?;
    Ok(Moments {
        stopped: mark(sent, "paused_us")?,
        resumed,
        // After pre-copy the last page is there before the guest is.
        complete: mark(received, "last_page_us")?.max(resumed),
        tsc_khz: timebase.khz(),
    })
}

impl MovedFigures {
    fn of(
        guest: GuestFigures,
        memory: u64,
        sent: &Value,
        received: &Value,
    ) -> Result<MovedFigures, Error> {
        let first = number(received, "first_instruction_us")?;
        let drain_us = number(received, "last_page_us")?.saturating_sub(first).max(1);
        let part = |status: &Value, pointer| status.pointer(pointer).cloned().unwrap_or_default();
        let others = figure(received, "/migration/blocktime_others_us");
        let waited = part(received, "/migration/blocktime_us");
        let waited: Vec<f64> =
            waited.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        Ok(MovedFigures {
            guest,
            bytes_per_s: figure(received, "/migration/drain_bytes_per_s"),
            drained_bytes_per_s: memory as f64 * 1e6 / drain_us as f64,
            blackout_us: figure(sent, "/migration/blackout_us"),
            served: number(received, "/migration/faults/count")?,
            served_p50_us: figure(received, "/migration/faults/p50_us"),
            served_p99_us: figure(received, "/migration/faults/p99_us"),
            blocktime_us: (waited.iter().sum::<f64>() + others) / waited.len().max(1) as f64,
            stages: part(received, "/migration/faults/stages"),
            classes: part(sent, "/migration/classes"),
        })
    }
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

impl MoveArgs {
    /// The words behind `godwit migrate`.
    fn words(&self) -> Vec<String> {
        let pairs = [
            ("--mode", Some(self.mode.clone())),
            ("--connections", Some(self.connections.to_string())),
            ("--compression", Some(self.compression.clone())),
            ("--bandwidth", self.bandwidth.clone()),
            ("--timeout-s", Some(self.timeout_s.to_string())),
            ("--timeout-strategy", Some(self.timeout_strategy.clone())),
            ("--dirty-tracking", Some(self.dirty_tracking.clone())),
        ];
        let given = pairs.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }
}

impl Default for MoveArgs {
    /// What `godwit migrate` does when it is not told how.
    fn default() -> MoveArgs {
        MoveArgs {
            mode: "postcopy".to_owned(),
            connections: 1,
            compression: "auto".to_owned(),
            bandwidth: None,
            timeout_s: 3600,
            timeout_strategy: "cancel".to_owned(),
            dirty_tracking: "kvm-log".to_owned(),
            link: None,
        }
    }
}

/// A link in front of the destination at `address`.
fn proxy(link: Link, address: &str) -> Result<Proxy, Error> {
    let [listen, address] = ["tcp:127.0.0.1:0", address]
        .map(|address| address.parse().expect("an address that this program has made"));
    let proxy = Proxy::start(&listen, address, Options { link: Some(link), taps: None });
    proxy.map_err(Error::system("starting the link"))
}

/// A figure that must be there: a pointer into the status, or the name of a mark of the timeline.
fn number(status: &Value, at: &str) -> Result<u64, Error> {
    let found = match at.starts_with('/') {
        true => status.pointer(at),
        false => status.pointer(&format!("/migration/timeline/{at}")),
    };
    found.and_then(Value::as_u64).ok_or_else(|| missing(status, at))
}

fn text(status: &Value, pointer: &str) -> Result<String, Error> {
    let found = status.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| missing(status, pointer))
}

fn missing(status: &Value, at: &str) -> Error {
    Error::NotUnderstood { what: "godwit status", text: format!("{status} (without {at})") }
}

fn figure(status: &Value, pointer: &str) -> f64 {
    status.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        moving: MoveArgs,
    }

    #[test]
    fn what_is_not_said_is_as_godwit_has_it() {
        let moving = Cli::parse_from(["bench"]).moving;
        assert_eq!(moving, MoveArgs::default());
        let words = moving.words().join(" ");
        assert!(words.starts_with("--mode postcopy --connections 1 --compression auto"), "{words}");
        assert!(!words.contains("bandwidth"), "{words}");
    }

    #[test]
    fn the_link_is_not_a_word_of_godwit() {
        let line = ["bench", "--link", "1G,200us", "--bandwidth", "1M", "--mode", "hybrid"];
        let moving = Cli::parse_from(line).moving;
        let words = moving.words().join(" ");
        assert!(words.contains("--mode hybrid") && words.contains("--bandwidth 1M"), "{words}");
        assert!(!words.contains("link"), "{words}");
    }

    #[test]
    fn vcpus_wait_on_average() {
        let faults = json!({ "count": 3, "p50_us": 1, "p99_us": 2, "stages": { "wire": 5 } });
        let migration =
            json!({ "faults": faults, "blocktime_us": [1000, 4000], "blocktime_others_us": 100 });
        let mut received = json!({ "migration": migration });
        received["migration"]["timeline"] =
            json!({ "first_instruction_us": 1_000_000, "last_page_us": 3_000_000 });
        let sent = json!({ "migration": { "blackout_us": 7 } });
        let moved = MovedFigures::of(GuestFigures::default(), 4096, &sent, &received).unwrap();
        assert!((moved.drained_bytes_per_s - 2048.0).abs() < 1e-9);
        assert!((moved.blocktime_us - 2550.0).abs() < 1e-9);
        assert_eq!((moved.served, &moved.stages), (3, &json!({ "wire": 5 })));
        assert!((moved.blackout_us - 7.0).abs() < 1e-9);
    }

    #[test]
    fn the_last_page_of_precopy_does_not_come_before_the_guest() {
        let status = |marks: Value| json!({ "migration": { "timeline": marks } });
        let base = Timebase::new(0, 0, 1000);
        let sent = status(json!({ "began_monotonic_us": 0, "paused_us": 5 }));
        let marks =
            json!({ "began_monotonic_us": 0, "last_page_us": 3, "first_instruction_us": 9 });
        let moments = moments(&sent, &status(marks), &base).unwrap();
        assert_eq!(moments.complete, moments.resumed);
        let error = super::moments(&sent, &status(json!({})), &base).unwrap_err();
        assert!(error.to_string().contains("began_monotonic_us"), "{error}");
    }
}
