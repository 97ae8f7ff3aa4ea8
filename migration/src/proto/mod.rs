//! The state machines of both sides. They do no I/O and have no clock: inputs and the time come in
//! by argument, and all outputs are drained before the next input.
//!
//! Where each state stands in the switchover, and what a lost peer means there:
//!
//! | source | destination | a lost peer means |
//! |---|---|---|
//! | Offered, Connecting | Preparing, AwaitPackage | nothing: the guest runs at the source |
//! | Tracking, Round | AwaitPackage | nothing: the guest runs at the source |
//! | Saving, Finishing, Loading | Loading, AwaitGrant | the guest runs on at the source |
//! | Granting | | the record decides: written, it is granted |
//! | Granted | Recording | both paused; the source dials and learns who has the guest |
//! | Serving | Running | paused where pages are missing; the source dials and goes on |
//! | Resuming, Reconnecting | Interrupted | as before: the source dials again |
//! | | Completing | nothing: all pages are here |

mod destination;
mod ownership;
mod patience;
mod source;
#[cfg(test)]
mod tests;

pub use destination::{
    Destination, Input as DestinationInput, Output as DestinationOutput, Prepared,
};
pub use ownership::{
    Answer, Ownership, Record, answer, away_after, comes_here, lets_go, may_come, may_own, may_run,
};
pub use source::{Input as SourceInput, Output as SourceOutput, Saved, Source};

use serde::{Deserialize, Serialize};

use crate::page::Duplicate;
use crate::wire::{Kind, WireError};

/// What the other side of a migration did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Bytes that are not the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A page that had been sent.
    #[error(transparent)]
    Duplicate(#[from] Duplicate),
    /// A message that has no place in this state.
    #[error("a {got:?} message while {state}")]
    Unexpected {
        /// What came.
        got: Kind,
        /// What this side was doing.
        state: &'static str,
    },
    /// A message about another transfer.
    #[error("a message about transfer {got} during transfer {expected}")]
    Transfer {
        /// The transfer of the message.
        got: u64,
        /// The transfer under way.
        expected: u64,
    },
    /// The source said that it had pushed everything, and had not.
    #[error("the source ended its push with {pages} pages never sent")]
    NeverSent {
        /// How many pages.
        pages: u32,
    },
    /// The destination said that it had everything, and cannot.
    #[error("the destination reports all pages while {pages} were never sent to it")]
    NotComplete {
        /// How many pages.
        pages: u32,
    },
    /// Nothing came for too long.
    #[error("nothing heard for {seconds} s while {state}")]
    Silent {
        /// How long, in seconds.
        seconds: u64,
        /// What this side was doing.
        state: &'static str,
    },
    /// No page came for too long, though the peer says that it is alive.
    #[error(
        "no page has come for {seconds} s while {state}, {pages} are missing, and the peer is \
         there: something between the hosts carries one channel and not another"
    )]
    Stalled {
        /// How long, in seconds.
        seconds: u64,
        /// How many pages.
        pages: u32,
        /// What this side was doing.
        state: &'static str,
    },
    /// The connection ended or broke.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// How a migration ended, on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All pages are at the destination and both sides know.
    Completed,
    /// It ended before the switchover: the guest is at the source as if nothing had happened.
    Aborted {
        /// Why.
        reason: String,
    },
    /// As that, because the operator wanted it.
    Cancelled,
    /// The guest is lost, or what is left of it was given up: it runs nowhere.
    Lost {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The last instant of a migration that ended so.
    pub fn phase(&self) -> Phase {
        match self {
            Outcome::Completed => Phase::Released,
            Outcome::Aborted { .. } | Outcome::Cancelled => Phase::Failed,
            Outcome::Lost { .. } => Phase::Lost,
        }
    }

    /// Its state in the words that users know.
    pub fn migration_state(&self) -> MigrationState {
        match self {
            Outcome::Completed => MigrationState::Completed,
            Outcome::Aborted { .. } | Outcome::Lost { .. } => MigrationState::Failed,
            Outcome::Cancelled => MigrationState::Cancelled,
        }
    }

    /// Why it did not complete.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Completed | Outcome::Cancelled => None,
            Outcome::Aborted { reason } | Outcome::Lost { reason } => Some(reason),
        }
    }
}

/// The state of a migration in the words that QMP's users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    /// The destination is being prepared; the guest runs at the source.
    Setup,
    /// The guest runs at the source, and its pages are sent.
    Active,
    /// The guest is paused; vCPUs and devices are on their way.
    Device,
    /// The guest runs at the destination; pages follow.
    PostcopyActive,
    /// The peer is lost with pages still at the source. Both sides keep them safe.
    PostcopyPaused,
    /// The source dials the lost destination.
    PostcopyRecoverSetup,
    /// The peers find out what has arrived.
    PostcopyRecover,
    /// All pages are at the destination.
    Completed,
    /// It failed before the switchover, or the guest is lost.
    Failed,
    /// The operator ended it before the switchover.
    Cancelled,
}

impl MigrationState {
    /// Whether the peer is lost, and looked for.
    pub fn is_interrupted(self) -> bool {
        use MigrationState::{PostcopyPaused, PostcopyRecover, PostcopyRecoverSetup};
        matches!(self, PostcopyPaused | PostcopyRecoverSetup | PostcopyRecover)
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        use MigrationState::{Cancelled, Completed, Failed};
        matches!(self, Completed | Failed | Cancelled)
    }
}

/// The instants of a migration, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Begun: dialled, or the offer was read.
    Started,
    /// The destination has built the machine.
    Prepared,
    /// The first round of pages begins, while the guest runs at the source.
    FirstRound,
    /// The vCPUs are told to stop: the blackout begins.
    Paused,
    /// vCPU and device state is saved (source) or here (destination).
    Package,
    /// The destination has loaded everything.
    Loaded,
    /// The grant is recorded (source) or here (destination).
    Granted,
    /// The destination recorded that it owns the guest, and its vCPUs run.
    Running,
    /// A lost peer is back, for the first time.
    Resumed,
    /// The source has pushed all that nobody asked for.
    Pushed,
    /// The last page is in place.
    LastPage,
    /// Both sides know; the source keeps nothing.
    Released,
    /// Ended before the switchover.
    Failed,
    /// The guest is lost.
    Lost,
}
