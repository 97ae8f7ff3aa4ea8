//! Rounds of pre-copy: announce, push, wait until the destination has it all, look what was
//! written meanwhile.
//!
//! A round begins when the destination has discarded what the round will bring, and ends when it
//! has read the end of the push on every bulk channel. So no page of an earlier round is on its
//! way when a page is discarded, and what arrives is always newer than what was there.

use std::time::Instant;

use super::{Output, Source, State};
use crate::page::PageSet;
use crate::proto::patience::Patience;
use crate::proto::{PeerError, Phase};
use crate::schedule::{NextRound, OnTimeout, RoundResult};
use crate::wire::Message;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundStep {
    /// The destination discards.
    Announced,
    /// Pages go. It is over when both sides have said so.
    Pushing {
        /// Everything is sent.
        pushed: bool,
        /// Everything has arrived.
        done: bool,
        /// It was told to end early.
        stopped: bool,
    },
    /// The pages that were written meanwhile are being found out.
    Collecting,
}

/// The round under way.
#[derive(Debug)]
pub(super) struct Current {
    number: u32,
    began: Instant,
    /// Pages to be sent at its beginning.
    to_send: u32,
    /// No page is left for later: the guest does not change hands before.
    pub finishing: bool,
}

impl Current {
    pub fn new(now: Instant) -> Current {
        Current { number: 0, began: now, to_send: 0, finishing: false }
    }
}

impl Source {
    pub(super) fn tracking_started(&mut self, now: Instant) {
        if self.state != State::Tracking {
            return;
        }
        self.tracking = true;
        self.announce_round(now);
    }

    pub(super) fn announce_round(&mut self, now: Instant) {
        let number = self.round.number + 1;
        let finishing = self.round.finishing;
        self.round = Current { number, began: now, to_send: self.sent.remaining(), finishing };
        self.set_step(RoundStep::Announced);
        self.patience = Patience::serving(now);
        self.outputs.push_back(Output::Send(Message::Round { number }));
    }

    fn set_step(&mut self, step: RoundStep) {
        let finishing = self.round.finishing;
        self.state = if finishing { State::Finishing(step) } else { State::Round(step) };
    }

    fn step(&self) -> Option<RoundStep> {
        match self.state {
            State::Round(step) | State::Finishing(step) => Some(step),
            _ => None,
        }
    }

    pub(super) fn round_ready(&mut self, number: u32, now: Instant) -> Result<(), PeerError> {
        if self.step() != Some(RoundStep::Announced) || number != self.round.number {
            return Err(self.unexpected(&Message::RoundReady { number }));
        }
        if number == 1 {
            self.outputs.push_back(Output::Reached(Phase::FirstRound));
        }
        self.set_step(RoundStep::Pushing { pushed: false, done: false, stopped: false });
        self.patience = Patience::serving(now);
        self.outputs.push_back(Output::StartPush);
        if self.rounds.switch_wanted() {
            self.stop_push();
        }
        Ok(())
    }

    pub(super) fn pushed(&mut self, now: Instant) {
        match self.step() {
            Some(RoundStep::Pushing { pushed: false, done, stopped }) => {
                self.advance(RoundStep::Pushing { pushed: true, done, stopped }, now);
            }
            None if self.state == State::Serving => self.push_is_over(),
            _ => {}
        }
    }

    pub(super) fn round_done(&mut self, number: u32, now: Instant) -> Result<(), PeerError> {
        match self.step() {
            Some(RoundStep::Pushing { pushed, done: false, stopped })
                if number == self.round.number =>
            {
                self.advance(RoundStep::Pushing { pushed, done: true, stopped }, now);
                Ok(())
            }
            _ => Err(self.unexpected(&Message::RoundDone { number })),
        }
    }

    fn advance(&mut self, step: RoundStep, now: Instant) {
        self.set_step(step);
        if !matches!(step, RoundStep::Pushing { pushed: true, done: true, .. }) {
            return;
        }
        if self.round.finishing {
            // The guest stands still: nothing was written.
            return self.send_package(now);
        }
        self.set_step(RoundStep::Collecting);
        self.outputs.push_back(Output::Collect);
    }

    pub(super) fn collected(&mut self, dirty: PageSet, now: Instant) -> Result<(), String> {
        if self.state != State::Round(RoundStep::Collecting) {
            return Ok(());
        }
        let sent = self.round.to_send - self.sent.remaining().min(self.round.to_send);
        let old = self.send_again(dirty);
        let (left, took) = (self.sent.remaining(), now - self.round.began);
        let next = self.rounds.after(RoundResult { sent, left, old, took }, now);
        tracing::info!(round = self.round.number, sent, left, ?took, ?next, "round of pre-copy");
        match next {
            NextRound::Again => self.announce_round(now),
            NextRound::Finish => {
                self.round.finishing = true;
                self.pause_and_save();
            }
            NextRound::Switch => self.pause_and_save(),
            NextRound::Cancel => {
                let rounds = self.round.number;
                return Err(format!(
                    "pre-copy did not converge in time: {left} pages are left after {rounds} \
                     rounds; allow more downtime or time, or use --mode hybrid"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn switch_now(&mut self) {
        self.rounds.switch_now();
        self.stop_push();
    }

    pub(super) fn check_round_deadline(&mut self, now: Instant) {
        if self.rounds.deadline().is_none_or(|at| now < at) {
            return;
        }
        match self.rounds.on_timeout() {
            OnTimeout::Ignore => {}
            OnTimeout::Cancel | OnTimeout::Switch => self.stop_push(),
        }
    }

    /// The round ends early, if pages of the running guest are being pushed.
    fn stop_push(&mut self) {
        if let State::Round(RoundStep::Pushing { pushed, done, stopped: false }) = self.state {
            self.state = State::Round(RoundStep::Pushing { pushed, done, stopped: true });
            self.outputs.push_back(Output::StopPush);
        }
    }
}
