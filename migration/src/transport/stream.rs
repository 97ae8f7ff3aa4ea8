//! A connected stream, TCP or Unix, plain or with TLS.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use socket2::SockRef;

use super::tls::TlsStream;
use super::{Address, TlsConnector};
use crate::limits::PEER_TIMEOUT;

/// Bytes that a bulk channel keeps in flight. A page that is asked for while it is among them waits
/// for those before it, so the buffer is bounded: 2 MiB is about a millisecond of loopback.
const BULK_BUFFER_BYTES: usize = 1 << 20;
/// Bytes of those that have not left the sender. On a link that is slower than the sender this is
/// what grows, on each channel: it is a millisecond of a gigabit a second.
const BULK_UNSENT_BYTES: u32 = 128 << 10;

/// What to do when there is nothing to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenIdle {
    /// Wait for the first bytes.
    Wait,
    /// Return at once.
    Return,
}

/// A connection to a peer, with the name by which errors call it.
///
/// It is no descriptor to the outside: whoever wrote to one would go around TLS, and whoever polled
/// one would sleep while TLS has bytes for him. [`Stream::pollable`] and [`Stream::plain_socket`]
/// are for those who have to.
pub struct Stream {
    fd: OwnedFd,
    peer: String,
    /// `None` on a plain stream, which takes no lock.
    tls: Option<Box<TlsStream>>,
}

impl Stream {
    /// Connects to `address` within `timeout`, and with `tls` makes sure that it is who it should
    /// be: the certificate there has to have the name or address that is dialled, or `localhost`
    /// for a Unix socket.
    ///
    /// # Errors
    /// What the last address tried returned, or a [`super::TlsError`]; each message names the
    /// address.
    pub fn connect(
        address: &Address,
        timeout: Duration,
        tls: Option<&TlsConnector>,
    ) -> io::Result<Stream> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("connect to {address}: {e}"));
        let fd = match address {
            Address::Tcp { host, port } => {
                connect_tcp((host.as_str(), *port), timeout).map_err(named)?.into()
            }
            Address::Unix(path) => UnixStream::connect(path).map_err(named)?.into(),
        };
        let stream = Stream::new(fd, address.to_string())?;
        match tls {
            Some(tls) => tls.connect(stream, address).map_err(named),
            None => Ok(stream),
        }
    }

    /// Takes over a connected socket, as a plain stream.
    ///
    /// # Errors
    /// A descriptor that is not a stream socket.
    pub fn new(fd: OwnedFd, peer: String) -> io::Result<Stream> {
        let stream = Stream { fd, peer, tls: None };
        if stream.is_tcp() {
            sockopt::set_tcp_nodelay(&stream.fd, true)?;
            sockopt::set_socket_keepalive(&stream.fd, true)?;
            sockopt::set_tcp_keepidle(&stream.fd, PEER_TIMEOUT / 2)?;
            sockopt::set_tcp_keepintvl(&stream.fd, Duration::from_secs(1))?;
            sockopt::set_tcp_keepcnt(&stream.fd, 5)?;
        }
        sockopt::set_socket_timeout(&stream.fd, sockopt::Timeout::Send, Some(PEER_TIMEOUT))?;
        Ok(stream)
    }

    /// The same stream, whose bytes go through `tls` from now on.
    pub(super) fn secured(mut self, tls: TlsStream) -> Stream {
        self.tls = Some(Box::new(tls));
        self
    }

    fn is_tcp(&self) -> bool {
        sockopt::tcp_nodelay(&self.fd).is_ok()
    }

    /// Bounds what is in flight on a bulk channel.
    ///
    /// # Errors
    /// What the socket returned.
    pub fn bound_bulk_buffers(&self) -> io::Result<()> {
        sockopt::set_socket_send_buffer_size(&self.fd, BULK_BUFFER_BYTES)?;
        sockopt::set_socket_recv_buffer_size(&self.fd, BULK_BUFFER_BYTES)?;
        if self.is_tcp() {
            SockRef::from(&self.fd).set_tcp_notsent_lowat(BULK_UNSENT_BYTES)?;
        }
        Ok(())
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Limits how long a receive waits; `None` waits for ever.
    ///
    /// # Errors
    /// What the socket returned.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, timeout)?)
    }

    /// Receives into `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if nothing came in time. With TLS an end that the
    /// peer did not announce is an error.
    pub fn receive(&self, buffer: &mut [u8], idle: WhenIdle) -> io::Result<usize> {
        if let Some(tls) = &self.tls {
            return tls.receive(self.fd(), buffer, idle);
        }
        let flags = match idle {
            WhenIdle::Wait => RecvFlags::empty(),
            WhenIdle::Return => RecvFlags::DONTWAIT,
        };
        retry(|| rustix::net::recv(&self.fd, &mut *buffer, flags).map(|(_, bytes)| bytes))
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// What the socket returned; `UnexpectedEof` if the stream ended before the last byte, be it
    /// before the first.
    pub fn receive_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        match self.receive_exact_or_end(buffer)? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Fills `buffer`, where the stream may end in good order. False if it ended before its first
    /// byte.
    ///
    /// # Errors
    /// What the socket returned; `UnexpectedEof` if the stream ended inside.
    pub fn receive_exact_or_end(&self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.receive_much(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => filled += bytes,
            }
        }
        Ok(true)
    }

    /// Waits for as many bytes as the socket can give at once.
    fn receive_much(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(tls) = &self.tls {
            return tls.receive(self.fd(), buffer, WhenIdle::Wait);
        }
        let flags = RecvFlags::WAITALL;
        retry(|| rustix::net::recv(&self.fd, &mut *buffer, flags).map(|(_, bytes)| bytes))
    }

    /// Sends all of `bytes`. `more` tells the kernel that contents follow at once, so that a head
    /// does not travel in a segment of its own.
    ///
    /// # Errors
    /// What the socket returned; `WouldBlock` if the peer took nothing for too long.
    pub fn send(&self, mut bytes: &[u8], more: bool) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            return tls.send(self.fd(), bytes, more);
        }
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        while !bytes.is_empty() {
            let flags = more | SendFlags::NOSIGNAL;
            let sent = retry(|| rustix::net::send(&self.fd, bytes, flags))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Ends both directions: whoever waits on this stream returns.
    pub fn shutdown(&self) {
        self.say_farewell();
        // An unconnected socket is shut down already.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// With TLS, the end of a stream is something that is said.
    fn say_farewell(&self) {
        if let Some(tls) = &self.tls {
            tls.say_farewell(self.fd());
        }
    }

    /// What to poll: readable when a receive would not wait, until the next receive. With TLS that
    /// is not always the socket, so ask anew before every poll.
    pub fn pollable(&self) -> BorrowedFd<'_> {
        match &self.tls {
            Some(tls) => tls.pollable(self.fd()),
            None => self.fd(),
        }
    }

    /// The socket, for whoever wants to move bytes without this type; `None` with TLS.
    pub fn plain_socket(&self) -> Option<BorrowedFd<'_>> {
        self.tls.is_none().then(|| self.fd())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.say_farewell();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = self.tls.is_some();
        f.debug_struct("Stream").field("peer", &self.peer).field("tls", &tls).finish()
    }
}

pub(super) fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn connect_tcp(at: impl ToSocketAddrs, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in at.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
