//! What others want of a migration.

use crate::transport::Address;

/// What others want of a migration that is under way.
#[derive(Debug)]
pub enum Command {
    /// Before the grant: the guest stays, for this reason.
    GiveUp(String),
    /// Before the grant: the operator wants the guest to stay.
    Cancel,
    /// In a round: the guest changes hands as soon as it can.
    SwitchNow,
    /// After the loss of the destination: dial again now, perhaps elsewhere.
    Recover(Option<Address>),
    /// After the grant: give up what is only here, for this reason.
    Abandon(String),
}
