//! After the grant a lost destination is dialled until it answers, and the session goes on: what
//! it has received is sent, and nothing else.

use std::time::{Duration, Instant};

use super::{Output, Source, State};
use crate::limits::{REDIAL_MAX, REDIAL_MIN, RESUME_TIMEOUT};
use crate::page::PageSet;
use crate::proto::patience::Patience;
use crate::proto::{Outcome, PeerError, Phase};
use crate::wire::{Abort, Message};

/// When the destination is dialled next.
#[derive(Debug)]
pub(super) struct Redial {
    at: Instant,
    wait: Duration,
    /// Since when the session goes on.
    resumed: Instant,
}

impl Redial {
    pub fn new(now: Instant) -> Redial {
        Redial { at: now, wait: REDIAL_MIN, resumed: now }
    }

    pub fn at(&self) -> Instant {
        self.at
    }

    /// The connection was lost at `now`. Each loss soon after the last waits longer.
    fn lost(&mut self, now: Instant) {
        if now > self.resumed + REDIAL_MAX {
            self.wait = REDIAL_MIN;
        }
        self.at = now + self.wait;
        self.resumed = now;
        self.wait = (self.wait * 2).min(REDIAL_MAX);
    }
}

impl Source {
    pub(super) fn interrupt(&mut self, reason: String, now: Instant) {
        self.state = State::Interrupted;
        self.redial.lost(now);
        self.outputs.push_back(Output::HangUp);
        self.outputs.push_back(Output::Interrupted(reason));
    }

    pub(super) fn dial_if_due(&mut self, now: Instant) {
        if now < self.redial.at {
            return;
        }
        self.epoch += 1;
        self.state = State::Dialling;
        let (session, epoch) = (self.session, self.epoch);
        self.outputs.push_back(Output::Dial { session, epoch });
    }

    pub(super) fn redial_now(&mut self, now: Instant) {
        self.redial.wait = REDIAL_MIN;
        self.redial.at = now;
        match self.state {
            // What is under way may lead to an address that is no more.
            State::Resuming | State::Reconnecting | State::Serving | State::Granted => {
                self.interrupt("the operator asks to dial again".into(), now);
                self.redial.at = now;
                self.dial_if_due(now);
            }
            State::Interrupted => self.dial_if_due(now),
            _ => {}
        }
    }

    pub(super) fn dialled(&mut self, now: Instant) {
        if self.state != State::Dialling {
            return;
        }
        self.state = State::Resuming;
        self.patience = Patience::step(now, RESUME_TIMEOUT);
        self.received = PageSet::empty(self.sent.page_count());
    }

    pub(super) fn resuming(&mut self, message: Message<'_>) -> Result<(), PeerError> {
        match message {
            Message::Received(part) => part.add_to(&mut self.received),
            Message::Resumed { epoch } if epoch == self.epoch => {
                self.guest_is_owned();
                let received = std::mem::replace(&mut self.received, PageSet::empty(0));
                self.sent.reset(&received);
                self.state = State::Reconnecting;
                self.outputs.push_back(Output::Reached(Phase::Resumed));
                self.connect_bulk();
            }
            Message::Gone { transfer } => {
                self.check(transfer)?;
                let reason = "it ran at the destination, whose process is gone".to_owned();
                self.finish_lost(reason);
            }
            Message::Abort(Abort { reason }) => {
                return Err(PeerError::Lost(format!("the destination turns away: {reason}")));
            }
            Message::Alive => {}
            other => return Err(self.unexpected(&other)),
        }
        Ok(())
    }

    /// The operator gives up what is only here.
    pub(super) fn abandon(&mut self, reason: String) {
        if self.state.granted() {
            self.finish_lost(reason);
        } else {
            self.abort(reason);
        }
    }

    fn finish_lost(&mut self, reason: String) {
        self.state = State::Ended;
        self.outputs.push_back(Output::HangUp);
        self.outputs.push_back(Output::Finish(Outcome::Lost { reason }));
    }
}
