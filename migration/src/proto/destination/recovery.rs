//! A guest that runs here without the source of its missing pages waits for it: faults stay parked,
//! and the source, once back, is told what is here and asked for what is missed.

use std::time::Instant;

use godwit_uffd::page::PageRun;

use super::{Destination, Output, State};
use crate::limits::RESUME_TIMEOUT;
use crate::proto::patience::{Arrivals, Patience};
use crate::proto::{Outcome, Phase};
use crate::wire::{BitmapPart, Message};

impl Destination {
    /// The source is back on a channel of its own making. It dials only after its grant is
    /// recorded, so this is a grant as well.
    pub(super) fn resume(&mut self, epoch: u32) {
        if epoch <= self.epoch {
            return;
        }
        match self.state {
            State::AwaitGrant => {
                self.take_over(epoch);
                self.state = State::Recording;
                self.outputs.push_back(Output::Reached(Phase::Granted));
                self.outputs.push_back(Output::RecordOwned(self.transfer));
            }
            State::Recording => self.take_over(epoch),
            // Faults are parked until it is known what the channels that were have brought.
            State::Running | State::Interrupted => {
                self.take_over(epoch);
                self.state = State::Interrupted;
            }
            State::Completing => self.take_over(epoch),
            // The answer is on stable storage soon, and the source asks again.
            _ => {}
        }
    }

    /// Only now is it certain which pages are here.
    pub(super) fn adopted(&mut self, now: Instant) {
        match self.state {
            State::Interrupted => {
                self.state = State::Running;
                self.say_what_is_here(now);
            }
            State::Completing => self.send_complete(self.claims.remaining() > 0, now),
            _ => {}
        }
    }

    /// The channels that were are no more, whether they know it or not.
    pub(super) fn take_over(&mut self, epoch: u32) {
        self.epoch = epoch;
        (self.ended, self.joined, self.lost) = (0, 0, None);
        self.outputs.push_back(Output::HangUp);
        self.outputs.push_back(Output::Adopt { epoch });
    }

    pub(super) fn say_what_is_here(&mut self, now: Instant) {
        self.patience = Patience::serving(now);
        self.arrivals = Arrivals::over(self.connections, self.claims.remaining(), now);
        self.join_by = Some(now + RESUME_TIMEOUT);
        let received = self.claims.received();
        let parts = BitmapPart::of(&received).map(Message::Received);
        self.outputs.extend(parts.map(Output::Send));
        self.outputs.push_back(Output::Send(Message::Resumed { epoch: self.epoch }));
        self.outputs.push_back(Output::Reached(Phase::Resumed));
        // What was asked for before may have been lost, with its answer or without.
        for run in self.claims.requested().runs() {
            let pages = run.pages().map(|page| Message::Request(PageRun::one(page)));
            self.outputs.extend(pages.map(Output::Send));
        }
    }

    /// A part of a message says that the source is there. Before the grant a message has to be
    /// whole in time: the guest stands still.
    pub(super) fn part_heard(&mut self, now: Instant) -> Result<(), String> {
        if self.state == State::Running {
            self.patience.heard(now);
        }
        Ok(())
    }

    pub(super) fn interrupt(&mut self, reason: String) {
        self.state = State::Interrupted;
        (self.ended, self.join_by) = (0, None);
        self.outputs.push_back(Output::HangUp);
        self.outputs.push_back(Output::Interrupted(reason));
    }

    pub(super) fn abandon(&mut self, reason: String) {
        match self.state {
            State::Running | State::Interrupted if self.claims.remaining() > 0 => {
                self.outputs.push_back(Output::HangUp);
                self.finish(Outcome::Lost { reason });
            }
            // The operator knows that the source will not hear of it.
            State::Refusing => self.throw_away(reason),
            // Nobody needs the source any more.
            State::Interrupted => self.finish(Outcome::Completed),
            _ => self.fail(reason),
        }
    }
}
