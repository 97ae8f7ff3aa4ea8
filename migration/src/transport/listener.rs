//! A listening socket, TCP or Unix.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::{Address, Stream};

/// Listens for migrations. A Unix socket's file goes away with the listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `address`. The socket file of a dead process is replaced.
    ///
    /// # Errors
    /// What the bind returned, with the address: it is in use, not ours, or not allowed.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("listen at {address}: {e}"));
        match address {
            Address::Tcp { host, port } => {
                let socket = TcpListener::bind((host.as_str(), *port)).map_err(named)?;
                let port = socket.local_addr().map_err(named)?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Listener { socket: Socket::Tcp(socket), address })
            }
            Address::Unix(path) => {
                remove_stale(path);
                let socket = UnixListener::bind(path).map_err(named)?;
                Ok(Listener { socket: Socket::Unix(socket), address: address.clone() })
            }
        }
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether only this host can reach it: a Unix socket, or an address of the loopback.
    ///
    /// # Errors
    /// What the socket returned.
    pub fn is_local(&self) -> io::Result<bool> {
        match &self.socket {
            Socket::Tcp(socket) => Ok(socket.local_addr()?.ip().to_canonical().is_loopback()),
            Socket::Unix(_) => Ok(true),
        }
    }

    /// Waits for the next connection, which is plain: what TLS needs would keep others waiting.
    ///
    /// # Errors
    /// What accept returned.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                Stream::new(stream.into(), format!("tcp:{peer}"))
            }
            Socket::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                Stream::new(stream.into(), format!("{} (a local peer)", self.address))
            }
        }
    }

    /// Makes accept return instead of waiting where nobody connects.
    ///
    /// # Errors
    /// What the socket returned.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => socket.set_nonblocking(true),
            Socket::Unix(socket) => socket.set_nonblocking(true),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket file that nobody listens on. Anything else stays, and the bind says so.
fn remove_stale(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn both_kinds_connect_and_an_address_in_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}", dir.path().join("s").display());
        for text in ["tcp:127.0.0.1:0", unix.as_str()] {
            let listener = Listener::bind(&text.parse().unwrap()).unwrap();
            let client = Stream::connect(listener.address(), PATIENCE, None).unwrap();
            let server = listener.accept().unwrap();
            client.send(b"hello", false).unwrap();
            let mut bytes = [0; 5];
            assert!(server.receive_exact_or_end(&mut bytes).unwrap());
            assert_eq!(&bytes, b"hello");
            drop(client);
            assert!(!server.receive_exact_or_end(&mut bytes).unwrap());
            let again = Listener::bind(listener.address()).unwrap_err().to_string();
            assert!(again.contains(&listener.address().to_string()), "{again}");
        }
    }

    #[test]
    fn what_others_can_reach_is_told_from_what_they_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}", dir.path().join("s").display());
        for (text, local) in [
            ("tcp:127.0.0.1:0", true),
            ("tcp:127.8.9.1:0", true),
            ("tcp:localhost:0", true),
            (unix.as_str(), true),
            ("tcp:0.0.0.0:0", false),
        ] {
            let listener = Listener::bind(&text.parse().unwrap()).unwrap();
            assert_eq!(listener.is_local().unwrap(), local, "{text}");
        }
    }

    #[test]
    fn the_socket_of_a_dead_process_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&address).unwrap());
        std::fs::write(&path, b"data").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert!(path.exists());
    }
}
