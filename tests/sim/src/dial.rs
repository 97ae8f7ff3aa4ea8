//! Connecting a channel: the preambles, then what the channel belongs to. The side that dials.

use std::time::Duration;

use godwit_migration::limits::PREAMBLE_TIMEOUT;
use godwit_migration::wire::{Channel, PREAMBLE_BYTES, Preamble};

use crate::channel::Urgent;
use crate::env::Env;
use crate::net::{End, Received};

/// A channel that is being connected.
#[derive(Debug)]
pub struct Dial {
    channel: Channel,
    /// What follows the preamble.
    hello: Vec<u8>,
    step: Step,
    deadline: Duration,
    answer: Vec<u8>,
}

#[derive(Debug)]
enum Step {
    /// Connected, or refused, at this time.
    Connecting { done_at: Duration, end: Option<End> },
    /// The other side says which versions it speaks.
    Answering(End),
}

/// Whom a dial reaches.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// A process that listens.
    Listener,
    /// A host on which nobody listens.
    Nobody,
    /// No host.
    Silence,
}

impl Dial {
    /// Begins to connect to `to`, which may take `timeout`. A stream that reaches a listener is
    /// returned as well: its other end is the listener's.
    pub fn begin(
        env: &mut Env,
        (from, to): (usize, usize),
        (channel, hello): (Channel, Vec<u8>),
        timeout: Duration,
        reach: Reach,
    ) -> (Dial, Option<End>) {
        let latency = env.net.latency * 2;
        let apart = env.net.apart_until > env.now && from != to;
        let (done_at, end) = match reach {
            _ if apart => (env.now + timeout, None),
            Reach::Silence => (env.now + timeout, None),
            Reach::Nobody => (env.now + latency, None),
            Reach::Listener => {
                let stream = env.net.connect(from, to);
                if channel == Channel::Bulk {
                    env.net.is_bulk(stream);
                }
                (env.now + latency, Some(End { stream, side: 0 }))
            }
        };
        let step = Step::Connecting { done_at, end };
        let deadline = done_at + PREAMBLE_TIMEOUT;
        let listener = end.map(|end| End { side: 1, ..end });
        (Dial { channel, hello, step, deadline, answer: Vec::new() }, listener)
    }

    /// Our end, once there is one.
    pub fn end(&self) -> Option<End> {
        match self.step {
            Step::Connecting { end, .. } => end,
            Step::Answering(end) => Some(end),
        }
    }

    pub fn ready_at(&self, env: &Env) -> Duration {
        match self.step {
            Step::Connecting { done_at, .. } => done_at,
            Step::Answering(end) => {
                env.net.readable_at(end).map_or(self.deadline, |at| at.min(self.deadline))
            }
        }
    }

    /// Goes on. The channel when it is connected, or why it is not.
    pub fn step(&mut self, env: &mut Env) -> Option<Result<Urgent, String>> {
        match self.step {
            Step::Connecting { end: None, .. } => Some(Err("no connection".into())),
            Step::Connecting { end: Some(end), .. } => {
                let preamble = Preamble::ours(self.channel).encode();
                if env.net.send(end, env.now, &preamble, false).is_err() {
                    return Some(Err("the connection broke".into()));
                }
                self.step = Step::Answering(end);
                None
            }
            Step::Answering(end) => match env.net.receive(end, env.now, &mut env.rng) {
                Received::Bytes(bytes) => {
                    self.answer.extend(bytes);
                    self.answered(env, end)
                }
                Received::Nothing if env.now < self.deadline => None,
                Received::Nothing => self.failed(env, end, "no answer"),
                _ => self.failed(env, end, "the connection closed"),
            },
        }
    }

    fn failed(&self, env: &mut Env, end: End, why: &str) -> Option<Result<Urgent, String>> {
        env.net.close(end, env.now);
        Some(Err(why.into()))
    }

    fn answered(&mut self, env: &mut Env, end: End) -> Option<Result<Urgent, String>> {
        let answer: &[u8; PREAMBLE_BYTES] = self.answer.first_chunk()?;
        if let Err(error) = Preamble::decode(answer) {
            return self.failed(env, end, &error.to_string());
        }
        if !self.hello.is_empty() && env.net.send(end, env.now, &self.hello, false).is_err() {
            return self.failed(env, end, "the connection broke");
        }
        Some(Ok(Urgent::behind(end, self.answer.split_off(PREAMBLE_BYTES))))
    }
}
