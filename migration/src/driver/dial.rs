//! Connecting the channels of a session.

use std::io;
use std::time::Duration;

use crate::limits::PREAMBLE_TIMEOUT;
use crate::proto::PeerError;
use crate::transport::{Address, Stream, TlsConnector, TlsError, is_tls};
use crate::wire::{BulkHello, Channel, PREAMBLE_BYTES, Preamble, ResumeHello};

/// Connects a channel within `timeout` and exchanges preambles.
pub(super) fn dial(
    address: &Address,
    tls: Option<&TlsConnector>,
    channel: Channel,
    timeout: Duration,
) -> Result<Stream, PeerError> {
    let stream = Stream::connect(address, timeout, tls).map_err(|e| lost(&e))?;
    if channel == Channel::Bulk {
        stream.bound_bulk_buffers().map_err(|e| lost(&e))?;
    }
    stream.send(&Preamble::ours(channel).encode(), false).map_err(|e| lost(&e))?;
    stream.set_receive_timeout(Some(PREAMBLE_TIMEOUT)).map_err(|e| lost(&e))?;
    let mut answer = [0; PREAMBLE_BYTES];
    let received = stream.receive_exact_or_end(&mut answer);
    if is_tls(&answer) {
        let why = "it wants TLS: give --tls-dir to `godwit migrate` as well";
        return Err(PeerError::Lost(format!("{address}: {why}")));
    }
    match received {
        Ok(true) => {}
        Ok(false) => return Err(PeerError::Lost(format!("{address} closed the connection"))),
        Err(error) if TlsError::is_in(&error) => {
            return Err(PeerError::Lost(format!("{address}: {error}")));
        }
        Err(error) => {
            return Err(PeerError::Lost(format!("{address} does not answer as godwit: {error}")));
        }
    }
    Preamble::decode(&answer)?;
    stream.set_receive_timeout(None).map_err(|e| lost(&e))?;
    Ok(stream)
}

/// Connects a bulk channel of the session that `hello` names.
pub(super) fn dial_bulk(
    address: &Address,
    tls: Option<&TlsConnector>,
    hello: BulkHello,
    timeout: Duration,
) -> Result<Stream, PeerError> {
    let stream = dial(address, tls, Channel::Bulk, timeout)?;
    stream.send(&hello.encode(), false).map_err(|e| lost(&e))?;
    Ok(stream)
}

/// Connects an urgent channel that resumes the session that `hello` names.
pub(super) fn dial_resume(
    address: &Address,
    tls: Option<&TlsConnector>,
    hello: ResumeHello,
    timeout: Duration,
) -> Result<Stream, PeerError> {
    let stream = dial(address, tls, Channel::Resume, timeout)?;
    stream.send(&hello.encode(), false).map_err(|e| lost(&e))?;
    Ok(stream)
}

fn lost(error: &io::Error) -> PeerError {
    PeerError::Lost(error.to_string())
}
