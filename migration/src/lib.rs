//! The migration engine: a guest that runs on memory whose pages are still somewhere else.
//!
//! Layers, lowest first; a module imports only from those listed before it:
//!
//! * [`limits`]: every bound of the protocol, by name;
//! * [`page`]: the state of each page: claims at the destination, sent pages at the source;
//! * [`wire`]: frames and messages;
//! * [`schedule`]: what to push next, when to stand back, when rounds end;
//! * [`proto`]: the state machines of both sides, without I/O and without a clock;
//! * [`provider`]: who has the bytes of a page;
//! * [`snapshot`]: guests on disk, as files and as a page provider;
//! * [`metrics`]: timeline, latencies and counts;
//! * [`transport`]: addresses, listeners and streams;
//! * [`driver`]: threads, sockets, the clock and durable records around `proto`.
#![forbid(unsafe_code)]

pub mod driver;
pub mod limits;
pub mod metrics;
pub mod page;
pub mod proto;
pub mod provider;
pub mod schedule;
pub mod snapshot;
pub mod transport;
pub mod wire;
