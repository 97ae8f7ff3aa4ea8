//! Threads, sockets, the clock and durable records around the state machines of `proto`.

mod answer;
mod background;
mod channel;
mod command;
mod destination;
mod dial;
mod dirty;
mod guest;
mod held;
mod load;
mod lock;
mod notify;
mod push;
mod receiver;
mod records;
mod restore;
mod source;
mod stage;
mod take;
mod text;
mod working_set;

pub use command::Command;
pub use destination::Incoming;
pub use dirty::{DirtyLog, DirtyTracking, WriteGuard};
pub use guest::{IncomingHost, IncomingVm, OutgoingVm};
pub use load::{LoadError, check_all, copy_all};
pub use notify::Notifier;
pub use push::PushOptions;
pub use receiver::{Arrival, Receiver, Trust};
pub use records::{RecordError, Records};
pub use restore::{First, RestoreEnd, Restoring};
pub use source::{Outgoing, Plan};
pub use text::in_full;
pub use working_set::Recording;
