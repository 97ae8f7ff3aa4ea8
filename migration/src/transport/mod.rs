//! Addresses, listeners and streams: `tcp:` and `unix:`.

mod address;
mod listener;
mod stream;

pub use address::{Address, AddressError};
pub use listener::Listener;
pub use stream::{Stream, WhenIdle};
