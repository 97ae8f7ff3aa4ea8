//! A peer that says what the test wants, byte by byte, on the same sockets as a real one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use godwit_migration::transport::Address;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_linger;
use socket2::{SockFilter, SockRef};

use crate::DEADLINE;
use crate::process::timespec;

/// One end of a connection, held by the test.
#[derive(Debug)]
pub enum Peer {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Peer {
    /// Connects to where a process listens.
    ///
    /// # Panics
    /// If nobody does.
    #[track_caller]
    pub fn connect(address: &Address) -> Peer {
        let connected = Peer::try_connect(address);
        connected.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects to where a process may listen.
    ///
    /// # Errors
    /// Nobody does.
    pub fn try_connect(address: &Address) -> io::Result<Peer> {
        let connected = match address {
            Address::Tcp { host, port } => {
                TcpStream::connect((host.as_str(), *port)).map(Peer::Tcp)
            }
            Address::Unix(path) => UnixStream::connect(path).map(Peer::Unix),
        };
        connected.map(Peer::set_deadlines)
    }

    /// The same end once more, for another thread.
    ///
    /// # Panics
    /// If no descriptor is to be had.
    #[track_caller]
    #[must_use]
    pub fn share(&self) -> Peer {
        let shared = match self {
            Peer::Tcp(stream) => stream.try_clone().map(Peer::Tcp),
            Peer::Unix(stream) => stream.try_clone().map(Peer::Unix),
        };
        shared.expect("a descriptor")
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// The other side hangs up before, or they do not come in time.
    pub fn receive_all(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Peer::Tcp(stream) => stream.read_exact(bytes),
            Peer::Unix(stream) => stream.read_exact(bytes),
        }
    }

    /// Receives what there is, at least one byte; 0 when the other side has hung up.
    ///
    /// # Errors
    /// The connection is broken, or nothing comes in time.
    pub fn receive_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.read(bytes),
            Peer::Unix(stream) => stream.read(bytes),
        }
    }

    /// Ends both directions, whoever else holds this end.
    pub fn hang_up(&self) {
        // It fails only if the other side has done so.
        let _ = match self {
            Peer::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Peer::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Sends these bytes. `Err` is how the other side may answer: by hanging up.
    ///
    /// # Errors
    /// The other side has closed or reset the connection, or does not read any more.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Peer::Tcp(stream) => stream.write_all(bytes),
            Peer::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Sends these bytes again and again until the other side hangs up.
    ///
    /// # Panics
    /// If it has not after `rounds`.
    #[track_caller]
    pub fn flood(&mut self, bytes: &[u8], rounds: usize) {
        let refused = (0..rounds).any(|_| self.send(bytes).is_err());
        assert!(refused, "the other side took {rounds} times {} bytes", bytes.len());
    }

    /// Receives exactly `count` bytes.
    ///
    /// # Panics
    /// If the other side hangs up before, or they do not come in time.
    #[track_caller]
    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        match self.receive_all(&mut bytes) {
            Ok(()) => bytes,
            Err(error) => panic!("expected {count} bytes from the other side: {error}"),
        }
    }

    /// Receives until the other side hangs up, politely or not, and returns what came before.
    ///
    /// # Panics
    /// If it does not hang up in time.
    #[track_caller]
    pub fn receive_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ended = match self {
            Peer::Tcp(stream) => stream.read_to_end(&mut bytes),
            Peer::Unix(stream) => stream.read_to_end(&mut bytes),
        };
        match ended {
            Ok(_) => bytes,
            Err(error) if is_hang_up(&error) => bytes,
            Err(error) => panic!("the other side did not hang up: {error}"),
        }
    }

    /// Says that nothing more will come, and goes on listening.
    pub fn finish_sending(&mut self) {
        // It fails only if the other side is gone, which the next call finds out as well.
        let _ = match self {
            Peer::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Peer::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Breaks the connection off: over TCP the other side gets a reset and not an end of stream.
    pub fn reset(self) {
        if let Peer::Tcp(stream) = &self {
            // Only a descriptor that is no socket could refuse this.
            let _ = set_socket_linger(stream, Some(std::time::Duration::ZERO));
        }
    }

    /// From now on every packet that comes to this end is dropped before TCP sees it, as if there
    /// were no link any more: nothing is answered, not even a keepalive.
    ///
    /// # Panics
    /// On a Unix socket, which has no packets.
    #[track_caller]
    pub fn drop_packets(&self) {
        let Peer::Tcp(stream) = self else { panic!("a Unix socket has no packets to drop") };
        // BPF_RET with 0: nothing of the packet is kept.
        let filter = [SockFilter::new(6, 0, 0, 0)];
        SockRef::from(stream).attach_filter(&filter).expect("a socket takes a filter");
    }

    fn set_deadlines(self) -> Peer {
        let set = match &self {
            Peer::Tcp(stream) => stream
                .set_read_timeout(Some(DEADLINE))
                .and_then(|()| stream.set_write_timeout(Some(DEADLINE)))
                .and_then(|()| stream.set_nodelay(true)),
            Peer::Unix(stream) => stream
                .set_read_timeout(Some(DEADLINE))
                .and_then(|()| stream.set_write_timeout(Some(DEADLINE))),
        };
        set.expect("a socket takes a deadline");
        self
    }
}

/// Where the test listens as if it were a real destination.
#[derive(Debug)]
pub enum PeerListener {
    /// On a port of 127.0.0.1 that the kernel chose.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener, Address),
}

impl PeerListener {
    /// Listens on a free port of the loopback.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn tcp() -> PeerListener {
        PeerListener::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port on the loopback"))
    }

    /// Listens on a Unix socket at `path`.
    ///
    /// # Panics
    /// If that cannot be made.
    #[track_caller]
    pub fn unix(path: &Path) -> PeerListener {
        let listener = UnixListener::bind(path);
        let listener = listener.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        PeerListener::Unix(listener, Address::Unix(path.to_owned()))
    }

    /// The address to give to a source.
    pub fn address(&self) -> Address {
        match self {
            PeerListener::Tcp(listener) => {
                let port = listener.local_addr().expect("a bound socket").port();
                Address::Tcp { host: "127.0.0.1".to_owned(), port }
            }
            PeerListener::Unix(_, address) => address.clone(),
        }
    }

    /// Waits for a connection.
    ///
    /// # Panics
    /// If none comes in time.
    #[track_caller]
    pub fn accept(&self) -> Peer {
        assert!(self.has_caller(), "nobody connected to {} within {DEADLINE:?}", self.address());
        self.accept_whenever()
    }

    /// Waits for a connection as long as it takes.
    ///
    /// # Panics
    /// If the socket fails.
    #[track_caller]
    pub fn accept_whenever(&self) -> Peer {
        let accepted = match self {
            PeerListener::Tcp(listener) => listener.accept().map(|(stream, _)| Peer::Tcp(stream)),
            PeerListener::Unix(listener, _) => {
                listener.accept().map(|(stream, _)| Peer::Unix(stream))
            }
        };
        accepted.expect("a connection").set_deadlines()
    }

    fn has_caller(&self) -> bool {
        let mut waiting = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        poll(&mut waiting, Some(&timespec(DEADLINE))) == Ok(1)
    }
}

impl AsFd for PeerListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            PeerListener::Tcp(listener) => listener.as_fd(),
            PeerListener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// A real process that refuses us closes with our bytes unread, which is a reset.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn both_ways(listener: &PeerListener) {
        let mut caller = Peer::connect(&listener.address());
        let mut called = listener.accept();
        caller.send(b"hello").expect("sends");
        assert_eq!(called.receive(5), b"hello");
        called.send(b"and good").expect("sends");
        called.send(b"bye").expect("sends");
        called.finish_sending();
        assert_eq!(caller.receive_to_end(), b"and goodbye");
    }

    #[test]
    fn bytes_go_both_ways_over_tcp_and_unix() {
        both_ways(&PeerListener::tcp());
        let folder = crate::TestDir::new();
        both_ways(&PeerListener::unix(&folder.path("peer")));
    }

    #[test]
    fn a_reset_is_an_end_too() {
        let listener = PeerListener::tcp();
        let mut caller = Peer::connect(&listener.address());
        listener.accept().reset();
        assert_eq!(caller.receive_to_end(), b"");
    }

    #[test]
    fn packets_that_are_dropped_tell_nobody() {
        let listener = PeerListener::tcp();
        let mut caller = Peer::connect(&listener.address());
        let mut called = listener.accept();
        called.drop_packets();
        caller.send(b"in vain").expect("nobody says that it does not arrive");
        let Peer::Tcp(stream) = &called else { unreachable!("called over TCP") };
        stream.set_nonblocking(true).expect("a socket");
        caller.finish_sending();
        called.send(b"back").expect("sends");
        assert_eq!(caller.receive(4), b"back");
        let nothing = called.receive_some(&mut [0; 8]).expect_err("nothing came, not even an end");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_flood_ends_when_the_other_side_hangs_up() {
        let listener = PeerListener::tcp();
        let mut caller = Peer::connect(&listener.address());
        let called = listener.accept();
        let hang_up = thread::spawn(move || drop(called));
        caller.flood(&[0xff; 1 << 16], 1 << 16);
        hang_up.join().expect("no panic");
    }
}
