//! A process under test: its output as lines, its end with a deadline, and no way to outlive the
//! test.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open};

use crate::DEADLINE;
use crate::text::Capture;

/// How many of the last lines of each stream a failure shows.
const TAIL_LINES: usize = 40;

/// What a process writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output: with `godwit run` and `receive`, the guest's console.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// A process under test. Dropping it kills it and all that it has started; if the test is
/// panicking then, its last lines are printed; if not, the test fails if the process has panicked.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Capture,
    stderr: Capture,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with empty input and captured output, as the head of a process group.
    /// `name` is what failures call it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(name: &str, mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {name} ({command:?}): {error}"),
        };
        let stdout = Capture::start(child.stdout.take().expect("stdout is piped"));
        let stderr = Capture::start(child.stderr.take().expect("stderr is piped"));
        Process { name: name.to_owned(), child, stdout, stderr, status: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its lines on `stream`, from the first.
    pub fn lines(&self, stream: Stream) -> Lines<'_> {
        Lines { process: self, stream, next: 0 }
    }

    /// Its lines on `stream`, without those that have been read from it by now.
    pub fn new_lines(&self, stream: Stream) -> Lines<'_> {
        let next = self.capture(stream).text().lines.len();
        Lines { process: self, stream, next }
    }

    /// All that it has written to `stream` so far, with the line that it has not finished.
    pub fn text(&self, stream: Stream) -> String {
        self.capture(stream).text().whole()
    }

    /// Waits for a line on `stream` that `wanted` accepts, from the first line on.
    ///
    /// # Panics
    /// If the stream ends without it or it does not come in time; `what` says what was expected.
    #[track_caller]
    pub fn wait_line(
        &self,
        stream: Stream,
        what: &str,
        wanted: impl FnMut(&str) -> bool,
    ) -> String {
        self.lines(stream).wait(what, wanted)
    }

    /// Waits for its end, and for the end of what it and its children write.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        if self.status.is_none() {
            assert!(self.has_ended_by(deadline), "{}", self.failure("did not end"));
            let status = self.child.wait().expect("the child is ours to wait for");
            self.status = Some(status);
        }
        for capture in [&self.stdout, &self.stderr] {
            capture.wait(deadline, |text| text.ended);
            let ended = capture.text().ended;
            assert!(ended, "{}", self.failure("ended, and its output is still held open"));
        }
        self.status.expect("set above")
    }

    /// Waits for its end and expects it to succeed.
    ///
    /// # Panics
    /// If it does not end in time, or not with 0.
    #[track_caller]
    pub fn wait_success(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{}", self.failure(&format!("ended with {status}")));
    }

    /// Waits for its end and expects it to fail by itself: with a status, not by a signal.
    ///
    /// # Panics
    /// If it does not end in time, or ends with 0 or by a signal.
    #[track_caller]
    pub fn wait_failure(&mut self) -> i32 {
        let status = self.wait();
        match status.code() {
            Some(code) if code != 0 => code,
            _ => panic!("{}", self.failure(&format!("ended with {status}, not with an error"))),
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.status.is_none() && !self.has_ended_by(Instant::now())
    }

    /// Sends it a signal, but not its children.
    ///
    /// # Panics
    /// If it has been waited for.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.status.is_none(), "{}", self.failure("has ended and takes no signal"));
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a child that is not reaped");
    }

    /// Kills it and all that it has started, and waits for its end.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        // Not reaped yet, so the group's number is still its own.
        let group = rustix::process::Pid::from_child(&self.child);
        match rustix::process::kill_process_group(group, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => eprintln!("cannot kill {}: {error}", self.name),
        }
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0x7f00));
        self.status = Some(status);
        status
    }

    /// What a failure says about it: `why`, and the last lines of both streams.
    pub fn failure(&self, why: &str) -> String {
        let mut message = format!("{} (pid {}) {why}", self.name, self.pid());
        for (name, capture) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let whole = capture.text().whole();
            let lines: Vec<_> = whole.lines().collect();
            let skipped = lines.len().saturating_sub(TAIL_LINES);
            message += &format!("\n--- {name} of {}, {skipped} lines before", self.name);
            for line in &lines[skipped..] {
                message += &format!("\n    {line}");
            }
        }
        message
    }

    fn capture(&self, stream: Stream) -> &Capture {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Whether it has ended when `deadline` comes, without reaping it.
    fn has_ended_by(&self, deadline: Instant) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a child that is not reaped");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waiting = [PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut waiting, Some(&timespec(left))) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("cannot wait for {}: {error}", self.name),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let was_running = self.is_running();
        let status = self.kill();
        if std::thread::panicking() {
            let end = if was_running { "was running".to_owned() } else { status.to_string() };
            eprintln!("{}", self.failure(&end));
            return;
        }
        let panicked = self.text(Stream::Stderr).contains("panicked at");
        assert!(!panicked, "{}", self.failure("has panicked"));
    }
}

/// A walk along the lines that a process writes.
#[derive(Debug)]
pub struct Lines<'a> {
    process: &'a Process,
    stream: Stream,
    next: usize,
}

impl Lines<'_> {
    /// Walks on to the next line that `wanted` accepts, and behind it.
    ///
    /// # Panics
    /// If the stream ends without it or it does not come in time; `what` says what was expected.
    #[track_caller]
    pub fn wait(&mut self, what: &str, mut wanted: impl FnMut(&str) -> bool) -> String {
        let mut found = None;
        let next = &mut self.next;
        let capture = self.process.capture(self.stream);
        capture.wait(Instant::now() + DEADLINE, |text| {
            while let Some(line) = text.lines.get(*next) {
                *next += 1;
                if wanted(line) {
                    found = Some(line.clone());
                    return true;
                }
            }
            false
        });
        let why = || format!("wrote no line on {:?} with {what}", self.stream);
        found.unwrap_or_else(|| panic!("{}", self.process.failure(&why())))
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).expect("a deadline is not that far away")
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::start("shell", command)
    }

    fn panic_message(act: impl FnOnce()) -> String {
        let panicked = catch_unwind(AssertUnwindSafe(act)).expect_err("a failure");
        panicked.downcast_ref::<String>().expect("a text").clone()
    }

    #[test]
    fn lines_are_found_in_order_on_their_own_stream() {
        let process = shell("echo one; echo two >&2; echo one more; exec sleep 1000");
        let mut lines = process.lines(Stream::Stdout);
        assert_eq!(lines.wait("one", |l| l.starts_with("one")), "one");
        assert_eq!(lines.wait("one again", |l| l.starts_with("one")), "one more");
        assert_eq!(process.wait_line(Stream::Stderr, "two", |l| l == "two"), "two");
    }

    #[test]
    fn a_line_that_never_comes_fails_when_the_stream_ends_and_shows_what_came() {
        let process = shell("echo something else");
        let message = panic_message(|| {
            process.wait_line(Stream::Stdout, "a greeting", |l| l == "hello");
        });
        assert!(message.contains("a greeting") && message.contains("something else"), "{message}");
    }

    #[test]
    fn the_end_and_its_status_are_reported() {
        shell("exit 0").wait_success();
        assert_eq!(shell("exit 3").wait_failure(), 3);
        let message = panic_message(|| shell("kill -9 $$").wait_success());
        assert!(message.contains("signal: 9"), "{message}");
    }

    #[test]
    fn the_unfinished_line_is_part_of_the_text() {
        let mut process = shell("printf 'one\\ntw'");
        process.wait_success();
        assert_eq!(process.text(Stream::Stdout), "one\ntw");
    }

    #[test]
    fn dropping_kills_the_children_too() {
        let process = shell("sleep 1000 & echo $!; wait");
        let child = process.wait_line(Stream::Stdout, "a pid", |_| true);
        let pidfd = child.parse().ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = pidfd_open(pidfd.expect("a pid"), PidfdFlags::empty()).expect("it runs");
        drop(process);
        let mut waiting = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut waiting, Some(&timespec(DEADLINE))), Ok(1));
    }

    #[test]
    fn a_signal_reaches_the_process() {
        let mut process = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        process.wait_line(Stream::Stdout, "ready", |l| l == "ready");
        assert!(process.is_running());
        process.signal(Signal::TERM);
        assert_eq!(process.wait_failure(), 7);
        assert!(!process.is_running());
    }
}
