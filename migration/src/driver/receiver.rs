//! The door: accepts connections, tells godwit from strangers, and channels from each other.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::channel::wait_readable;
use super::notify::Notifier;
use crate::limits::PREAMBLE_TIMEOUT;
use crate::transport::{Address, Listener, Stream, TlsAcceptor, is_tls};
use crate::wire::{Abort, Channel, Message, PREAMBLE_BYTES, Preamble, encode};

/// Connections that may be saying what they are at the same time.
const STRANGERS_MAX: usize = 16;

/// Whom a receiver lets in.
#[derive(Debug)]
pub enum Trust {
    /// Whoever is on this host: it does not listen where others could reach it.
    ThisHost,
    /// Whoever has a certificate of our CA.
    Certificates(TlsAcceptor),
    /// Everybody.
    Everybody,
}

/// A source has come in: its urgent channel, preambles exchanged.
#[derive(Debug)]
pub struct Arrival {
    pub(super) stream: Stream,
}

impl Arrival {
    /// Who it is.
    pub fn peer(&self) -> &str {
        self.stream.peer()
    }
}

/// Takes in the bulk channels of the session that is under way.
type BulkSink = Box<dyn Fn(Stream) + Send>;

struct Door {
    /// Why no source may come in now.
    busy: Option<String>,
    session: Option<([u8; 16], BulkSink)>,
}

/// Listens for sources; one at a time comes in.
pub struct Receiver {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    address: Address,
}

struct Shared {
    door: Mutex<Door>,
    arrivals: Notifier<Arrival>,
    stop: Notifier<()>,
    strangers: AtomicUsize,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Listens at `address` for those whom `trust` lets in.
    ///
    /// # Errors
    /// An address that is in use or not allowed, or that others can reach who are not trusted; no
    /// thread or descriptor to be had.
    pub fn bind(address: &Address, trust: Trust) -> io::Result<Receiver> {
        let listener = Listener::bind(address)?;
        let tls = match trust {
            Trust::Certificates(tls) => Some(tls),
            Trust::Everybody => None,
            Trust::ThisHost if listener.is_local()? => None,
            Trust::ThisHost => return Err(reachable(address)),
        };
        listener.set_nonblocking()?;
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            door: Mutex::new(Door { busy: None, session: None }),
            arrivals: Notifier::new()?,
            stop: Notifier::new()?,
            strangers: AtomicUsize::new(0),
            tls,
        });
        let accept = {
            let shared = Arc::clone(&shared);
            move || accept_loop(&listener, &shared)
        };
        let accepting = std::thread::Builder::new().name("godwit-accept".into()).spawn(accept)?;
        Ok(Receiver { shared, accepting: Some(accepting), address })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Readable when a source has come in.
    pub fn arrivals(&self) -> &Notifier<Arrival> {
        &self.shared.arrivals
    }

    /// Lets the next source in.
    pub fn open(&self) {
        let mut door = self.shared.door();
        door.busy = None;
        door.session = None;
    }

    /// Turns sources away with this reason.
    pub fn close(&self, reason: String) {
        self.shared.door().busy = Some(reason);
    }

    /// Hands the bulk channels that name `session` to `sink`.
    pub(super) fn expect_bulk(&self, session: [u8; 16], sink: BulkSink) {
        self.shared.door().session = Some((session, sink));
    }

    /// Turns bulk channels away again.
    pub(super) fn expect_no_bulk(&self) {
        self.shared.door().session = None;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.send(());
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the accept loop does not panic");
        }
    }
}

impl Shared {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reachable(address: &Address) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "not listening at {address}, where other hosts could send guests: give --tls-dir DIR \
             to let in only those with a certificate, or --insecure to let in everybody"
        ),
    )
}

fn accept_loop(listener: &Listener, shared: &Arc<Shared>) {
    loop {
        match wait_readable([listener.as_fd(), shared.stop.as_fd()], None) {
            Ok([_, true]) => return,
            Ok(_) => {}
            Err(error) => return tracing::error!(%error, "cannot listen any more"),
        }
        match listener.accept() {
            Ok(stream) => greet_on_a_thread(stream, shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The connection died in the queue, or descriptors are short: the next may do.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::yield_now();
            }
        }
    }
}

fn greet_on_a_thread(stream: Stream, shared: &Arc<Shared>) {
    if shared.strangers.fetch_add(1, Ordering::AcqRel) >= STRANGERS_MAX {
        shared.strangers.fetch_sub(1, Ordering::AcqRel);
        return tracing::warn!(peer = stream.peer(), "too many connections at once: closed");
    }
    let greet = {
        let shared = Arc::clone(shared);
        move || {
            let peer = stream.peer().to_owned();
            if let Err(error) = greet(stream, &shared) {
                tracing::warn!(peer, %error, "turned away");
            }
            shared.strangers.fetch_sub(1, Ordering::AcqRel);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("godwit-greet".into()).spawn(greet) {
        shared.strangers.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "a connection could not be greeted");
    }
}

fn greet(mut stream: Stream, shared: &Shared) -> io::Result<()> {
    if let Some(tls) = &shared.tls {
        stream = tls.accept(stream)?;
    }
    stream.set_receive_timeout(Some(PREAMBLE_TIMEOUT))?;
    let mut preamble = [0; PREAMBLE_BYTES];
    let silent = || io::Error::other("it closed before it said what it is");
    if !stream.receive_exact_or_end(&mut preamble)? {
        return Err(silent());
    }
    let theirs = Preamble::decode(&preamble);
    // Answered in any case, so that a godwit of another version, or with TLS, can tell what it met.
    let channel = theirs.as_ref().map_or(Channel::Urgent, |theirs| theirs.channel);
    stream.send(&Preamble::ours(channel).encode(), false)?;
    if is_tls(&preamble) {
        return Err(io::Error::other("it wants TLS: give --tls-dir to `godwit receive` as well"));
    }
    match theirs.map_err(io::Error::other)?.channel {
        Channel::Urgent => {
            stream.set_receive_timeout(None)?;
            let mut door = shared.door();
            if let Some(reason) = &door.busy {
                let reason = reason.clone();
                drop(door);
                return turn_away(&stream, reason);
            }
            door.busy = Some("another guest is on its way here".into());
            shared.arrivals.send(Arrival { stream });
            Ok(())
        }
        Channel::Bulk => {
            let mut session = [0; 16];
            if !stream.receive_exact_or_end(&mut session)? {
                return Err(silent());
            }
            stream.set_receive_timeout(None)?;
            stream.bound_bulk_buffers()?;
            match &shared.door().session {
                Some((expected, sink)) if *expected == session => sink(stream),
                _ => return Err(io::Error::other("a bulk channel of no session")),
            }
            Ok(())
        }
    }
}

fn turn_away(stream: &Stream, reason: String) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(&Message::Abort(Abort { reason: reason.clone() }), &mut bytes);
    stream.send(&bytes, false)?;
    Err(io::Error::other(reason))
}
