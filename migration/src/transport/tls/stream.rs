//! The TLS of a stream: a session that threads share, and the waiting for its socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::error::{TlsError, What};
use super::session::Session;
use crate::limits::PREAMBLE_TIMEOUT;
use crate::transport::WhenIdle;

/// Plaintext that is sealed and sent at once.
const SEND_BYTES: usize = 128 << 10;

/// The TLS of one stream, whose socket stays with the stream.
///
/// The socket is never waited for while the session is locked, so that a thread that receives and
/// one that sends do not wait for each other.
pub(in crate::transport) struct TlsStream {
    session: Mutex<Session>,
    /// A receive may have something to give that is no longer in the socket.
    holds: AtomicBool,
    /// Always readable.
    ready: Arc<OwnedFd>,
}

impl TlsStream {
    /// Shakes hands over `fd`, within the time for preambles.
    ///
    /// # Errors
    /// What the socket returned, or why one side refuses the other; `TimedOut`.
    pub(super) fn handshake(
        mut session: Session,
        fd: BorrowedFd<'_>,
        ready: Arc<OwnedFd>,
    ) -> io::Result<TlsStream> {
        let deadline = Instant::now() + PREAMBLE_TIMEOUT;
        let side = session.side();
        let slow = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no TLS handshake within {} s", PREAMBLE_TIMEOUT.as_secs()),
            ),
            _ => error,
        };
        loop {
            let shaken = session.shake_hands();
            let written = loop {
                match session.write_out(fd, false) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        wait(fd, PollFlags::OUT, Some(deadline)).map_err(slow)?;
                    }
                    other => break other,
                }
            };
            // Why it failed is said by the handshake, and then by the peer, and only then by the
            // socket.
            shaken?;
            written.map_err(|error| said_by_peer(&mut session, fd, error))?;
            if !session.is_handshaking() {
                break;
            }
            match session.read_in(fd) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(fd, PollFlags::IN, Some(deadline)).map_err(slow)?;
                }
                // Cut, or reset.
                Err(_) => return Err(TlsError::new(side, What::HungUp).into()),
                Ok(()) => {}
            }
        }
        let holds = AtomicBool::new(session.holds_something());
        Ok(TlsStream { session: Mutex::new(session), holds, ready })
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor that is readable when a receive would not wait, if `fd` is the socket. True
    /// until the next receive.
    pub fn pollable<'a>(&'a self, fd: BorrowedFd<'a>) -> BorrowedFd<'a> {
        if self.holds.load(Ordering::Acquire) { self.ready.as_fd() } else { fd }
    }

    /// Receives into `buffer`; 0 if the peer ended the stream in good order.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if nothing came in time; a [`TlsError`].
    pub fn receive(
        &self,
        fd: BorrowedFd<'_>,
        buffer: &mut [u8],
        idle: WhenIdle,
    ) -> io::Result<usize> {
        let mut deadline = None;
        loop {
            let received = {
                let mut session = self.session();
                let received = session.receive(fd, buffer);
                let holds = received.is_ok() && session.holds_something();
                self.holds.store(holds, Ordering::Release);
                if received.is_err() && session.has_outbound() {
                    // An alert, so that the peer knows. Or what another thread is sending.
                    let _ = session.write_out(fd, false);
                }
                received
            };
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if idle == WhenIdle::Return {
                        return Err(error);
                    }
                }
                other => return other,
            }
            if deadline.is_none() {
                let timeout = sockopt::socket_timeout(fd, sockopt::Timeout::Recv)?;
                deadline = timeout.map(|timeout| Instant::now() + timeout);
            }
            wait(fd, PollFlags::IN, deadline)?;
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if the peer took nothing for too long; a [`TlsError`]
    /// if the peer said why it takes nothing more.
    pub fn send(&self, fd: BorrowedFd<'_>, bytes: &[u8], more: bool) -> io::Result<()> {
        let mut pieces = bytes.chunks(SEND_BYTES).peekable();
        while let Some(piece) = pieces.next() {
            let more = more || pieces.peek().is_some();
            let mut session = self.session();
            session.seal(piece)?;
            loop {
                match session.write_out(fd, more) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(said_by_peer(&mut session, fd, error)),
                }
                drop(session);
                let timeout = sockopt::socket_timeout(fd, sockopt::Timeout::Send)?;
                wait(fd, PollFlags::OUT, timeout.map(|timeout| Instant::now() + timeout))?;
                session = self.session();
            }
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes, if the socket takes it at once.
    pub fn say_farewell(&self, fd: BorrowedFd<'_>) {
        self.session().say_farewell(fd);
    }
}

/// The reason that the peer gave before it closed the connection, or else `error`. The peer refuses
/// a certificate while this side sends already, and what it said is still in the socket then.
fn said_by_peer(session: &mut Session, fd: BorrowedFd<'_>, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            session.last_words(fd).map_or(error, io::Error::from)
        }
        _ => error,
    }
}

/// Waits until `fd` is ready, which it is as well when it was shut down.
///
/// # Errors
/// `WouldBlock` at the deadline; what poll returned.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], timeout.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
