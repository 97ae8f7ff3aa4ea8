//! The devices of the machine, and the buses that lead to them.
//!
//! A device is asked by vCPU threads. It holds its own lock, for the time of one access, and never
//! while it waits for anything - but a virtio device waits for its own thread when it is reset.

mod bus;
mod cmos;
mod console;
mod debug_exit;
mod i8042;
mod machine;
pub(crate) mod power;
mod serial;
mod virtio;

pub use console::Console;
pub(crate) use machine::Devices;
pub use serial::{INPUT_BYTES_MAX, SerialSnapshot};
#[cfg(test)]
pub(crate) use virtio::DEVICE_COUNT_MAX;
pub use virtio::DeviceError;
pub(crate) use virtio::MmioPlace;
