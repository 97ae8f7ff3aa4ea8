//! Threads, sockets, the clock and durable records around the state machines of `proto`.

mod background;
mod channel;
mod destination;
mod dirty;
mod lock;
mod notify;
mod push;
mod receiver;
mod records;
mod source;
mod stage;
mod take;

pub use destination::{Incoming, IncomingHost, IncomingVm};
pub use dirty::{DirtyLog, DirtyTracking};
pub use notify::Notifier;
pub use receiver::{Arrival, Receiver, Trust};
pub use records::{Ownership, Record, RecordError, Records};
pub use source::{Outgoing, OutgoingVm};
