//! The door: accepts connections, tells godwit from strangers, and channels from each other.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::channel::wait_readable;
use super::notify::Notifier;
use super::records::Records;
use super::text::in_full;
use crate::limits::PREAMBLE_TIMEOUT;
use crate::proto::Answer;
use crate::transport::{Address, Listener, Stream, TlsAcceptor, WhenIdle, is_tls};
use crate::wire::{
    Abort, BULK_HELLO_BYTES, BulkHello, Channel, Complete, Message, PREAMBLE_BYTES, Preamble,
    RESUME_HELLO_BYTES, ResumeHello, encode,
};

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

/// A channel of the session that is under way.
#[derive(Debug)]
pub(super) enum Joining {
    /// A bulk channel of this epoch.
    Bulk { stream: Stream, epoch: u32 },
    /// An urgent channel in place of one that was lost.
    Resume { stream: Stream, epoch: u32 },
}

/// Takes in the channels of the session that is under way.
type Sink = Box<dyn Fn(Joining) + Send>;

struct Door {
    /// Why no source may come in now.
    busy: Option<String>,
    session: Option<([u8; 16], Sink)>,
    /// The last session that is over, and what its source is told if it has not heard it.
    over: Option<([u8; 16], Message<'static>)>,
}

/// Listens for sources; one at a time comes in.
pub struct Receiver {
    shared: Arc<Shared>,
    accepting: Mutex<Vec<JoinHandle<()>>>,
    address: Address,
}

struct Shared {
    door: Mutex<Door>,
    records: Records,
    arrivals: Notifier<Arrival>,
    stop: Notifier<()>,
    strangers: AtomicUsize,
    tls: Option<TlsAcceptor>,
    /// Nobody from elsewhere may come in.
    this_host: bool,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Listens at `address` for those whom `trust` lets in. `records` tell sources what became of
    /// guests that no process has.
    ///
    /// # Errors
    /// An address that is in use or not allowed, or that others can reach who are not trusted; no
    /// thread or descriptor to be had.
    pub fn bind(address: &Address, trust: Trust, records: Records) -> io::Result<Receiver> {
        let listener = Listener::bind(address)?;
        let (tls, this_host) = match trust {
            Trust::Certificates(tls) => (Some(tls), false),
            Trust::Everybody => (None, false),
            Trust::ThisHost => (None, true),
        };
        check_reach(this_host, &listener, address)?;
        let shared = Arc::new(Shared {
            door: Mutex::new(Door { busy: None, session: None, over: None }),
            records,
            arrivals: Notifier::new()?,
            stop: Notifier::new()?,
            strangers: AtomicUsize::new(0),
            tls,
            this_host,
        });
        let (address, accepting) = (listener.address().clone(), Mutex::default());
        let receiver = Receiver { shared, accepting, address };
        receiver.accept_from(listener)?;
        Ok(receiver)
    }

    /// Listens at another address as well, and says where.
    ///
    /// # Errors
    /// As [`Receiver::bind`].
    pub fn listen_also(&self, address: &Address) -> io::Result<Address> {
        let listener = Listener::bind(address)?;
        check_reach(self.shared.this_host, &listener, address)?;
        let address = listener.address().clone();
        self.accept_from(listener)?;
        Ok(address)
    }

    fn accept_from(&self, listener: Listener) -> io::Result<()> {
        listener.set_nonblocking()?;
        let shared = Arc::clone(&self.shared);
        let accept = move || accept_loop(&listener, &shared);
        let thread = std::thread::Builder::new().name("godwit-accept".into()).spawn(accept)?;
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
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

    /// Hands the channels that name `session` to `sink`.
    pub(super) fn expect(&self, session: [u8; 16], sink: Sink) {
        let mut door = self.shared.door();
        door.session = Some((session, sink));
        door.over = None;
    }

    /// Turns channels of sessions away again. A source of the session that asks once more is told
    /// `last_words`.
    pub(super) fn expect_no_more(&self, last_words: Option<Message<'static>>) {
        let mut door = self.shared.door();
        if let Some((session, _)) = door.session.take() {
            door.over = last_words.map(|words| (session, words));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.send(());
        let accepting = self.accepting.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in accepting.drain(..) {
            thread.join().expect("the accept loop does not panic");
        }
    }
}

impl Shared {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where nobody from elsewhere may come in, nobody from elsewhere can reach the listener.
fn check_reach(this_host: bool, listener: &Listener, address: &Address) -> io::Result<()> {
    if this_host && !listener.is_local()? {
        return Err(reachable(address));
    }
    Ok(())
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
            let mut hello = [0; BULK_HELLO_BYTES];
            if !stream.receive_exact_or_end(&mut hello)? {
                return Err(silent());
            }
            let BulkHello { session, epoch } = BulkHello::decode(&hello);
            stream.set_receive_timeout(None)?;
            stream.bound_bulk_buffers()?;
            match &shared.door().session {
                Some((expected, sink)) if *expected == session => {
                    sink(Joining::Bulk { stream, epoch });
                    Ok(())
                }
                _ => Err(io::Error::other("a bulk channel of no session")),
            }
        }
        Channel::Resume => {
            let mut hello = [0; RESUME_HELLO_BYTES];
            if !stream.receive_exact_or_end(&mut hello)? {
                return Err(silent());
            }
            stream.set_receive_timeout(None)?;
            resume(stream, ResumeHello::decode(&hello), shared)
        }
    }
}

/// A source that was granted away its guest and has lost us. The session that is under way takes it
/// in; of one that is over it is told how it ended.
fn resume(stream: Stream, hello: ResumeHello, shared: &Shared) -> io::Result<()> {
    let (session, epoch) = (hello.session, hello.epoch);
    let last_words = {
        let door = shared.door();
        if let Some((expected, sink)) = &door.session
            && *expected == session
        {
            sink(Joining::Resume { stream, epoch });
            return Ok(());
        }
        door.over.clone().filter(|(over, _)| *over == session)
    };
    let message = match last_words {
        Some((_, words)) => words,
        None => from_records(&hello, stream.peer(), shared),
    };
    tracing::info!(peer = stream.peer(), answer = ?message.kind(), "a source asks what became");
    let mut bytes = Vec::new();
    encode(&message, &mut bytes);
    stream.send(&bytes, false)?;
    // It closes when it has read that; closing first could take it away unread.
    stream.set_receive_timeout(Some(PREAMBLE_TIMEOUT))?;
    let _ = stream.receive(&mut [0; 64], WhenIdle::Wait);
    Ok(())
}

fn from_records(hello: &ResumeHello, peer: &str, shared: &Shared) -> Message<'static> {
    let transfer = hello.transfer;
    match shared.records.answer(hello.guest, transfer, peer) {
        Ok(Answer::Refused | Answer::Refuse) => {
            let reason = "the connection was lost before the grant arrived".to_owned();
            Message::Refused { transfer, reason }
        }
        Ok(Answer::Gone) => Message::Gone { transfer },
        Ok(Answer::MovedOn) => Message::Complete(Complete::moved_on()),
        Ok(Answer::Unknown(reason)) => Message::Abort(Abort { reason }),
        Err(error) => Message::Abort(Abort { reason: in_full(&error) }),
    }
}

fn turn_away(stream: &Stream, reason: String) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(&Message::Abort(Abort { reason: reason.clone() }), &mut bytes);
    stream.send(&bytes, false)?;
    Err(io::Error::other(reason))
}
