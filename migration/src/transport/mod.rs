//! Addresses, listeners and streams: `tcp:` and `unix:`, plain or with TLS.

mod address;
mod listener;
mod stream;
mod tls;

pub use address::{Address, AddressError};
pub use listener::Listener;
pub use stream::{Stream, WhenIdle};
pub use tls::{TlsAcceptor, TlsConnector, TlsError, TlsFileError, is_tls};
