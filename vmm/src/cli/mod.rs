//! The command line: what was typed ([`args`]), and one module for each kind of command.

mod args;
mod control;
mod log;
mod receive;
mod run;

use std::process::ExitCode;

pub use args::Demo;
use args::{Args, Command};
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
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let args = Args::parse();
    log::start(args.verbose);
    let result = match args.command {
        Command::Run(run) => run::run(&run),
        Command::Receive(receive) => receive::receive(&receive),
        Command::Migrate(migrate) => control::migrate(&migrate),
        Command::Status(status) => control::status(&status),
        Command::Pause(at) => control::pause(&at),
        Command::Resume(at) => control::resume(&at),
        Command::Shutdown(shutdown) => control::shutdown(&shutdown),
        Command::Demo(demo) => crate::demo::demo(&demo),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("godwit: {}", failure.message);
        if let Some(hint) = failure.hint {
            eprintln!("godwit: {hint}");
        }
        ExitCode::FAILURE
    })
}
