//! The two processes of a demo: started from this program's own file, read line by line, and ended
//! whatever happens.
//!
//! Dropping a [`Process`] kills it. Should the demo itself be killed, the kernel kills both: each
//! is started with `--end-with` and the demo's process id.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::Side;

/// What the demo's main thread is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A process wrote something.
    Output(Side, Stream, Text),
    /// Somebody wants the demo to end.
    Signal(i32),
}

/// Where a process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The guest's console.
    Stdout,
    /// All else.
    Stderr,
}

/// What it wrote.
#[derive(Debug, PartialEq, Eq)]
pub enum Text {
    /// A line, without its end.
    Line(String),
    /// Nothing more comes; the last line was not ended and had this in it.
    End(String),
}

/// A process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// The longest line that is kept together.
const LINE_BYTES_MAX: usize = 16 << 10;
/// How often an end is looked for while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl Process {
    /// Starts this program with `arguments`. Its lines go to `events`. To be called on the thread
    /// that lives as long as the process is to.
    ///
    /// # Errors
    /// The program or a thread could not be started.
    pub fn start(
        side: Side,
        arguments: Vec<OsString>,
        events: &SyncSender<Event>,
    ) -> io::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).args(["--end-with", &std::process::id().to_string()]);
        // Its address is read from a line of its log, so there must be a log.
        command.env("GODWIT_LOG", "info");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the demo, which ends its processes in order.
        command.process_group(0);
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let process = Process { child };
        spawn_reader(side, Stream::Stdout, stdout.expect("piped"), events.clone())?;
        spawn_reader(side, Stream::Stderr, stderr.expect("piped"), events.clone())?;
        Ok(process)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// What wait returned.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits at most `limit` for it to end by itself. False if it has not.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.ended() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                Ok(ended) => return ended.is_some(),
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn_reader(
    side: Side,
    stream: Stream,
    from: impl Read + Send + 'static,
    events: SyncSender<Event>,
) -> io::Result<()> {
    // Not joined: it ends with the process, or when nobody listens any more.
    let tell = move |text| events.send(Event::Output(side, stream, text)).is_ok();
    std::thread::Builder::new().name("godwit-lines".into()).spawn(move || lines(from, tell))?;
    Ok(())
}

/// Reads `from` to its end and tells line by line, until `tell` says that nobody listens.
fn lines(mut from: impl Read, mut tell: impl FnMut(Text) -> bool) {
    let (mut chunk, mut line) = ([0; 4096], Vec::new());
    loop {
        let bytes = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(bytes) => &chunk[..bytes],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in bytes {
            if byte != b'\n' {
                line.push(byte);
            }
            if (byte == b'\n' || line.len() >= LINE_BYTES_MAX) && !tell(Text::Line(text(&line))) {
                return;
            }
            if byte == b'\n' || line.len() >= LINE_BYTES_MAX {
                line.clear();
            }
        }
    }
    tell(Text::End(text(&line)));
}

/// What a terminal can show without being told what to do.
fn text(line: &[u8]) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(line).trim_end_matches('\r').chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> Vec<Text> {
        let mut told = Vec::new();
        lines(bytes, |text| {
            told.push(text);
            true
        });
        told
    }

    fn line(text: &str) -> Text {
        Text::Line(text.to_owned())
    }

    #[test]
    fn lines_are_told_one_by_one_and_the_rest_at_the_end() {
        let wanted = [line("one"), line(""), line("two"), Text::End("thr".into())];
        assert_eq!(told(b"one\n\ntwo\r\nthr"), wanted);
        assert_eq!(told(b""), [Text::End(String::new())]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_control_characters_are_not_passed_on() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(told(&long)[1], Text::End("x".into()));
        assert_eq!(told(b"\x1b[2Jboo\n")[0], line("?[2Jboo"));
    }
}
