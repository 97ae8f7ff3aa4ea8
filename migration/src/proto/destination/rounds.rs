//! Rounds of pre-copy, as they come in: discard, receive over all bulk channels, say that all is
//! here.

use std::time::Instant;

use super::{Destination, Output, State};
use crate::limits::SETUP_TIMEOUT;
use crate::page::PageSet;
use crate::proto::patience::{Arrivals, Patience};
use crate::proto::{PeerError, Phase};
use crate::wire::{BitmapPart, Kind, Message};

impl Destination {
    /// A round begins: everything that is old was discarded.
    pub(super) fn begin_round(&mut self, number: u32, now: Instant) -> Result<(), String> {
        let all_ended = self.round == 0 || self.ended == self.connections;
        if number != self.round + 1 || !all_ended {
            return Err(self.unexpected(Kind::Round));
        }
        (self.round, self.ended) = (number, 0);
        self.patience = Patience::audible(now, SETUP_TIMEOUT);
        self.arrivals = Arrivals::over(self.connections, self.claims.remaining(), now);
        self.outputs.push_back(Output::Send(Message::RoundReady { number }));
        Ok(())
    }

    /// The source sends these pages again. No round is under way, so none of them is being
    /// installed.
    pub(super) fn discard(&mut self, part: &BitmapPart) -> Result<(), String> {
        if self.round > 0 && self.ended < self.connections {
            return Err(self.unexpected(Kind::Discard));
        }
        let mut old = PageSet::empty(self.claims.page_count());
        part.add_to(&mut old);
        for run in old.runs() {
            self.claims.discard(run).map_err(|error| format!("discard: {error}"))?;
            self.outputs.push_back(Output::Discard(run));
        }
        Ok(())
    }

    /// Whether the source has something to push.
    pub(super) fn pages_are_due(&self) -> bool {
        match self.state {
            State::AwaitPackage => self.round > 0 && self.ended < self.connections,
            State::Running => true,
            _ => false,
        }
    }

    /// What is wrong if no page has come for too long.
    pub(super) fn stall(&mut self, now: Instant) -> Option<PeerError> {
        let pages = self.claims.remaining();
        if !self.pages_are_due() {
            return None;
        }
        let seconds = self.arrivals.stalled(pages, self.ended, now)?.as_secs();
        Some(PeerError::Stalled { seconds, pages, state: self.state.name() })
    }

    /// One bulk channel has read an end: of a round before the switchover, of the push after it.
    pub(super) fn push_has_ended(&mut self, now: Instant) -> Result<(), String> {
        if self.ended == self.connections {
            return Err(self.unexpected(Kind::PushEnd));
        }
        self.ended += 1;
        if self.ended < self.connections {
            return Ok(());
        }
        match self.state {
            State::AwaitPackage if self.round > 0 => {
                let number = self.round;
                self.outputs.push_back(Output::Send(Message::RoundDone { number }));
                Ok(())
            }
            State::Running => {
                // Requested pages are on the urgent channel; all others came before the end.
                let pages = self.claims.missing();
                if pages > 0 {
                    return Err(PeerError::NeverSent { pages }.to_string());
                }
                self.outputs.push_back(Output::Reached(Phase::Pushed));
                self.complete_if_whole(now)
            }
            _ => Err(self.unexpected(Kind::PushEnd)),
        }
    }
}
