//! A program that runs beside a measurement.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Error;
use crate::guest::Transcript;

/// A running program; ended when dropped. What it complains about goes to a file.
pub struct Process {
    child: Child,
    program: String,
    complaints: PathBuf,
}

impl Process {
    /// Starts `command`; `name` tells it from others in `folder`.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`] if there is no such program.
    pub fn start(mut command: Command, folder: &Path, name: &str) -> Result<Process, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let complaints = folder.join(format!("{name}.stderr"));
        let stderr = File::create(&complaints).map_err(Error::system("making a file"))?;
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn();
        match started {
            Ok(child) => Ok(Process { child, program, complaints }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Absent { program }),
            Err(source) => Err(Error::System { what: "starting a program", source }),
        }
    }

    /// Collects what the guest in this program prints.
    pub fn collect(&mut self, transcript: &Transcript) {
        if let Some(output) = self.child.stdout.take() {
            transcript.collect(output);
        }
    }

    /// Waits for the end and returns what was printed, which must be short.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it fails or takes longer than `patience`.
    pub fn finish(self, patience: Duration) -> Result<String, Error> {
        let ended = self.end(patience)?;
        if ended.status.success() { Ok(ended.text) } else { Err(ended.failure()) }
    }

    /// Waits for the end, be it a failure.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if it takes longer than `patience`.
    pub fn end(mut self, patience: Duration) -> Result<Ended, Error> {
        let waiting = "waiting for a program";
        let pid = Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system(waiting))?;
        let limit = Timespec::try_from(patience).expect("some minutes");
        let mut polled = [PollFd::new(&ended, PollFlags::IN)];
        if poll(&mut polled, Some(&limit)).map_err(Error::system(waiting))? == 0 {
            return Err(self.failure(format!("it did not end in {patience:?}")));
        }
        let status = self.child.wait().map_err(Error::system(waiting))?;
        let mut text = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            output.read_to_string(&mut text).map_err(Error::system(waiting))?;
        }
        Ok(Ended { process: self, status, text })
    }

    /// The error for a program that did not do what was wanted, with its last words.
    pub fn failure(&self, what: String) -> Error {
        let complaints = fs::read_to_string(&self.complaints).unwrap_or_default();
        let last = complaints.lines().last().unwrap_or("nothing").to_owned();
        Error::Program { program: self.program.clone(), what, last }
    }
}

/// A program that has ended.
pub struct Ended {
    process: Process,
    status: ExitStatus,
    /// What it printed.
    pub text: String,
}

impl Ended {
    /// The error for a program that should not have ended so, with its last words.
    pub fn failure(&self) -> Error {
        self.process.failure(self.status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A shell that runs `script`, and the folder that its complaints are in.
    fn shell(script: &str) -> (Process, TempDir) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let folder = TempDir::new().unwrap();
        (Process::start(command, folder.path(), "shell").unwrap(), folder)
    }

    #[test]
    fn a_program_is_heard_out() {
        let (process, _folder) = shell("echo 5");
        assert_eq!(process.finish(PATIENCE).unwrap(), "5\n");
    }

    #[test]
    fn a_failure_has_the_programs_last_words() {
        let (process, _folder) = shell("echo a >&2; echo bad >&2; exit 3");
        let error = process.finish(PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "sh: exit status: 3; the last that it said is \"bad\"");
    }

    #[test]
    fn what_a_failure_has_printed_is_kept() {
        let (process, _folder) = shell("echo 7; echo bad >&2; exit 1");
        let ended = process.end(PATIENCE).unwrap();
        assert_eq!(ended.text, "7\n");
        assert!(ended.failure().to_string().contains("exit status: 1"));
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let (process, _folder) = shell("exec sleep 1000");
        let error = process.finish(Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("did not end in 0ns"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let (missing, folder) = (Command::new("/no/such/program"), TempDir::new().unwrap());
        let error = Process::start(missing, folder.path(), "missing").err().unwrap();
        assert_eq!(error.to_string(), "/no/such/program is not installed");
    }

    const PATIENCE: Duration = Duration::from_secs(60);
}
