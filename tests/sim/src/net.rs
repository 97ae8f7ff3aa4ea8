//! A virtual network: streams of bytes that come late, stop, break or fall silent.
//!
//! A stream keeps the order of its bytes and loses none unless it breaks, as TCP does. What TCP
//! tells of a dead peer is told here after the same time: a sender that cannot send, and a
//! keepalive without an answer, after [`PEER_TIMEOUT`].

use std::collections::VecDeque;
use std::time::Duration;

use godwit_migration::limits::PEER_TIMEOUT;

use crate::rng::Rng;

/// A stream, by its number.
pub type Stream = usize;

/// One side of a stream: the one that dialled, or the one that was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub stream: Stream,
    pub side: usize,
}

impl End {
    fn peer(self) -> usize {
        1 - self.side
    }
}

/// What a receive finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Bytes(Vec<u8>),
    /// The peer closed it.
    End,
    /// It broke.
    Broken,
    Nothing,
}

/// A send on a stream that is closed or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Closed,
    Broken,
}

/// Bytes that were sent at once.
#[derive(Debug)]
struct Segment {
    at: Duration,
    bytes: Vec<u8>,
    /// It begins with the header of a frame.
    head: bool,
}

/// The bytes from one side to the other.
#[derive(Debug, Default)]
struct Way {
    segments: VecDeque<Segment>,
    last: Option<(Duration, Last)>,
    newest: Duration,
    /// Nothing arrives before.
    stalled: Duration,
    /// Nothing that is sent arrives any more, and nobody says so.
    silent: bool,
    /// Bytes sent into the silence.
    sunk: usize,
}

#[derive(Debug)]
struct Connection {
    ways: [Way; 2],
    /// This side has closed it.
    closed: [bool; 2],
    hosts: [usize; 2],
    bulk: bool,
    /// When the keepalive gives up.
    dead_at: Option<Duration>,
}

/// All streams of a run.
#[derive(Debug)]
pub struct Net {
    connections: Vec<Connection>,
    pub latency: Duration,
    pub per_kib: Duration,
    /// Until when no two hosts reach each other.
    pub apart_until: Duration,
}

impl Net {
    pub fn new(latency: Duration, per_kib: Duration) -> Net {
        Net { connections: Vec::new(), latency, per_kib, apart_until: Duration::ZERO }
    }

    /// A new stream from a host to another.
    pub fn connect(&mut self, from: usize, to: usize) -> Stream {
        self.connections.push(Connection {
            ways: [Way::default(), Way::default()],
            closed: [false; 2],
            hosts: [from, to],
            bulk: false,
            dead_at: None,
        });
        self.connections.len() - 1
    }

    pub fn is_bulk(&mut self, stream: Stream) {
        self.connections[stream].bulk = true;
    }

    /// Sends bytes; `head` says that they begin with the header of a frame.
    pub fn send(&mut self, end: End, now: Duration, bytes: &[u8], head: bool) -> Result<(), Lost> {
        let took = self.latency + self.per_kib * u32::try_from(bytes.len() / 1024).unwrap_or(0);
        let connection = &mut self.connections[end.stream];
        let broken = connection.broken(end, now);
        if connection.closed[end.side] || broken {
            return Err(Lost);
        }
        // Whoever has closed it says so to the first bytes, and the next find it broken.
        if connection.closed[end.peer()] && !connection.ways[end.peer()].silent {
            let back = &mut connection.ways[end.peer()];
            back.newest = back.newest.max(now + 2 * self.latency);
            back.last = Some((back.newest, Last::Broken));
        }
        let way = &mut connection.ways[end.side];
        if way.silent || way.last.is_some() || connection.closed[end.peer()] {
            way.sunk += bytes.len();
            return Ok(());
        }
        way.newest = way.newest.max(now + took);
        way.segments.push_back(Segment { at: way.newest, bytes: bytes.to_vec(), head });
        Ok(())
    }

    /// Bytes that were sent from here and not received.
    pub fn in_flight(&self, end: End) -> usize {
        let way = &self.connections[end.stream].ways[end.side];
        way.sunk + way.segments.iter().map(|segment| segment.bytes.len()).sum::<usize>()
    }

    /// When a receive here finds something, if nothing else happens.
    pub fn readable_at(&self, end: End) -> Option<Duration> {
        let connection = &self.connections[end.stream];
        if connection.closed[end.side] {
            return Some(Duration::ZERO);
        }
        let way = &connection.ways[end.peer()];
        let first = way.segments.front().map(|segment| segment.at.max(way.stalled));
        let last = way.last.map(|(at, _)| at.max(way.stalled));
        [first.or(last), connection.dead_at].into_iter().flatten().min()
    }

    /// Receives what is there, or a part of it.
    pub fn receive(&mut self, end: End, now: Duration, rng: &mut Rng) -> Received {
        let connection = &mut self.connections[end.stream];
        if connection.closed[end.side] {
            return Received::End;
        }
        let dead = connection.dead_at.is_some_and(|at| at <= now);
        let way = &mut connection.ways[end.peer()];
        let mut bytes = Vec::new();
        while let Some(segment) = way.segments.front_mut() {
            if segment.at > now || way.stalled > now {
                break;
            }
            if !bytes.is_empty() && rng.chance(50) {
                break;
            }
            if segment.bytes.len() > 1 && rng.chance(15) {
                let rest = segment.bytes.split_off(1 + rng.below(segment.bytes.len() - 1));
                bytes.append(&mut segment.bytes);
                (segment.bytes, segment.head) = (rest, false);
                break;
            }
            bytes.append(&mut segment.bytes);
            way.segments.pop_front();
        }
        match way.last {
            _ if !bytes.is_empty() => Received::Bytes(bytes),
            _ if dead => Received::Broken,
            Some((at, last)) if way.segments.is_empty() && at.max(way.stalled) <= now => match last
            {
                Last::Closed => Received::End,
                Last::Broken => Received::Broken,
            },
            _ => Received::Nothing,
        }
    }

    /// This side closes both directions. What it has sent may still arrive.
    pub fn close(&mut self, end: End, now: Duration) {
        let at = now + self.latency;
        let connection = &mut self.connections[end.stream];
        if std::mem::replace(&mut connection.closed[end.side], true) {
            return;
        }
        let way = &mut connection.ways[end.side];
        if !way.silent && way.last.is_none() {
            way.newest = way.newest.max(at);
            way.last = Some((way.newest, Last::Closed));
        }
        connection.ways[end.peer()].segments.clear();
    }

    /// The process of one side is gone: what is under way arrives in part.
    pub fn kill(&mut self, end: End, now: Duration, rng: &mut Rng) {
        self.close(end, now);
        self.connections[end.stream].ways[end.side].truncate(rng);
    }

    /// The stream breaks, in the middle of what is under way.
    pub fn cut(&mut self, stream: Stream, now: Duration, rng: &mut Rng) {
        let at = now + self.latency;
        for way in &mut self.connections[stream].ways {
            if rng.chance(70) {
                way.truncate(rng);
            }
            way.newest = way.newest.max(at);
            way.last = Some((way.newest, Last::Broken));
        }
    }

    /// Nothing arrives any more in these directions, and nobody says so.
    pub fn silence(&mut self, stream: Stream, ways: [bool; 2], now: Duration, rng: &mut Rng) {
        self.swallow(stream, ways, rng);
        let connection = &mut self.connections[stream];
        // The keepalive is asked after half of the time and then every second.
        let dead_at = now + PEER_TIMEOUT + rng.millis(0, 1500);
        connection.dead_at = Some(connection.dead_at.map_or(dead_at, |at| at.min(dead_at)));
    }

    /// The same, but something between the hosts answers the keepalive.
    pub fn swallow(&mut self, stream: Stream, ways: [bool; 2], rng: &mut Rng) {
        for (way, silent) in self.connections[stream].ways.iter_mut().zip(ways) {
            if silent && !way.silent {
                way.truncate(rng);
                way.silent = true;
                way.last = None;
            }
        }
    }

    pub fn stall(&mut self, stream: Stream, way: usize, until: Duration) {
        self.connections[stream].ways[way].stalled = until;
    }

    /// Damages the header of a frame that is under way so that it is none. False if there is none.
    pub fn corrupt(&mut self, stream: Stream, way: usize) -> bool {
        let segments = &mut self.connections[stream].ways[way].segments;
        let Some(segment) = segments.iter_mut().find(|s| s.head && s.bytes.len() >= 2) else {
            return false;
        };
        segment.bytes[..2].fill(0xff);
        true
    }

    /// The streams that are not closed at both ends, as far as `wanted` says.
    pub fn open(&self, wanted: impl Fn(&[usize; 2], bool) -> bool) -> Vec<Stream> {
        let open = |c: &Connection| !(c.closed[0] || c.closed[1]);
        let all = self.connections.iter().enumerate();
        let found = all.filter(|(_, c)| open(c) && wanted(&c.hosts, c.bulk));
        found.map(|(stream, _)| stream).collect()
    }
}

impl Connection {
    fn broken(&self, end: End, now: Duration) -> bool {
        let way = &self.ways[end.peer()];
        let broke = way.last.is_some_and(|(at, last)| last == Last::Broken && at <= now);
        broke || self.dead_at.is_some_and(|at| at <= now)
    }
}

impl Way {
    /// Keeps a part of what is under way, to the byte.
    fn truncate(&mut self, rng: &mut Rng) {
        let all: usize = self.segments.iter().map(|segment| segment.bytes.len()).sum();
        let mut keep = if rng.chance(40) { 0 } else { rng.below(all + 1) };
        self.segments.retain_mut(|segment| {
            segment.bytes.truncate(keep);
            keep -= segment.bytes.len();
            !segment.bytes.is_empty()
        });
    }
}
