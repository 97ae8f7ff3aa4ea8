//! A link between two real processes that knows the protocol: it forwards, keeps, changes or
//! breaks off whatever message the test says, on every channel of a session and of those that
//! resume it. It may be slow, too.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use godwit_migration::transport::Address;
use godwit_migration::wire::{
    self, BULK_HELLO_BYTES, Channel, Kind, PREAMBLE_BYTES, Preamble, RESUME_HELLO_BYTES,
};

use crate::peer::{Peer, PeerListener};

/// How much is read at once.
const READ_BYTES: usize = 1 << 18;
/// Most pieces that are under way in one direction of one connection.
const UNDER_WAY_MAX: usize = 16;

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
    /// On which connection of this link, counted from 1.
    pub connection: usize,
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
    /// It is lost, with all connections. New ones are let through.
    Cut,
    /// It is lost, with its connection, and nobody is told: packets to either end of it are
    /// dropped from now on. New connections are let through. TCP only.
    Vanish,
}

/// How slow a link is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What everything takes longer, in each direction.
    pub delay: Duration,
    /// The most bytes a second that all connections together carry in each direction.
    pub bytes_per_s: u32,
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
    /// What the channel of this kind and number begins with breaks the link.
    cut_at_hello: Mutex<Option<(Channel, usize)>>,
    pace: Option<Pace>,
    /// Until when each direction is taken.
    taken_until: [Mutex<Instant>; 2],
    outlets: Mutex<Vec<Arc<Mutex<Outlet>>>>,
    /// Each with the number of its connection.
    ends: Mutex<Vec<(usize, Peer)>>,
    vanished: Mutex<HashSet<usize>>,
    seen: Mutex<HashMap<(Side, u16), usize>>,
    callers: Mutex<HashMap<u8, usize>>,
    /// Nobody gets through.
    blocked: AtomicBool,
    ended: AtomicBool,
}

/// A direction of a connection.
#[derive(Clone, Copy)]
struct Lane {
    from: Side,
    connection: usize,
}

/// What arrives, and when.
type Piece = (Instant, Vec<u8>);

/// One direction of one connection.
struct Outlet {
    /// To the thread that sends.
    to: SyncSender<Piece>,
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
        Proxy::paced(to, None, rule)
    }

    /// The same, as slow as `pace`.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn paced(
        to: &Address,
        pace: Option<Pace>,
        rule: impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static,
    ) -> Proxy {
        let listener = PeerListener::tcp();
        let address = listener.address();
        let shared = Arc::new(Shared {
            to: to.clone(),
            rule: Mutex::new(Box::new(rule)),
            cut_at_hello: Mutex::default(),
            pace,
            taken_until: [(); 2].map(|()| Mutex::new(Instant::now())),
            outlets: Mutex::default(),
            ends: Mutex::default(),
            vanished: Mutex::default(),
            seen: Mutex::default(),
            callers: Mutex::default(),
            blocked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let accept = {
            let shared = Arc::clone(&shared);
            move || shared.accept_all(&listener)
        };
        Proxy { shared, address, accepting: Some(thread::spawn(accept)) }
    }

    /// A link that forwards everything.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn plain(to: &Address) -> Proxy {
        Proxy::start(to, |_| Fate::Forward)
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

    /// A link that breaks instead of carrying the first frame of this kind, and only then.
    ///
    /// # Panics
    /// If the host has no loopback.
    #[track_caller]
    pub fn that_cuts_at(to: &Address, kind: Kind) -> Proxy {
        Proxy::start(to, cuts_at(&[(kind, 1)]))
    }

    /// The address to give to the source.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How many frames of this kind have come from `side`.
    pub fn seen(&self, side: Side, kind: Kind) -> usize {
        *lock(&self.shared.seen).get(&(side, kind as u16)).unwrap_or(&0)
    }

    /// How many channels of this kind the source has begun.
    pub fn calls(&self, channel: Channel) -> usize {
        *lock(&self.shared.callers).get(&(channel as u8)).unwrap_or(&0)
    }

    /// Lets go of what is kept, and keeps and changes nothing from now on.
    pub fn release(&self) {
        self.decide(|_| Fate::Forward);
        let outlets = lock(&self.shared.outlets).clone();
        for outlet in outlets {
            let mut outlet = lock(&outlet);
            let held = std::mem::take(&mut outlet.held);
            // Whoever is gone by now does not miss it.
            let _ = outlet.to.send((Instant::now(), held));
        }
    }

    /// Breaks the link instead of carrying what the `number`th channel of this kind begins with,
    /// once.
    pub fn cut_at_hello(&self, channel: Channel, number: usize) {
        *lock(&self.shared.cut_at_hello) = Some((channel, number));
    }

    /// Lets `rule` decide from now on.
    pub fn decide(&self, rule: impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// Breaks all connections. New ones are let through.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Breaks all connections, and turns away new ones until [`Proxy::unblock`].
    pub fn block(&self) {
        self.shared.blocked.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Lets new connections through again.
    pub fn unblock(&self) {
        self.shared.blocked.store(false, Ordering::SeqCst);
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

/// A rule that breaks the link at the frame of each kind and number, counted from 1, and forwards
/// everything else.
pub fn cuts_at(
    frames: &[(Kind, usize)],
) -> impl FnMut(&mut Passing<'_>) -> Fate + Send + use<> + 'static {
    let mut left = frames.to_vec();
    move |passing| {
        for (_, number) in left.iter_mut().filter(|(kind, _)| *kind == passing.kind) {
            *number -= 1;
        }
        let before = left.len();
        left.retain(|(_, number)| *number > 0);
        if left.len() < before { Fate::Cut } else { Fate::Forward }
    }
}

/// A rule that keeps the frames of this kind from the `number`th on, and everything that follows
/// them.
pub fn holds_from(
    kind: Kind,
    number: usize,
) -> impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static {
    let mut left = number;
    move |passing| {
        if passing.kind == kind && left > 0 {
            left -= 1;
        }
        if left == 0 { Fate::Hold } else { Fate::Forward }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Shared>, listener: &PeerListener) {
        for connection in 1.. {
            let source = listener.accept_whenever();
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            // A destination that is not there is a connection that ends at once.
            if let Ok(destination) = Peer::try_connect(&self.to) {
                // Locked, so that a block comes before or after.
                let mut ends = lock(&self.ends);
                if self.blocked.load(Ordering::SeqCst) {
                    continue;
                }
                ends.extend([&source, &destination].map(|end| (connection, end.share())));
                drop(ends);
                let lane = |from| Lane { from, connection };
                self.carry(lane(Side::Source), source.share(), destination.share());
                self.carry(lane(Side::Destination), destination, source);
            }
        }
    }

    fn carry(self: &Arc<Shared>, lane: Lane, origin: Peer, to: Peer) {
        let (sender, pieces) = sync_channel(UNDER_WAY_MAX);
        let outlet = Arc::new(Mutex::new(Outlet { to: sender, held: Vec::new() }));
        lock(&self.outlets).push(Arc::clone(&outlet));
        thread::spawn(move || send_all(&pieces, to));
        let shared = Arc::clone(self);
        thread::spawn(move || {
            // An error is an end like any other: the other side learns it.
            let _ = shared.carry_frames(lane, origin, &outlet);
            lock(&shared.outlets).retain(|other| !Arc::ptr_eq(other, &outlet));
        });
    }

    fn carry_frames(&self, lane: Lane, mut origin: Peer, outlet: &Mutex<Outlet>) -> io::Result<()> {
        let Lane { from, connection } = lane;
        let mut preamble = [0; PREAMBLE_BYTES];
        origin.receive_all(&mut preamble)?;
        let channel = Preamble::decode(&preamble).map_err(io::Error::other)?.channel;
        self.forward(from, preamble.to_vec(), &lock(outlet))?;
        if from == Side::Source {
            let number = self.count_caller(channel);
            let mut hello = vec![0; hello_bytes(channel)];
            origin.receive_all(&mut hello)?;
            if lock(&self.cut_at_hello).take_if(|at| *at == (channel, number)).is_some() {
                self.cut();
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            self.forward(from, hello, &lock(outlet))?;
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
                let bytes = &mut bytes;
                self.pass(&mut Passing { from, channel, connection, kind, bytes }, outlet)?;
                done = end;
            }
            buffer.drain(..done);
        }
    }

    fn count_caller(&self, channel: Channel) -> usize {
        let mut callers = lock(&self.callers);
        let count = callers.entry(channel as u8).or_insert(0);
        *count += 1;
        *count
    }

    fn pass(&self, passing: &mut Passing<'_>, outlet: &Mutex<Outlet>) -> io::Result<()> {
        // Locked until it is kept or sent, so that a release comes before or after.
        let mut outlet = lock(outlet);
        let fate = match lock(&self.vanished).contains(&passing.connection) {
            true => Fate::Hold,
            false => (lock(&self.rule))(passing),
        };
        *lock(&self.seen).entry((passing.from, passing.kind as u16)).or_insert(0) += 1;
        match fate {
            Fate::Forward => self.forward(passing.from, std::mem::take(passing.bytes), &outlet),
            Fate::Hold => {
                outlet.held.extend_from_slice(passing.bytes);
                Ok(())
            }
            Fate::Cut => {
                self.cut();
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Fate::Vanish => {
                self.vanish(passing.connection);
                Ok(())
            }
        }
    }

    fn forward(&self, from: Side, bytes: Vec<u8>, outlet: &Outlet) -> io::Result<()> {
        let arrives = self.arrival(from, bytes.len());
        outlet.to.send((arrives, bytes)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// When so many bytes that are sent now arrive.
    fn arrival(&self, from: Side, bytes: usize) -> Instant {
        let now = Instant::now();
        let Some(Pace { delay, bytes_per_s }) = self.pace else { return now };
        let mut taken_until = lock(&self.taken_until[from as usize]);
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_s));
        *taken_until = (*taken_until).max(now) + takes;
        *taken_until + delay
    }

    fn cut(&self) {
        for (_, end) in lock(&self.ends).drain(..) {
            end.hang_up();
        }
    }

    fn vanish(&self, connection: usize) {
        lock(&self.vanished).insert(connection);
        let ends = lock(&self.ends);
        let its = ends.iter().filter(|(number, _)| *number == connection);
        its.for_each(|(_, end)| end.drop_packets());
    }
}

/// What follows the preamble of a channel and is no frame.
fn hello_bytes(channel: Channel) -> usize {
    match channel {
        Channel::Urgent => 0,
        Channel::Bulk => BULK_HELLO_BYTES,
        Channel::Resume => RESUME_HELLO_BYTES,
    }
}

/// Sends each piece when its time has come. The end of the pieces is that of the stream.
fn send_all(pieces: &Receiver<Piece>, mut to: Peer) {
    for (arrives, bytes) in pieces {
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if to.send(&bytes).is_err() {
            break;
        }
    }
    to.finish_sending();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use godwit_migration::wire::{BulkHello, Message};

    use super::*;
    use crate::speaker::{SESSION, Speaker, accept_bulk};

    /// Both ends of a channel over `link` to `listener`.
    fn connect(link: &Proxy, listener: &PeerListener) -> (Speaker, Speaker) {
        thread::scope(|scope| {
            let called = scope.spawn(|| Speaker::accept(listener, Channel::Urgent));
            let caller = Speaker::dial(link.address(), Channel::Urgent);
            (caller, called.join().expect("no panic"))
        })
    }

    fn carries(caller: &mut Speaker, called: &mut Speaker) {
        for number in 1..=3 {
            caller.say(&Message::Round { number }).expect("takes it");
            called.say(&Message::RoundDone { number }).expect("takes it");
        }
        for number in 1..=3 {
            assert_eq!(called.expect(Kind::Round).message(0), Message::Round { number });
            assert_eq!(caller.expect(Kind::RoundDone).message(0), Message::RoundDone { number });
        }
    }

    #[test]
    fn a_link_breaks_where_it_should_and_carries_what_comes_next() {
        let listener = PeerListener::tcp();
        let link = Proxy::start(&listener.address(), cuts_at(&[(Kind::Released, 2)]));
        let (mut caller, mut called) = connect(&link, &listener);
        carries(&mut caller, &mut called);
        called.say(&Message::Released).expect("takes it");
        caller.expect(Kind::Released);
        called.say(&Message::Released).expect("takes it");
        assert!(caller.peer.receive_to_end().is_empty());
        assert!(called.peer.receive_to_end().is_empty());
        let (mut caller, mut called) = connect(&link, &listener);
        called.say(&Message::Released).expect("takes it");
        caller.expect(Kind::Released);
        assert_eq!(link.seen(Side::Destination, Kind::Released), 3);
    }

    #[test]
    fn a_link_breaks_at_a_hello() {
        let listener = PeerListener::tcp();
        let link = Proxy::plain(&listener.address());
        link.cut_at_hello(Channel::Bulk, 2);
        let hello = BulkHello { session: SESSION, epoch: 0 }.encode();
        thread::scope(|scope| {
            let called = scope.spawn(|| {
                let _first = accept_bulk(&listener);
                let mut second = Speaker::accept(&listener, Channel::Bulk);
                assert!(second.peer.receive_to_end().is_empty());
            });
            let mut callers = [(); 2].map(|()| {
                let mut caller = Speaker::dial(link.address(), Channel::Bulk);
                caller.peer.send(&hello).expect("takes it");
                caller
            });
            called.join().expect("no panic");
            assert!(callers.iter_mut().all(|caller| caller.peer.receive_to_end().is_empty()));
        });
        assert_eq!(link.calls(Channel::Bulk), 2);
    }

    #[test]
    fn a_slow_link_carries_everything_in_order() {
        let listener = PeerListener::tcp();
        let pace = Pace { delay: Duration::from_millis(1), bytes_per_s: 64 << 10 };
        let link = Proxy::paced(&listener.address(), Some(pace), |_| Fate::Forward);
        let (mut caller, mut called) = connect(&link, &listener);
        carries(&mut caller, &mut called);
    }

    #[test]
    fn a_blocked_link_turns_everybody_away() {
        let listener = PeerListener::tcp();
        let link = Proxy::plain(&listener.address());
        let (mut caller, mut called) = connect(&link, &listener);
        link.block();
        assert!(caller.peer.receive_to_end().is_empty() && called.peer.receive_to_end().is_empty());
        assert!(Peer::connect(link.address()).receive_to_end().is_empty());
        link.unblock();
        // The one that was turned away has called as well.
        drop(listener.accept());
        let (mut caller, mut called) = connect(&link, &listener);
        carries(&mut caller, &mut called);
    }
}
