//! Where the source stands.

use super::rounds::RoundStep;
use crate::proto::MigrationState;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Offered,
    Connecting,
    /// Writes are about to be noted.
    Tracking,
    /// The guest runs here while its pages are sent.
    Round(RoundStep),
    Saving,
    /// The last round of pre-copy: the guest stands still.
    Finishing(RoundStep),
    Loading,
    Granting,
    Granted,
    Serving,
    /// The destination is lost; it is dialled when its time has come.
    Interrupted,
    Dialling,
    /// The destination says what it has.
    Resuming,
    /// The bulk channels are connected again.
    Reconnecting,
    Ended,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Offered => "waiting for the destination to accept",
            State::Connecting => "connecting the bulk channels",
            State::Tracking => "beginning to note what the guest writes",
            State::Round(_) => "sending pages while the guest runs here",
            State::Saving => "saving the guest's state",
            State::Finishing(_) => "sending the last pages of the paused guest",
            State::Loading => "waiting for the destination to load the guest",
            State::Granting => "recording the grant",
            State::Granted => "waiting for the destination to own the guest",
            State::Serving => "serving pages",
            State::Interrupted | State::Dialling => "dialling the lost destination",
            State::Resuming => "waiting for what the destination has received",
            State::Reconnecting => "connecting the bulk channels again",
            State::Ended => "not migrating",
        }
    }

    /// Whether the destination may own the guest.
    pub fn granted(self) -> bool {
        use State::{Dialling, Granted, Interrupted, Reconnecting, Resuming, Serving};
        matches!(self, Granted | Serving | Interrupted | Dialling | Resuming | Reconnecting)
    }

    /// Whether the guest was told to stop.
    pub fn paused(self) -> bool {
        use State::{Finishing, Granting, Loading, Saving};
        matches!(self, Saving | Finishing(_) | Loading | Granting)
    }

    /// Whether pages are sent because they are asked for. Loading asks, too.
    pub fn serves(self) -> bool {
        use State::{Granted, Granting, Loading, Reconnecting, Serving};
        matches!(self, Loading | Granting | Granted | Serving | Reconnecting)
    }

    /// The one table of the source's states in the words that users know.
    pub fn migration_state(self) -> MigrationState {
        match self {
            State::Offered | State::Connecting | State::Tracking => MigrationState::Setup,
            State::Round(_) => MigrationState::Active,
            State::Saving
            | State::Finishing(_)
            | State::Loading
            | State::Granting
            | State::Granted => MigrationState::Device,
            State::Serving => MigrationState::PostcopyActive,
            State::Interrupted => MigrationState::PostcopyPaused,
            State::Dialling => MigrationState::PostcopyRecoverSetup,
            State::Resuming | State::Reconnecting => MigrationState::PostcopyRecover,
            State::Ended => MigrationState::Completed,
        }
    }
}
