//! Connecting the channels of a session.

use std::io;
use std::time::Duration;

use crate::limits::{PREAMBLE_TIMEOUT, SETUP_TIMEOUT};
use crate::proto::PeerError;
use crate::transport::{Address, Stream, TlsConnector, TlsError, is_tls};
use crate::wire::{
    BulkHello, Channel, Offer, PREAMBLE_BYTES, Preamble, ResumeHello, VERSION_WITH_BASE,
};

/// Connects the urgent channel on which `offer` is to be made.
pub(super) fn dial_for(
    offer: &Offer,
    address: &Address,
    tls: Option<&TlsConnector>,
) -> Result<Stream, String> {
    let dialled = dial(address, tls, Channel::Urgent, SETUP_TIMEOUT);
    let (stream, version) = dialled.map_err(|error| error.to_string())?;
    if offer.base.is_some() && version < VERSION_WITH_BASE {
        return Err(format!(
            "{address} speaks version {version} of the protocol, which knows no base: leave out \
             --base, or update the receiver"
        ));
    }
    Ok(stream)
}

/// Connects a channel within `timeout` and exchanges preambles. Says the newest version that the
/// other side speaks.
fn dial(
    address: &Address,
    tls: Option<&TlsConnector>,
    channel: Channel,
    timeout: Duration,
) -> Result<(Stream, u16), PeerError> {
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
    let Preamble { version, .. } = Preamble::decode(&answer)?;
    stream.set_receive_timeout(None).map_err(|e| lost(&e))?;
    Ok((stream, version))
}

/// Connects a bulk channel of the session that `hello` names.
pub(super) fn dial_bulk(
    address: &Address,
    tls: Option<&TlsConnector>,
    hello: BulkHello,
    timeout: Duration,
) -> Result<Stream, PeerError> {
    let (stream, _) = dial(address, tls, Channel::Bulk, timeout)?;
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
    let (stream, _) = dial(address, tls, Channel::Resume, timeout)?;
    stream.send(&hello.encode(), false).map_err(|e| lost(&e))?;
    Ok(stream)
}

fn lost(error: &io::Error) -> PeerError {
    PeerError::Lost(error.to_string())
}
