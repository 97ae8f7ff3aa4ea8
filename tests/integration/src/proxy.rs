//! A link between two real processes that knows the protocol: it forwards, keeps, changes or
//! breaks off whatever message the test says.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use godwit_migration::transport::Address;
use godwit_migration::wire::{self, Channel, Kind, PREAMBLE_BYTES, Preamble};

use crate::peer::{Peer, PeerListener};

/// Bytes of the name of a session, behind the preamble of a bulk channel.
const SESSION_BYTES: usize = 16;
/// How much is read at once.
const READ_BYTES: usize = 1 << 18;

/// Who has sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source, which connects.
    Source,
    /// The destination, which listens.
    Destination,
}

/// A frame on its way.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Who has sent it.
    pub from: Side,
    /// On which channel.
    pub channel: Channel,
    /// What it is.
    pub kind: Kind,
    /// All of it, which may be changed.
    pub bytes: &'a mut Vec<u8>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Forward,
    /// It is kept until [`Proxy::release`]. Frames behind it may overtake it.
    Hold,
    /// It is lost, with all connections.
    Cut,
}

type Rule = Box<dyn FnMut(&mut Passing<'_>) -> Fate + Send>;

/// A link to one address. It ends with this value.
pub struct Proxy {
    shared: Arc<Shared>,
    address: Address,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    to: Address,
    rule: Mutex<Rule>,
    outlets: Mutex<Vec<Arc<Mutex<Outlet>>>>,
    ends: Mutex<Vec<Peer>>,
    seen: Mutex<HashMap<(Side, u16), usize>>,
    ended: AtomicBool,
}

/// One direction of one connection.
struct Outlet {
    to: Peer,
    held: Vec<u8>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// A link to `to`, on which `rule` decides for each frame.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn start(
        to: &Address,
        rule: impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static,
    ) -> Proxy {
        let listener = PeerListener::tcp();
        let address = listener.address();
        let shared = Arc::new(Shared {
            to: to.clone(),
            rule: Mutex::new(Box::new(rule)),
            outlets: Mutex::default(),
            ends: Mutex::default(),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accept = {
            let shared = Arc::clone(&shared);
            move || shared.accept_all(&listener)
        };
        Proxy { shared, address, accepting: Some(thread::spawn(accept)) }
    }

    /// A link that keeps all pages until [`Proxy::release`], and forwards all else.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn that_keeps_pages(to: &Address) -> Proxy {
        Proxy::start(to, |passing| match passing.kind {
            Kind::Pages | Kind::PushEnd => Fate::Hold,
            _ => Fate::Forward,
        })
    }

    /// A link that keeps every frame of this kind until [`Proxy::release`].
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn that_holds(to: &Address, kind: Kind) -> Proxy {
        Proxy::start(to, move |passing| match passing.kind {
            now if now == kind => Fate::Hold,
            _ => Fate::Forward,
        })
    }

    /// A link that breaks instead of carrying the first frame of this kind.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn that_cuts_at(to: &Address, kind: Kind) -> Proxy {
        Proxy::start(to, move |passing| match passing.kind {
            now if now == kind => Fate::Cut,
            _ => Fate::Forward,
        })
    }

    /// The address to give to the source.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How many frames of this kind have come from `side`.
    pub fn seen(&self, side: Side, kind: Kind) -> usize {
        *lock(&self.shared.seen).get(&(side, kind as u16)).unwrap_or(&0)
    }

    /// Lets go of what is kept, and keeps and changes nothing from now on.
    pub fn release(&self) {
        *lock(&self.shared.rule) = Box::new(|_| Fate::Forward);
        for outlet in lock(&self.shared.outlets).iter() {
            let mut outlet = lock(outlet);
            let held = std::mem::take(&mut outlet.held);
            // Whoever is gone by now does not miss it.
            let _ = outlet.to.send(&held);
        }
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.shared.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        if let (Address::Tcp { host, port }, Some(accepting)) =
            (&self.address, self.accepting.take())
        {
            // It waits for a caller: this one.
            if TcpStream::connect((host.as_str(), *port)).is_ok() {
                let _ = accepting.join();
            }
        }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Shared>, listener: &PeerListener) {
        loop {
            let source = listener.accept_whenever();
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            // A destination that is not there is a connection that ends at once.
            if let Ok(destination) = Peer::try_connect(&self.to) {
                lock(&self.ends).extend([source.share(), destination.share()]);
                self.carry(Side::Source, source.share(), destination.share());
                self.carry(Side::Destination, destination, source);
            }
        }
    }

    fn carry(self: &Arc<Shared>, from: Side, origin: Peer, to: Peer) {
        let outlet = Arc::new(Mutex::new(Outlet { to, held: Vec::new() }));
        lock(&self.outlets).push(Arc::clone(&outlet));
        let shared = Arc::clone(self);
        thread::spawn(move || {
            // An error is an end like any other: the other side learns it.
            let _ = shared.carry_frames(from, origin, &outlet);
            lock(&outlet).to.finish_sending();
        });
    }

    fn carry_frames(&self, from: Side, mut origin: Peer, outlet: &Mutex<Outlet>) -> io::Result<()> {
        let mut preamble = [0; PREAMBLE_BYTES];
        origin.receive_all(&mut preamble)?;
        lock(outlet).to.send(&preamble)?;
        let channel = Preamble::decode(&preamble).map_err(io::Error::other)?.channel;
        if (from, channel) == (Side::Source, Channel::Bulk) {
            let mut session = [0; SESSION_BYTES];
            origin.receive_all(&mut session)?;
            lock(outlet).to.send(&session)?;
        }
        let mut buffer = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let count = origin.receive_some(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&chunk[..count]);
            let mut done = 0;
            while let Some(frame) = wire::decode(&buffer[done..]).map_err(io::Error::other)? {
                let (kind, end) = (frame.kind, done + frame.wire_bytes());
                let mut bytes = buffer[done..end].to_vec();
                self.pass(&mut Passing { from, channel, kind, bytes: &mut bytes }, outlet)?;
                done = end;
            }
            buffer.drain(..done);
        }
    }

    fn pass(&self, passing: &mut Passing<'_>, outlet: &Mutex<Outlet>) -> io::Result<()> {
        // Locked until it is kept or sent, so that a release comes before or after.
        let mut outlet = lock(outlet);
        let fate = (lock(&self.rule))(passing);
        *lock(&self.seen).entry((passing.from, passing.kind as u16)).or_insert(0) += 1;
        match fate {
            Fate::Forward => outlet.to.send(passing.bytes),
            Fate::Hold => {
                outlet.held.extend_from_slice(passing.bytes);
                Ok(())
            }
            Fate::Cut => {
                self.cut();
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    fn cut(&self) {
        for end in lock(&self.ends).iter() {
            end.hang_up();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
