//! The command line: what was typed ([`args`]), and one module for each kind of command.

mod args;
mod control;
mod log;
mod parent;
mod receive;
mod restore;
mod run;
mod snapshot;

use std::process::ExitCode;

use args::{Args, Command};
pub use args::{Demo, MemoryBacking};
use clap::Parser;

/// Why a command failed, for the person who typed it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure in one line, with its causes.
    pub fn new(error: &dyn std::error::Error) -> Failure {
        Failure::with_hint(error, None)
    }

    /// A failure, and what to do about it.
    pub fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> Failure {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Failure { message, hint: hint.map(str::to_owned) }
    }

    /// A failure of this program's own words.
    pub fn text(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None }
    }

    /// Tells the person who typed the command.
    pub fn print(&self) {
        eprintln!("godwit: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("godwit: {hint}");
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let args = Args::parse();
    log::start(args.verbose);
    let result = match args.command {
        Command::Run(run) => run::run(&run),
        Command::Receive(receive) => receive::receive(&receive),
        Command::Migrate(migrate) => control::migrate(&migrate),
        Command::Snapshot(args) => snapshot::snapshot(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::Status(status) => control::status(&status),
        Command::Cancel(at) => control::cancel(&at),
        Command::SwitchOver(at) => control::switch_over(&at),
        Command::Recover(args) => control::recover(&args),
        Command::Pause(at) => control::pause(&at),
        Command::Resume(at) => control::resume(&at),
        Command::Shutdown(shutdown) => control::shutdown(&shutdown),
        Command::Demo(demo) => crate::demo::demo(&demo),
        Command::Doctor(args) => crate::doctor::doctor(args.json).map_err(|e| Failure::new(&e)),
    };
    result.unwrap_or_else(|failure| {
        failure.print();
        ExitCode::FAILURE
    })
}
