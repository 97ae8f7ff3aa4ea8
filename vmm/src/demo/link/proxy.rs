//! The proxy itself: accepts, connects on, and ends everything when it is dropped.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_migration::driver::Notifier;
use godwit_migration::transport::{Address, Listener, Stream};
use rustix::event::{PollFd, PollFlags, poll};

use super::Link;
use super::connection::{Connection, Lane};
use super::tap::{Direction, MakeTap};
use super::wire::Wire;

/// How long the destination may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a proxy does beside passing bytes on.
#[derive(Default)]
pub struct Options {
    /// The rate and delay to keep; without one, none.
    pub link: Option<Link>,
    /// Makes the taps; without it there are none.
    pub taps: Option<Box<MakeTap>>,
}

/// A proxy with its threads. Dropping it breaks every connection.
pub struct Proxy {
    address: Address,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    destination: Address,
    taps: Option<Box<MakeTap>>,
    to_destination: Arc<Wire>,
    to_source: Arc<Wire>,
    connections: Mutex<Vec<Connection>>,
    stop: Notifier<()>,
}

impl Proxy {
    /// Listens at `listen` and connects on to `destination`.
    ///
    /// # Errors
    /// The address cannot be listened on, or no thread is to be had.
    pub fn start(listen: &Address, destination: Address, options: Options) -> io::Result<Proxy> {
        let listener = Listener::bind(listen)?;
        listener.set_nonblocking()?;
        let shared = Arc::new(Shared {
            destination,
            taps: options.taps,
            to_destination: Arc::new(Wire::new(options.link)),
            to_source: Arc::new(Wire::new(options.link)),
            connections: Mutex::default(),
            stop: Notifier::new()?,
        });
        let address = listener.address().clone();
        let accept = {
            let shared = Arc::clone(&shared);
            move || shared.accept_all(&listener)
        };
        let accepting = std::thread::Builder::new().name("godwit-link".into()).spawn(accept)?;
        Ok(Proxy { address, shared, accepting: Some(accepting) })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Breaks every connection that there is, both ways, with what is under way. Later ones work.
    pub fn cut(&self) {
        self.shared.connections().iter().for_each(Connection::cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.send(());
        if let Some(accepting) = self.accepting.take() {
            // A tap maker that panicked has said so.
            let _ = accepting.join();
        }
        self.shared.connections().clear();
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(&self, listener: &Listener) {
        for number in 0.. {
            let accepted = loop {
                match self.wait_for_connection(listener) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return tracing::error!(%error, "the link accepts no more"),
                }
                match listener.accept() {
                    Ok(stream) => break stream,
                    // It died in the queue: the next may do.
                    Err(error) => tracing::debug!(%error, "a connection could not be accepted"),
                }
            };
            match self.connect(accepted, number) {
                Ok(connection) => {
                    let mut connections = self.connections();
                    connections.retain(|connection| !connection.is_over());
                    connections.push(connection);
                }
                Err(error) => tracing::warn!(%error, "a connection could not be passed on"),
            }
        }
    }

    /// False if the proxy is to stop.
    fn wait_for_connection(&self, listener: &Listener) -> io::Result<bool> {
        let mut fds = [listener.as_fd(), self.stop.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) => Ok(fds[1].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn connect(&self, source: Stream, number: usize) -> io::Result<Connection> {
        let destination = Stream::connect(&self.destination, CONNECT_TIMEOUT, None)?;
        let lane = |direction, wire: &Arc<Wire>| {
            let tap = self.taps.as_ref().and_then(|make| make(number, direction));
            Lane { direction, wire: Arc::clone(wire), tap }
        };
        let lanes = [
            lane(Direction::ToDestination, &self.to_destination),
            lane(Direction::ToSource, &self.to_source),
        ];
        Connection::start(source, destination, lanes)
    }
}
