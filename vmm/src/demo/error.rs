//! Why a demo did not come to a verdict.

use std::io;
use std::process::ExitStatus;

use super::Side;
use crate::api::ClientError;

/// What went wrong, for the person who runs the demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something that the demo itself needs.
    #[error("cannot {step}")]
    Prepare {
        /// What was tried.
        step: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A process ended before its time.
    #[error("the {side} process ended with {status}; its last words:{words}")]
    Ended {
        /// Which one.
        side: Side,
        /// How.
        status: ExitStatus,
        /// The end of what it said, indented, each line after a line feed.
        words: String,
    },
    /// A process does not do what it is asked.
    #[error("the {side} process cannot be asked")]
    Client {
        /// Which one.
        side: Side,
        /// Why.
        source: ClientError,
    },
    /// The guest was not moved.
    #[error("the migration failed: {reason}")]
    Migration {
        /// The reason that the source or the destination gave.
        reason: String,
    },
    /// The guest says that it cannot go on.
    #[error("the guest gave up: {line}")]
    Guest {
        /// Its last line.
        line: String,
    },
    /// The guest found a wrong byte before anything was moved.
    #[error("the guest found its memory corrupt before it was moved: {complaint}")]
    CorruptBefore {
        /// Its first complaint.
        complaint: String,
    },
    /// Nothing happened for too long.
    #[error("nothing happened for {seconds} s while {waiting}")]
    Silent {
        /// How long.
        seconds: u64,
        /// What was waited for.
        waiting: &'static str,
    },
    /// The pages that passed had none to change.
    #[error("no page with contents passed on the bulk channel, so none was changed")]
    NothingToCorrupt,
    /// Nobody reads what the demo shows.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// The user ended it.
    #[error("ended by signal {signal}; both processes and their folder are gone")]
    Interrupted {
        /// The number of the signal.
        signal: i32,
    },
}

impl DemoError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            DemoError::Client { source, .. } => source.hint(),
            _ => None,
        }
    }

    /// The exit status: that of a shell's command that a signal ended, or failure.
    pub fn exit_status(&self) -> u8 {
        match self {
            DemoError::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(1),
            _ => 1,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Source => "source",
            Side::Destination => "destination",
        })
    }
}

/// The words of a process that say why it ended: its own messages, else its last lines.
pub fn last_words<'a>(lines: impl Iterator<Item = &'a String> + Clone) -> String {
    let own = lines.clone().filter(|line| line.starts_with("godwit: "));
    let own: String = own.map(|line| format!("\n    {line}")).collect();
    if !own.is_empty() {
        return own;
    }
    lines.map(|line| format!("\n    {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_a_process_are_preferred_to_its_log() {
        let lines = ["INFO listening", "godwit: no /dev/kvm", "godwit: load it"].map(String::from);
        let words = last_words(lines.iter());
        assert_eq!(words, "\n    godwit: no /dev/kvm\n    godwit: load it");
        assert_eq!(last_words(lines[..1].iter()), "\n    INFO listening");
    }
}
