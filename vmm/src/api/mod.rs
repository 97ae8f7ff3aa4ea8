//! The control API: HTTP and JSON on a Unix socket that only its owner may open.
//!
//! [`Server`] puts a [`Control`] behind the socket, [`Client`] is what the command line uses to
//! reach it, and [`types`] is what travels between the two. `docs/openapi.yaml` says the same for
//! readers of other languages; a test keeps the two alike.
//!
//! The API runs on one thread of its own and never on the path of a fault. Each request has its
//! own connection: commands are rare, and an idle connection is then an error and not a habit.

mod answer;
mod client;
mod error;
mod metrics;
mod route;
mod server;
mod socket;
pub mod types;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use error::{ControlError, ServerError};
pub use server::Server;

use types::{MigrateRequest, RecoverRequest, SnapshotRequest, Status};

/// What the API can do to a guest: implemented by the process that holds it.
///
/// Each method may block, and several may run at once on different threads. `status` must not wait
/// for the others: it is how a user finds out why one of them takes long.
pub trait Control: Send + Sync + 'static {
    /// What is true now. Cheap: clients poll it.
    fn status(&self) -> Status;

    /// Takes all vCPUs out of the guest; returns when none runs. Pausing twice is not an error.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if this process has no guest that it may run.
    fn pause(&self) -> Result<(), ControlError>;

    /// Lets the vCPUs run on. Resuming a running guest is not an error.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if this process has no guest that it may run.
    fn resume(&self) -> Result<(), ControlError>;

    /// Asks the process to end; returns when it has begun to. Without `force` a process that
    /// holds pages nobody else has finishes handing them over first.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if it cannot.
    fn shutdown(&self, force: bool) -> Result<(), ControlError>;

    /// Starts to move the guest and returns at once; `status` tells how it goes.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if there is no guest to move or it is already moving,
    /// [`ControlError::BadRequest`] if the request makes no sense here.
    fn migrate(&self, request: MigrateRequest) -> Result<(), ControlError>;

    /// Ends the migration that is under way, before its switchover: the guest stays.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if none leaves here, or it is too late.
    fn cancel(&self) -> Result<(), ControlError>;

    /// Ends the rounds of the migration that is under way: the guest changes hands now.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if there are none.
    fn switch_over(&self) -> Result<(), ControlError>;

    /// At the source: dials the lost destination at once, perhaps at a new address. At the
    /// destination: listens at another address as well.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if no peer is lost, [`ControlError::Failed`] if the address
    /// cannot be listened at.
    fn recover(&self, request: RecoverRequest) -> Result<(), ControlError>;

    /// Begins to save the guest and returns at once; `status` tells how it goes.
    ///
    /// # Errors
    /// [`ControlError::WrongState`] if there is no guest to save, or pages of it are on their way,
    /// [`ControlError::Failed`] if the place cannot be written to.
    fn snapshot(&self, request: SnapshotRequest) -> Result<(), ControlError>;
}
