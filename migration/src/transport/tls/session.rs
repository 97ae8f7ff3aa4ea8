//! One TLS connection over a socket that is never waited for: plaintext on one side, records on
//! the other.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::{RecvFlags, SendFlags};
use rustls::Error;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use super::buffer::Buffer;
use super::error::{Side, TlsError, What};
use crate::transport::stream::retry;

/// Bytes of records that are received at once. A message of the handshake has to fit; it may be
/// 64 KiB, and rustls refuses longer ones.
const INBOUND_BYTES: usize = 256 << 10;
/// Plaintext of one record, at most.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// What a record costs beside its plaintext, at most: header, content type, tag.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// The first byte of a preamble, by which a peer without TLS is known. No record begins with it.
pub(super) const PREAMBLE_FIRST_BYTE: u8 = 0x89;

/// Either end of a TLS connection. Both are the same from the outside.
pub(super) enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// A connection and the bytes on their way through it.
pub(super) struct Session {
    connection: Connection,
    /// Records that came and have not been opened.
    inbound: Buffer,
    /// What was opened and not yet taken, because nobody had room for it.
    plaintext: Buffer,
    /// Records that have not been sent.
    outbound: Buffer,
    /// The peer has said that it sends nothing more.
    ended: bool,
    /// We have said so.
    farewell: bool,
    failed: Option<Error>,
}

/// What is to be put into records.
#[derive(Clone, Copy)]
enum Seal<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Farewell,
}

/// What a step may do beside what the connection needs for itself.
struct Want<'a> {
    seal: Seal<'a>,
    /// Where plaintext goes first.
    open: &'a mut [u8],
    opened: usize,
}

/// How a step ended.
#[derive(PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    Went,
    /// What was to be sealed is.
    Sealed,
    /// Nothing to do without more records.
    Starved,
    /// The peer has ended its direction.
    Ended,
}

impl Session {
    pub fn new(connection: Connection) -> Session {
        Session {
            connection,
            inbound: Buffer::new(INBOUND_BYTES),
            plaintext: Buffer::new(0),
            outbound: Buffer::new(0),
            ended: false,
            farewell: false,
            failed: None,
        }
    }

    pub fn side(&self) -> Side {
        match &self.connection {
            Connection::Client(_) => Side::Client,
            Connection::Server(_) => Side::Server,
        }
    }

    pub fn is_handshaking(&self) -> bool {
        match &self.connection {
            Connection::Client(client) => client.is_handshaking(),
            Connection::Server(server) => server.is_handshaking(),
        }
    }

    /// Whether a receive may have something to give without the socket. A record that is not whole
    /// counts until a receive has found that out.
    pub fn holds_something(&self) -> bool {
        !self.plaintext.is_empty() || !self.inbound.is_empty() || self.ended
    }

    /// Receives what is there; 0 if the peer has ended the stream, or `buffer` is empty.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        let opened = self.plaintext.take(buffer);
        let mut want = Want { seal: Seal::Nothing, open: buffer, opened };
        while want.opened < want.open.len() && !self.ended {
            match self.step(&mut want)? {
                Step::Starved if want.opened > 0 => break,
                Step::Starved => {
                    // An answer to the peer, such as new keys. What does not leave now leaves with
                    // the next send.
                    let _ = self.write_out(fd, false);
                    self.read_in(fd)?;
                }
                Step::Went | Step::Sealed | Step::Ended => {}
            }
        }
        Ok(want.opened)
    }

    /// Puts `bytes` into records, to be written out.
    pub fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.farewell {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.seal_it(Seal::Bytes(bytes))
    }

    /// Tells the peer that nothing more will come, as far as that is possible at once.
    pub fn say_farewell(&mut self, fd: BorrowedFd<'_>) {
        if !std::mem::replace(&mut self.farewell, true) && !self.is_handshaking() {
            let _ = self.seal_it(Seal::Farewell).and_then(|()| self.write_out(fd, false));
        }
    }

    fn seal_it(&mut self, seal: Seal<'_>) -> io::Result<()> {
        let mut want = Want { seal, open: &mut [], opened: 0 };
        loop {
            match self.step(&mut want)? {
                Step::Sealed => return Ok(()),
                Step::Went | Step::Ended => {}
                Step::Starved => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// Sends the records that wait.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if it took not all of them.
    pub fn write_out(&mut self, fd: BorrowedFd<'_>, more: bool) -> io::Result<()> {
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = more | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.outbound.is_empty() {
            let sent = retry(|| rustix::net::send(fd, self.outbound.filled(), flags))?;
            self.outbound.consume(sent);
        }
        Ok(())
    }

    /// Goes on with the handshake as far as possible without waiting.
    ///
    /// # Errors
    /// A peer that is refused or refuses. Records may wait that tell it so.
    pub fn shake_hands(&mut self) -> Result<(), TlsError> {
        let mut want = Want { seal: Seal::Nothing, open: &mut [], opened: 0 };
        loop {
            let plain = self.inbound.filled().first() == Some(&PREAMBLE_FIRST_BYTE);
            match self.step(&mut want) {
                Ok(Step::Starved | Step::Ended) => return Ok(()),
                Ok(Step::Went | Step::Sealed) => {}
                Err(_) if plain => return Err(TlsError::new(self.side(), What::PeerIsPlain)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether records wait to be sent.
    pub fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Receives records.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if nothing is there; the end of the stream, which
    /// the peer should have announced.
    pub fn read_in(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let side = self.side();
        let spare = self.inbound.spare();
        if spare.is_empty() {
            let error = Error::General("a message that is too long".into());
            return Err(TlsError::new(side, What::Broken(error)).into());
        }
        let flags = RecvFlags::DONTWAIT;
        match retry(|| rustix::net::recv(fd, &mut *spare, flags).map(|(_, bytes)| bytes))? {
            0 => Err(TlsError::new(side, What::Cut).into()),
            bytes => {
                self.inbound.fill(bytes);
                Ok(())
            }
        }
    }

    /// Why the peer has closed the connection, if it said so before it did.
    pub fn last_words(&mut self, fd: BorrowedFd<'_>) -> Option<TlsError> {
        // What does not end the connection is dropped with it.
        let _ = self.read_in(fd);
        let mut want = Want { seal: Seal::Nothing, open: &mut [], opened: 0 };
        loop {
            match self.step(&mut want) {
                Ok(Step::Went) => {}
                Ok(_) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Lets the connection do one thing.
    fn step(&mut self, want: &mut Want<'_>) -> Result<Step, TlsError> {
        let side = self.side();
        if let Some(error) = &self.failed {
            return Err(TlsError::from_rustls(side, error.clone()));
        }
        let step = self.process(want);
        if let Ok(Step::Ended) = step {
            self.ended = true;
        }
        step.map_err(|error| {
            // An alert is all that may come now. The peer learns from it what is wrong.
            let _ = self.process(&mut Want { seal: Seal::Nothing, open: &mut [], opened: 0 });
            self.failed = Some(error.clone());
            TlsError::from_rustls(side, error)
        })
    }

    fn process(&mut self, want: &mut Want<'_>) -> Result<Step, Error> {
        let inbound = self.inbound.filled_mut();
        let (plaintext, outbound) = (&mut self.plaintext, &mut self.outbound);
        let (consumed, step) = match &mut self.connection {
            Connection::Client(client) => {
                take_step(client.process_tls_records(inbound), want, plaintext, outbound)
            }
            Connection::Server(server) => {
                take_step(server.process_tls_records(inbound), want, plaintext, outbound)
            }
        };
        self.inbound.consume(consumed);
        step
    }
}

/// Does what `status` asks for. How many bytes of inbound records are used up, and how it went.
fn take_step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    want: &mut Want<'_>,
    plaintext: &mut Buffer,
    outbound: &mut Buffer,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                want.take(record.payload, plaintext);
            }
            Ok(Step::Went)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            fill(outbound, RECORD_BYTES_MAX, |spare| {
                data.encode(spare).map_err(|error| match error {
                    EncodeError::InsufficientSize(size) => Some(size.required_size),
                    EncodeError::AlreadyEncoded => None,
                })
            })?;
            Ok(Step::Went)
        }
        ConnectionState::TransmitTlsData(data) => {
            // They are in the queue, and nothing overtakes them there.
            data.done();
            Ok(Step::Went)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            let size = |error| match error {
                EncryptError::InsufficientSize(size) => Some(size.required_size),
                EncryptError::EncryptExhausted => None,
            };
            match want.seal {
                Seal::Nothing => return Ok(Step::Starved),
                Seal::Bytes(bytes) => fill(outbound, sealed_bytes_max(bytes.len()), |spare| {
                    traffic.encrypt(bytes, spare).map_err(size)
                })?,
                Seal::Farewell => fill(outbound, sealed_bytes_max(0), |spare| {
                    traffic.queue_close_notify(spare).map_err(size)
                })?,
            }
            Ok(Step::Sealed)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Starved),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Ended),
        _ => Err(Error::General("early data, which was not allowed".into())),
    });
    (discard, step)
}

/// Room for `bytes` of plaintext in records, and for two more records, such as new keys.
fn sealed_bytes_max(bytes: usize) -> usize {
    bytes + (bytes / RECORD_BYTES_MAX + 3) * RECORD_OVERHEAD_BYTES * 2
}

/// Lets `write` fill the end of `buffer`. It says how many bytes it needs, if there are too few, or
/// that it can write no more.
fn fill(
    buffer: &mut Buffer,
    bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), Error> {
    let written = match write(buffer.reserve(bytes)) {
        Err(Some(needed)) => write(buffer.reserve(needed)),
        other => other,
    };
    match written {
        Ok(written) => {
            buffer.fill(written);
            Ok(())
        }
        Err(_) => Err(Error::EncryptError),
    }
}

impl Want<'_> {
    /// Takes plaintext; what finds no room goes to `rest`.
    fn take(&mut self, payload: &[u8], rest: &mut Buffer) {
        let open = &mut self.open[self.opened..];
        let (now, later) = payload.split_at(payload.len().min(open.len()));
        open[..now.len()].copy_from_slice(now);
        self.opened += now.len();
        if !later.is_empty() {
            rest.append(later);
        }
    }
}
