//! Where the destination stands.

use crate::proto::MigrationState;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    AwaitOffer,
    Preparing,
    /// Rounds of pages may come before the package.
    AwaitPackage,
    Loading,
    AwaitGrant,
    Recording,
    Refusing,
    Running,
    /// The guest runs here, and the source of its missing pages is lost for now.
    Interrupted,
    Completing,
    Ended,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::AwaitOffer => "waiting for an offer",
            State::Preparing => "building the machine",
            State::AwaitPackage => "waiting for the guest's state",
            State::Loading => "loading the guest",
            State::AwaitGrant => "waiting for the grant",
            State::Recording => "recording that the guest is ours",
            State::Refusing => "refusing the grant",
            State::Running => "receiving pages",
            State::Interrupted => "waiting for the lost source",
            State::Completing => "waiting for the source to let go",
            State::Ended => "not migrating",
        }
    }

    /// Whether the source has to be heard from: not while it is lost, nor while a record is written
    /// that decides what comes next.
    pub fn waits_for_source(self) -> bool {
        use State::{Ended, Interrupted, Recording, Refusing};
        !matches!(self, Recording | Refusing | Interrupted | Ended)
    }

    /// Whether pages are asked for and come on the urgent channel: loading may touch memory.
    pub fn pages_come(self) -> bool {
        use State::{AwaitGrant, Loading, Recording, Refusing, Running};
        matches!(self, Loading | AwaitGrant | Recording | Refusing | Running)
    }

    /// The one table of the destination's states in the words that users know.
    pub fn migration_state(self, in_rounds: bool) -> MigrationState {
        match self {
            State::AwaitPackage if in_rounds => MigrationState::Active,
            State::AwaitOffer | State::Preparing | State::AwaitPackage => MigrationState::Setup,
            State::Loading | State::AwaitGrant | State::Recording | State::Refusing => {
                MigrationState::Device
            }
            State::Running | State::Completing => MigrationState::PostcopyActive,
            State::Interrupted => MigrationState::PostcopyPaused,
            State::Ended => MigrationState::Completed,
        }
    }
}
