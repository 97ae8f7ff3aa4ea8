//! One connection through the proxy: two streams, and for each direction a thread that receives and
//! one that sends what has arrived.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_migration::transport::{Stream, WhenIdle};
use rustix::net::{Shutdown, shutdown, sockopt};

use super::queue::{Item, Queue};
use super::tap::{Direction, Fate, Tap};
use super::wire::Wire;

/// How far the bytes that were read may be ahead of those that have left: more than a thread
/// oversleeps, so that the link is never idle because of that.
const READ_AHEAD: Duration = Duration::from_millis(1);

/// The least that a socket of the proxy buffers.
const SOCKET_BYTES_MIN: usize = 64 << 10;

/// A connection and its threads.
#[derive(Debug)]
pub(super) struct Connection {
    ends: Arc<Ends>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of a connection share.
#[derive(Debug)]
struct Ends {
    source: Stream,
    destination: Stream,
    to_destination: Queue,
    to_source: Queue,
}

/// One direction of a link, and what looks at the bytes that pass.
pub(super) struct Lane {
    pub direction: Direction,
    pub wire: Arc<Wire>,
    pub tap: Option<Box<dyn Tap>>,
}

impl Connection {
    /// Begins to move bytes between the two streams.
    ///
    /// # Errors
    /// No thread to be had, or a stream that is none; both are closed then.
    pub fn start(source: Stream, destination: Stream, lanes: [Lane; 2]) -> io::Result<Connection> {
        let queue = |lane: &Lane| Queue::new(lane.wire.under_way_bytes());
        let (to_destination, to_source) = (queue(&lanes[0]), queue(&lanes[1]));
        for stream in [&source, &destination] {
            // A side that does not read holds up the other one, for as long as it likes.
            sockopt::set_socket_timeout(socket(stream), sockopt::Timeout::Send, None)?;
            // What waits in a socket has not reached the link, or has left it: little, but more
            // than a segment of loopback, or TCP stalls until its timers fire.
            let bytes = (2 * lanes[0].wire.chunk_bytes()).max(SOCKET_BYTES_MIN);
            sockopt::set_socket_recv_buffer_size(socket(stream), bytes)?;
            sockopt::set_socket_send_buffer_size(socket(stream), bytes)?;
        }
        let ends = Arc::new(Ends { source, destination, to_destination, to_source });
        let mut connection = Connection { ends, threads: Vec::new() };
        for lane in lanes {
            let (ends, direction) = (Arc::clone(&connection.ends), lane.direction);
            connection.spawn(move || ends.receive(lane))?;
            let ends = Arc::clone(&connection.ends);
            connection.spawn(move || ends.send(direction))?;
        }
        Ok(connection)
    }

    fn spawn(&mut self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("godwit-link".into()).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Breaks it, both ways; what is under way is lost.
    pub fn cut(&self) {
        self.ends.cut();
    }

    /// Whether both directions have ended.
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.cut();
        for thread in self.threads.drain(..) {
            // A tap that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Ends {
    fn cut(&self) {
        self.to_destination.close();
        self.to_source.close();
        self.source.shutdown();
        self.destination.shutdown();
    }

    /// Where a direction comes from, what is under way, and where it goes to.
    fn lane(&self, direction: Direction) -> (&Stream, &Queue, &Stream) {
        match direction {
            Direction::ToDestination => (&self.source, &self.to_destination, &self.destination),
            Direction::ToSource => (&self.destination, &self.to_source, &self.source),
        }
    }

    fn receive(&self, mut lane: Lane) {
        let (from, queue, _) = self.lane(lane.direction);
        let mut chunk = vec![0; lane.wire.chunk_bytes()];
        loop {
            let bytes = match from.receive(&mut chunk, WhenIdle::Wait) {
                Ok(bytes) => &mut chunk[..bytes],
                Err(_) => return self.cut(),
            };
            let fate = lane.tap.as_mut().map_or(Fate::Pass, |tap| tap.see(bytes));
            let passing = match fate {
                Fate::Pass => bytes.len(),
                Fate::CutAfter(first) => first.min(bytes.len()),
            };
            let passage = lane.wire.send(passing, Instant::now());
            let mut open = queue.push(Item::Bytes(bytes[..passing].to_vec()), passage.arrives);
            let last = match fate {
                Fate::CutAfter(_) => Some(Item::Cut),
                Fate::Pass if bytes.is_empty() => Some(Item::End),
                Fate::Pass => None,
            };
            if let Some(last) = last {
                queue.push(last, passage.arrives);
                return;
            }
            open = open && queue.wait_until(passage.left - READ_AHEAD);
            if !open {
                return;
            }
        }
    }

    fn send(&self, direction: Direction) {
        let (_, queue, to) = self.lane(direction);
        while let Some(item) = queue.pop() {
            match item {
                Item::Bytes(bytes) => {
                    if to.send(&bytes, false).is_err() {
                        return self.cut();
                    }
                }
                Item::End => {
                    // A side that is gone already has closed the other direction as well.
                    let _ = shutdown(socket(to), Shutdown::Write);
                    return;
                }
                Item::Cut => return self.cut(),
            }
        }
    }
}

/// Both ends of the proxy are plain, even if what it passes on is TLS.
fn socket(stream: &Stream) -> BorrowedFd<'_> {
    stream.plain_socket().expect("made without TLS")
}
