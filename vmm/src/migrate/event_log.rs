//! What happens to migrations, one JSON object a line, for whoever watches a fleet.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_migration::metrics::{Change, Report};
use godwit_migration::proto::{MigrationState, Phase};
use serde::Serialize;
use uuid::Uuid;

use crate::api::types::Direction;

/// Lines that wait to be written. A migration has some twenty; what writes them to a slow disk, or
/// to a pipe that nobody reads, must not hold up the threads that serve the guest.
const LINES_MAX: usize = 1024;
/// How long the end of a process waits for the last lines.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Takes events from the threads of migrations, and writes them on a thread of its own.
#[derive(Debug)]
pub struct EventLog {
    lines: Mutex<Option<SyncSender<String>>>,
    written: Mutex<Receiver<()>>,
    dropped: AtomicU64,
}

/// One line.
#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    event: &'static str,
    direction: Direction,
    guest: Option<Uuid>,
    transfer: u64,
    peer: &'a str,
    state: MigrationState,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<u32>,
    /// The size of each page, in bytes; 0 until the guest is known.
    page_bytes: u32,
    pages_total: u32,
    pages_remaining: u32,
    bytes: u64,
    interruptions: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    /// Events before this one that could not be written in time.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

/// The time of day, in the two parts that QMP gives it.
#[derive(Serialize)]
struct Timestamp {
    seconds: u64,
    microseconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl EventLog {
    /// Appends to the file at `path`, which is made if it does not exist. A named pipe needs no
    /// reader yet.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread is to be had.
    pub fn open(path: &Path) -> std::io::Result<EventLog> {
        // To open a pipe for writing alone would wait for a reader.
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let (lines, to_write) = sync_channel(LINES_MAX);
        let (done, written) = sync_channel(1);
        let write = move || {
            write_lines(file, &to_write);
            let _ = done.send(());
        };
        std::thread::Builder::new().name("godwit-events".into()).spawn(write)?;
        let (lines, written) = (Mutex::new(Some(lines)), Mutex::new(written));
        Ok(EventLog { lines, written, dropped: AtomicU64::new(0) })
    }

    /// Takes in what has changed in a migration. Never waits for the file.
    pub(super) fn tell(&self, direction: Direction, change: Change, report: &Report) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut line = line(direction, change, report, dropped);
        line.push('\n');
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok());
        if !taken {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    /// Takes no more events, and waits for those that were taken to be written.
    pub fn finish(&self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.recv_timeout(FINISH_WITHIN).is_err() {
            tracing::warn!("the last events could not be written");
        }
    }
}

fn write_lines(mut file: File, lines: &Receiver<String>) {
    let mut fails = false;
    for line in lines {
        // One call a line, so that processes may share a file.
        let result = file.write_all(line.as_bytes());
        if let Err(error) = &result
            && !fails
        {
            tracing::warn!(%error, "events cannot be written");
        }
        fails = result.is_err();
    }
}

fn line(direction: Direction, change: Change, report: &Report, dropped: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (event, phase, round) = match change {
        Change::State(_) => ("state", None, None),
        Change::Phase(phase) => ("phase", Some(phase), None),
        Change::Round(round) => ("round", None, Some(round)),
    };
    let event = Event {
        timestamp: Timestamp { seconds: now.as_secs(), microseconds: now.subsec_micros() },
        event,
        direction,
        guest: report.guest,
        transfer: report.transfer,
        peer: &report.peer,
        state: report.state,
        phase,
        round,
        page_bytes: report.pages.bytes,
        pages_total: report.pages.total,
        pages_remaining: report.pages.remaining,
        bytes: report.bytes,
        interruptions: report.interruptions,
        error: report.error.as_deref(),
        dropped,
    };
    serde_json::to_string(&event).expect("plain data serializes")
}

#[cfg(test)]
mod tests {
    use godwit_migration::metrics::Progress;
    use serde_json::Value;

    use super::*;

    #[test]
    fn events_are_appended_as_lines_and_all_are_there_at_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events");
        std::fs::write(&path, "{}\n").expect("a file");
        let log = EventLog::open(&path).expect("it opens");
        let report = Progress::new("tcp:host:1".into()).report();
        log.tell(Direction::Outgoing, Change::Round(3), &report);
        log.tell(Direction::Incoming, Change::Phase(Phase::LastPage), &report);
        log.finish();
        log.tell(Direction::Incoming, Change::Round(4), &report);
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3);
        let (round, phase) = (&lines[1], &lines[2]);
        assert_eq!((&round["event"], &round["round"]), (&"round".into(), &3.into()));
        assert_eq!((&round["state"], &round["peer"]), (&"setup".into(), &"tcp:host:1".into()));
        assert_eq!((&phase["event"], &phase["phase"]), (&"phase".into(), &"last_page".into()));
        assert_eq!(phase["direction"], "incoming");
        assert!(phase.get("round").is_none() && phase.get("dropped").is_none());
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let (kind, device) = (rustix::fs::FileType::Fifo, 0);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device).expect("a pipe");
        let log = EventLog::open(&path).expect("it opens");
        let report = Progress::new("tcp:host:1".into()).report();
        // More than the pipe and the queue take together.
        for round in 0..4096 {
            log.tell(Direction::Outgoing, Change::Round(round), &report);
        }
        assert!(log.dropped.load(Ordering::Relaxed) > 0);
    }
}
