//! TLS 1.3 with certificates on both sides, for streams.
//!
//! * `config`: the files, and how a connection begins;
//! * `stream`: what a stream calls: locks and waits;
//! * `session`: rustls and its buffers, without waiting;
//! * `error`: what goes wrong, in words.

mod buffer;
mod config;
mod error;
mod session;
mod stream;
#[cfg(test)]
mod tests;

pub use config::{TlsAcceptor, TlsConnector};
pub use error::{TlsError, TlsFileError};
pub(super) use stream::TlsStream;

/// Whether bytes that a peer sent begin a record of TLS, and not a preamble.
pub fn is_tls(first: &[u8]) -> bool {
    // Content types from change_cipher_spec to application_data, and the version, which says 3
    // for every TLS.
    matches!(first, [20..=23, 3, ..])
}
