//! `godwit doctor`: what this host can do, what is missing, what that costs and how to get it.
//!
//! [`look`] finds facts, [`findings`] judges them, [`text`] tells people. Only the first knows the
//! host, so tests judge hosts that are made up.

pub mod facts;
pub mod findings;
mod look;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use facts::Facts;
use findings::{Finding, Verdict};

/// The exit status where guests can run and none can come.
pub const CANNOT_RECEIVE: u8 = 3;
/// The exit status where guests cannot run.
pub const CANNOT_RUN: u8 = 4;

/// All that the doctor has to say. This is what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the host is good for.
    pub verdict: Verdict,
    /// What is missing, what matters most first.
    pub findings: Vec<Finding>,
    /// What was found.
    pub facts: Facts,
}

impl Report {
    /// The report on a host.
    pub fn of(facts: Facts) -> Report {
        let findings = findings::findings(&facts);
        Report { verdict: findings::verdict(&findings), findings, facts }
    }

    /// The exit status that says the same as the verdict.
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Ready => 0,
            Verdict::CannotReceive => CANNOT_RECEIVE,
            Verdict::CannotRun => CANNOT_RUN,
        }
    }
}

/// Looks at this host and prints what it can do.
///
/// # Errors
/// The report cannot be written. A reader who has read enough is no error.
pub fn doctor(json: bool) -> io::Result<ExitCode> {
    let report = Report::of(look::look());
    let text = if json { serde_json::to_string(&report)? + "\n" } else { text::text(&report) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(ExitCode::from(report.exit_code())),
    }
}
