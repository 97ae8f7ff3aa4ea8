//! The devices of the machine, and the buses that lead to them.
//!
//! A device is asked by vCPU threads. It holds its own lock, for the time of one access, and never
//! while it waits for anything.

mod bus;
mod cmos;
mod console;
mod debug_exit;
mod i8042;
mod machine;
mod serial;

pub use console::Console;
pub(crate) use machine::Devices;
pub use serial::{INPUT_BYTES_MAX, SerialSnapshot};
