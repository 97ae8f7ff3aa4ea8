//! What can go wrong with a command, and with the server itself.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::types::Problem;

/// Why a command was not carried out. The variant decides the HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The guest is not in a state that allows the command (409).
    #[error("{0}")]
    WrongState(Problem),
    /// The request itself makes no sense (400).
    #[error("{0}")]
    BadRequest(Problem),
    /// The command was allowed and tried, and did not work (500).
    #[error("{0}")]
    Failed(Problem),
}

impl ControlError {
    /// The command was tried and `cause` stopped it; `hint` says what to do next.
    pub fn failed(step: &str, cause: &dyn Error, hint: Option<&str>) -> ControlError {
        ControlError::Failed(Problem::new(step, &whole_chain(cause), hint))
    }

    /// The command does not fit the present state, which `message` names.
    pub fn wrong_state(step: &str, message: &str, hint: Option<&str>) -> ControlError {
        ControlError::WrongState(Problem::new(step, message, hint))
    }

    /// What is told to the client.
    pub fn problem(&self) -> &Problem {
        match self {
            ControlError::WrongState(problem)
            | ControlError::BadRequest(problem)
            | ControlError::Failed(problem) => problem,
        }
    }
}

/// An error and its causes in one line: JSON has no `source()`.
fn whole_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The path does not fit into a socket address.
    #[error("the socket path {path} has {bytes} bytes; at most {limit} are allowed")]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The longest path that the kernel takes.
        limit: usize,
    },
    /// A live process listens there.
    #[error("another process listens on {path}; choose another socket or end that process")]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something that is not a socket lies there; it is left alone.
    #[error("{path} exists and is not a socket; choose another path or remove it")]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// Somebody else has been making a socket in this folder for too long.
    #[error("the folder {folder} stayed locked by another process for {waited_ms} ms")]
    FolderBusy {
        /// The folder of the socket.
        folder: PathBuf,
        /// How long we tried, in milliseconds.
        waited_ms: u128,
    },
    /// A system call failed.
    #[error("cannot {step} the control socket {path}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// The path asked for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("cannot start the control thread")]
    Thread(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot stop vcpu 1")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_failure_carries_its_causes_in_one_line() {
        let cause = Outer(io::Error::other("bad file descriptor"));
        let error = ControlError::failed("pause", &cause, None);
        assert_eq!(error.to_string(), "pause: cannot stop vcpu 1: bad file descriptor");
    }
}
