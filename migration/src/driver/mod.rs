//! Threads, sockets, the clock and durable records around the state machines of `proto`.

mod answer;
mod background;
mod channel;
mod command;
mod destination;
mod dial;
mod dirty;
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
mod working_set;

pub use command::Command;
pub use destination::{Incoming, IncomingHost, IncomingVm};
pub use dirty::{DirtyLog, DirtyTracking, WriteGuard};
pub use load::{LoadError, check_all, copy_all};
pub use notify::Notifier;
pub use push::PushOptions;
pub use receiver::{Arrival, Receiver, Trust};
pub use records::{RecordError, Records};
pub use restore::{First, RestoreEnd, Restoring};
pub use source::{Outgoing, OutgoingVm, Plan};
pub use working_set::Recording;
