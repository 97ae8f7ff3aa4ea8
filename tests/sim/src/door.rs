//! The door of a receiving process: greets connections and tells channels apart.

use std::time::Duration;

use godwit_migration::limits::PREAMBLE_TIMEOUT;
use godwit_migration::proto::{Answer, Ownership};
use godwit_migration::wire::{
    Abort, BULK_HELLO_BYTES, BulkHello, Channel, Complete, Message, PREAMBLE_BYTES, Preamble,
    RESUME_HELLO_BYTES, ResumeHello, encode,
};

use crate::disk::Write;
use crate::env::{Env, Me};
use crate::net::{End, Received};

/// Which sessions a process takes in.
#[derive(Debug, Default)]
pub struct Door {
    /// Why no source may come in now.
    pub busy: Option<String>,
    /// The session under way.
    pub session: Option<[u8; 16]>,
    /// The last session that is over, and what its source is told if it has not heard it.
    pub over: Option<([u8; 16], Message<'static>)>,
}

/// A connection that says what it is.
#[derive(Debug)]
pub struct Greeting {
    end: End,
    received: Vec<u8>,
    step: Step,
    deadline: Duration,
}

#[derive(Debug)]
enum Step {
    Preamble,
    Hello(Channel),
    /// A refusal is being written.
    Refusing {
        write: Write,
        transfer: u64,
    },
    /// The peer reads the answer and closes.
    Lingering,
}

/// What a greeting has come to.
#[derive(Debug)]
pub enum Greeted {
    /// A source.
    Arrival(End),
    /// A channel of the session under way: its epoch, and what it has brought behind that.
    Bulk(End, u32, Vec<u8>),
    /// As that, to replace the urgent one.
    Resume(End, u32, Vec<u8>),
    /// Closed.
    Over,
}

impl Greeting {
    pub fn new(end: End, now: Duration) -> Greeting {
        let deadline = now + PREAMBLE_TIMEOUT;
        Greeting { end, received: Vec::new(), step: Step::Preamble, deadline }
    }

    pub fn ready_at(&self, env: &Env) -> Duration {
        match &self.step {
            Step::Refusing { write, .. } => write.done_at,
            _ => env.net.readable_at(self.end).map_or(self.deadline, |at| at.min(self.deadline)),
        }
    }

    pub fn end(&self) -> End {
        self.end
    }

    /// The write that is under way.
    pub fn take_write(&mut self) -> Option<Write> {
        match std::mem::replace(&mut self.step, Step::Lingering) {
            Step::Refusing { write, .. } => Some(write),
            _ => None,
        }
    }

    /// Goes on; what it has come to, if it is over.
    pub fn step(&mut self, env: &mut Env, me: Me, door: &mut Door) -> Option<Greeted> {
        if let Step::Refusing { transfer, .. } = self.step {
            let write = self.take_write().expect("it is being written");
            return self.refused(env, me, write, transfer);
        }
        match env.net.receive(self.end, env.now, &mut env.rng) {
            Received::Bytes(bytes) => self.received.extend(bytes),
            Received::Nothing if env.now < self.deadline => return None,
            _ => {
                env.net.close(self.end, env.now);
                return Some(Greeted::Over);
            }
        }
        match self.step {
            Step::Preamble => self.preamble(env, me, door),
            Step::Hello(channel) => self.hello(env, me, door, channel),
            Step::Refusing { .. } | Step::Lingering => None,
        }
    }

    fn close(&self, env: &mut Env) -> Option<Greeted> {
        env.net.close(self.end, env.now);
        Some(Greeted::Over)
    }

    fn preamble(&mut self, env: &mut Env, me: Me, door: &mut Door) -> Option<Greeted> {
        let bytes = *self.received.first_chunk::<PREAMBLE_BYTES>()?;
        self.received.drain(..PREAMBLE_BYTES);
        let Ok(theirs) = Preamble::decode(&bytes) else { return self.close(env) };
        let answer = Preamble::ours(theirs.channel).encode();
        if env.net.send(self.end, env.now, &answer, false).is_err() {
            return self.close(env);
        }
        if theirs.channel != Channel::Urgent {
            self.step = Step::Hello(theirs.channel);
            self.deadline = env.now + PREAMBLE_TIMEOUT;
            // A peer may have said it all at once.
            return self.hello(env, me, door, theirs.channel);
        }
        if let Some(reason) = door.busy.clone() {
            let _ = self.say(env, &Message::Abort(Abort { reason }));
            return self.close(env);
        }
        door.busy = Some("another guest is on its way here".into());
        Some(Greeted::Arrival(self.end))
    }

    fn say(&self, env: &mut Env, message: &Message<'_>) -> Result<(), crate::net::Lost> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        env.net.send(self.end, env.now, &bytes, true)
    }

    fn hello(
        &mut self,
        env: &mut Env,
        me: Me,
        door: &mut Door,
        channel: Channel,
    ) -> Option<Greeted> {
        if channel == Channel::Bulk {
            let hello = BulkHello::decode(self.received.first_chunk::<BULK_HELLO_BYTES>()?);
            if door.session == Some(hello.session) {
                let rest = self.received.split_off(BULK_HELLO_BYTES);
                return Some(Greeted::Bulk(self.end, hello.epoch, rest));
            }
            return self.close(env);
        }
        let hello = ResumeHello::decode(self.received.first_chunk::<RESUME_HELLO_BYTES>()?);
        if door.session == Some(hello.session) {
            let rest = self.received.split_off(RESUME_HELLO_BYTES);
            return Some(Greeted::Resume(self.end, hello.epoch, rest));
        }
        match door.over.clone().filter(|(session, _)| *session == hello.session) {
            Some((_, words)) => self.answer(env, &words),
            None => self.answer_from_records(env, me, hello.transfer),
        }
    }

    fn answer(&mut self, env: &mut Env, message: &Message<'_>) -> Option<Greeted> {
        env.log(|| format!("a source that asks is told {:?}", message.kind()));
        env.mark("the door answers");
        if self.say(env, message).is_err() {
            return self.close(env);
        }
        self.step = Step::Lingering;
        self.deadline = env.now + PREAMBLE_TIMEOUT;
        None
    }

    fn answer_from_records(&mut self, env: &mut Env, me: Me, transfer: u64) -> Option<Greeted> {
        match env.disk(me).answer(transfer) {
            Answer::Refuse => {
                // From reading the record to having written it nobody else begins to own the guest.
                env.disk(me).held = Some(me.id);
                match env.begin_write(me, transfer, Ownership::Refused) {
                    Ok(write) => self.step = Step::Refusing { write, transfer },
                    Err(reason) => return self.cannot_refuse(env, me, reason),
                }
                None
            }
            Answer::Refused => self.refuse(env, transfer),
            Answer::MovedOn => self.answer(env, &Message::Complete(Complete::moved_on())),
            Answer::Gone => self.answer(env, &Message::Gone { transfer }),
            Answer::Unknown(reason) => self.answer(env, &Message::Abort(Abort { reason })),
        }
    }

    fn refused(&mut self, env: &mut Env, me: Me, write: Write, transfer: u64) -> Option<Greeted> {
        match env.finish_write(me, write) {
            Ok(()) => self.refuse(env, transfer),
            Err(reason) => self.cannot_refuse(env, me, reason),
        }
    }

    fn cannot_refuse(&mut self, env: &mut Env, me: Me, reason: String) -> Option<Greeted> {
        env.disk(me).held.take_if(|holder| *holder == me.id);
        self.answer(env, &Message::Abort(Abort { reason }))
    }

    fn refuse(&mut self, env: &mut Env, transfer: u64) -> Option<Greeted> {
        let reason = "the connection was lost before the grant arrived".to_owned();
        self.answer(env, &Message::Refused { transfer, reason })
    }
}
