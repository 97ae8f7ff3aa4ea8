//! `godwit demo`: launches a guest, moves it live to another process, shows what happened.
//!
//! The demo is a user of the other commands: it starts `godwit run` and `godwit receive`, asks them
//! through their control sockets, and believes nobody but the guest, whose console it reads on both
//! sides. [`link`] is what can be put between the two.

mod consoles;
mod error;
mod gaps;
mod lines;
pub mod link;
mod place;
mod process;
mod report;
mod show;
mod signals;
mod story;
#[cfg(test)]
mod tests;
mod text;
mod verdict;
mod workload;

use std::io::Write;
use std::process::ExitCode;

pub use link::Link;
use verdict::Side;
pub use workload::Workload;

use self::link::Corrupted;
use self::report::{Report, Verdict};
use self::show::Show;
use self::story::Findings;
use self::verdict::Witness;
use crate::cli::{Demo, Failure};

/// Runs a demo. The exit status is 0 only if the guest verified all its memory at the destination.
///
/// # Errors
/// Why there was no verdict, or a bad one.
pub fn demo(args: &Demo) -> Result<ExitCode, Failure> {
    let mut show = Show::new(args.json);
    let mut findings = Findings {
        witness: Witness::new(args.workload, args.cpus.into()),
        source: None,
        destination: None,
        corrupted: Corrupted::default(),
    };
    let ended = story::run(args, &mut show, &mut findings);
    show.clear();
    let failure = ended.as_ref().err().map(|error| Failure::with_hint(error, error.hint()));
    let report = Report::new(args, &findings, failure.as_ref().map(ToString::to_string));
    // A demo that did not get as far as the switchover has nothing to report but its error.
    if ended.is_ok() || report.blackout_us.is_some() {
        let heading = |text: &str| show.heading(text);
        for line in text::lines(&report, heading) {
            show.line(&line);
        }
    }
    if args.json {
        print_json(&report)?;
    }
    match (ended, failure) {
        (Err(error), Some(failure)) => {
            failure.print();
            Ok(ExitCode::from(error.exit_status()))
        }
        _ => conclude(&report),
    }
}

fn print_json(report: &Report) -> Result<(), Failure> {
    let json = serde_json::to_string(report).map_err(|e| Failure::new(&e))?;
    writeln!(std::io::stdout(), "{json}").map_err(|e| Failure::new(&e))
}

fn conclude(report: &Report) -> Result<ExitCode, Failure> {
    let pages = report.pages_corrupt;
    let complaint = report.complaints.first().map_or("it was not shown", String::as_str);
    match report.verdict {
        Verdict::Verified => Ok(ExitCode::SUCCESS),
        Verdict::Corrupt => Err(Failure::text(format!(
            "the guest found {pages} corrupt page(s) at the destination; its complaint: {complaint}"
        ))),
        Verdict::Unnoticed => {
            Err(Failure::text("a page was changed on the way and the guest did not notice"))
        }
        Verdict::None => Err(Failure::text("the guest came to no verdict")),
    }
}
