//! The urgent channel: frames over a virtual stream.

use std::time::Duration;

use godwit_migration::proto::PeerError;
use godwit_migration::wire::{Message, decode, encode};

use crate::env::{Env, Me};
use crate::net::{End, Received};

/// The urgent channel of either side.
#[derive(Debug)]
pub struct Urgent {
    pub end: End,
    received: Vec<u8>,
    outgoing: Vec<Vec<u8>>,
    /// It has ended or broken, and says nothing more.
    failed: bool,
}

impl Urgent {
    pub fn new(end: End) -> Urgent {
        Urgent::behind(end, Vec::new())
    }

    /// A channel that has brought bytes already.
    pub fn behind(end: End, received: Vec<u8>) -> Urgent {
        Urgent { end, received, outgoing: Vec::new(), failed: false }
    }

    /// Puts a message behind what waits to be sent.
    pub fn queue(&mut self, message: &Message<'_>, env: &mut Env, me: Me) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        if std::mem::take(&mut env.repeat[me.host]) {
            env.log(|| format!("host {} repeats {:?}", me.host, message.kind()));
            env.honest = false;
            self.outgoing.push(bytes.clone());
        }
        self.outgoing.push(bytes);
    }

    /// Puts a frame of pages behind what waits to be sent.
    pub fn queue_pages(&mut self, frame: Vec<u8>) {
        self.outgoing.push(frame);
    }

    pub fn has_outgoing(&self) -> bool {
        !self.failed && !self.outgoing.is_empty()
    }

    /// Sends what waits.
    pub fn flush(&mut self, env: &mut Env) -> Result<(), PeerError> {
        for frame in std::mem::take(&mut self.outgoing) {
            if env.net.send(self.end, env.now, &frame, true).is_err() {
                self.failed = true;
                return Err(PeerError::Lost("the stream is broken".into()));
            }
        }
        Ok(())
    }

    /// A frame waits, or the stream has something: when.
    pub fn readable_at(&self, env: &Env) -> Option<Duration> {
        if self.failed {
            return None;
        }
        if matches!(decode(&self.received), Ok(None)) {
            return env.net.readable_at(self.end);
        }
        Some(Duration::ZERO)
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// The stream is at its end, is broken, or brings what is no frame.
    pub fn next_frame(&mut self, env: &mut Env) -> Result<Option<Vec<u8>>, PeerError> {
        let frame = self.take_frame(env);
        self.failed = frame.is_err();
        frame
    }

    fn take_frame(&mut self, env: &mut Env) -> Result<Option<Vec<u8>>, PeerError> {
        if let Some(frame) = self.buffered()? {
            return Ok(Some(frame));
        }
        match env.net.receive(self.end, env.now, &mut env.rng) {
            Received::Bytes(bytes) => {
                self.received.extend(bytes);
                self.buffered()
            }
            Received::End => Err(PeerError::Lost("the peer closed it".into())),
            Received::Broken => Err(PeerError::Lost("it broke".into())),
            Received::Nothing => Ok(None),
        }
    }

    fn buffered(&mut self) -> Result<Option<Vec<u8>>, PeerError> {
        let Some(frame) = decode(&self.received)? else { return Ok(None) };
        let bytes = frame.wire_bytes();
        Ok(Some(self.received.drain(..bytes).collect()))
    }
}
