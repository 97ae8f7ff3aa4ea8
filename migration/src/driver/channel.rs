//! The urgent channel: frames over a stream, with a receive buffer that grows only as bytes come.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::proto::PeerError;
use crate::transport::{Stream, WhenIdle};
use crate::wire::{Frame, Message, decode, encode};

/// The receive buffer at the start: several answers to requests fit.
const BUFFER_BYTES: usize = 256 << 10;

/// The urgent channel of either side.
#[derive(Debug)]
pub(super) struct UrgentChannel {
    stream: Arc<Stream>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handled.
    start: usize,
    /// Bytes of `buffer` that were received.
    end: usize,
    outgoing: Vec<u8>,
}

impl UrgentChannel {
    pub fn new(stream: Arc<Stream>) -> UrgentChannel {
        let buffer = vec![0; BUFFER_BYTES];
        UrgentChannel { stream, buffer, start: 0, end: 0, outgoing: Vec::new() }
    }

    /// Receives what is there, without waiting. False if nothing was.
    pub fn receive(&mut self) -> Result<bool, PeerError> {
        self.make_room();
        match self.stream.receive(&mut self.buffer[self.end..], WhenIdle::Return) {
            Ok(0) => Err(PeerError::Lost("the peer closed it".into())),
            Ok(bytes) => {
                self.end += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(PeerError::Lost(error.to_string())),
        }
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                // One frame fills the buffer. Its length was checked, and the bytes did come.
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
    }

    /// The next whole frame that was received.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, PeerError> {
        let frame = decode(&self.buffer[self.start..self.end])?;
        if let Some(frame) = &frame {
            self.start += frame.wire_bytes();
        }
        Ok(frame)
    }

    /// Puts `message` behind what waits to be sent.
    pub fn queue(&mut self, message: &Message<'_>) {
        encode(message, &mut self.outgoing);
    }

    /// The buffer of what waits to be sent, for contents that are written in place.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Sends what waits. The number of bytes sent.
    pub fn flush(&mut self) -> Result<usize, PeerError> {
        let bytes = self.outgoing.len();
        if bytes > 0 {
            let result = self.stream.send(&self.outgoing, false);
            self.outgoing.clear();
            result.map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => PeerError::Lost("the peer takes nothing".into()),
                _ => PeerError::Lost(error.to_string()),
            })?;
        }
        Ok(bytes)
    }

    /// What to poll before the next [`UrgentChannel::receive`]. Bytes that TLS holds count.
    pub fn pollable(&self) -> BorrowedFd<'_> {
        self.stream.pollable()
    }

    /// Ends the channel.
    pub fn shutdown(&self) {
        self.stream.shutdown();
    }
}

/// Waits until one of `fds` is readable or `deadline` is there; which are.
pub(super) fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    let mut polled = fds.each_ref().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}
