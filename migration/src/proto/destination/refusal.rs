//! A grant that is not taken: the guest is the source's again once the refusal is durable.

use std::time::Instant;

use super::{Destination, Output, State};
use crate::limits::RECORD_RETRY;
use crate::wire::Message;

impl Destination {
    pub(super) fn refuse(&mut self, reason: String) {
        self.state = State::Refusing;
        self.refusal = reason;
        self.outputs.push_back(Output::RecordRefused(self.transfer));
    }

    pub(super) fn refused_recorded(&mut self, recorded: bool, now: Instant) {
        if self.state != State::Refusing {
            return;
        }
        if !recorded {
            // The record may even say that the guest is ours, and only this process knows better:
            // the source hears nothing and stays paused until the refusal is durable.
            self.outputs.push_back(Output::HangUp);
            self.refuse_at = Some(now + RECORD_RETRY);
            return;
        }
        let reason = std::mem::take(&mut self.refusal);
        let refused = Message::Refused { transfer: self.transfer, reason: reason.clone() };
        self.outputs.push_back(Output::Send(refused));
        self.throw_away(reason);
    }

    pub(super) fn refuse_again_if_due(&mut self, now: Instant) {
        if self.refuse_at.take_if(|at| now >= *at).is_some() {
            self.outputs.push_back(Output::RecordRefused(self.transfer));
        }
    }
}
