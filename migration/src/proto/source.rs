//! The source's side.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun};

use super::patience::{Due, Patience};
use super::{Outcome, PeerError, Phase};
use crate::limits::{SETUP_TIMEOUT, SWITCHOVER_TIMEOUT};
use crate::page::Sent;
use crate::wire::{Abort, Complete, Message, Offer, Section};

/// What happens to the source.
#[derive(Debug)]
pub enum Input<'a> {
    /// The destination said something.
    Message(Message<'a>),
    /// The bulk channels are connected, or could not be.
    BulkConnected(Result<(), String>),
    /// The guest is paused and its state saved, or it could not be and may be paused.
    Saved(Result<Vec<Section>, String>),
    /// The grant is on stable storage, or is not.
    GrantRecorded(Result<(), String>),
    /// The background push has sent all that it had.
    Pushed,
    /// Somebody here wants no migration: the guest ended, the operator said so.
    GiveUp(String),
    /// The peer broke the protocol, or its connection did.
    PeerFailed(PeerError),
}

/// What the source does.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this.
    Send(Message<'static>),
    /// Connect the bulk channels of this session.
    ConnectBulk([u8; 16]),
    /// Pause the guest, drain its devices, save their state.
    PauseAndSave,
    /// Write GRANTED for this transfer to stable storage.
    RecordGrant(u64),
    /// Write that this transfer was refused: the guest is ours again.
    RecordReclaimed(u64),
    /// Write that the destination has everything.
    RecordReleased(u64),
    /// Begin the background push.
    StartPush,
    /// Send this page, which is taken, on the urgent channel.
    Serve(PageIndex),
    /// Let the guest run on here.
    Resume,
    /// An instant worth a place in the timeline.
    Reached(Phase),
    /// The end.
    Finish(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Offered,
    Connecting,
    Saving,
    Loading,
    Granting,
    Granted,
    Serving,
    Ended,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Offered => "waiting for the destination to accept",
            State::Connecting => "connecting the bulk channel",
            State::Saving => "saving the guest's state",
            State::Loading => "waiting for the destination to load the guest",
            State::Granting => "recording the grant",
            State::Granted => "waiting for the destination to own the guest",
            State::Serving => "serving pages",
            State::Ended => "not migrating",
        }
    }

    /// Whether the destination may own the guest.
    fn granted(self) -> bool {
        matches!(self, State::Granted | State::Serving)
    }

    /// Whether the guest was told to stop.
    fn paused(self) -> bool {
        matches!(self, State::Saving | State::Loading | State::Granting)
    }
}

/// The source of one migration.
#[derive(Debug)]
pub struct Source {
    state: State,
    transfer: u64,
    sent: Arc<Sent>,
    patience: Patience,
    outputs: VecDeque<Output>,
}

impl Source {
    /// Begins by sending `offer` on a connection that has exchanged its preambles.
    pub fn new(offer: Offer, sent: Arc<Sent>, now: Instant) -> Source {
        let transfer = offer.transfer;
        let outputs = [Output::Reached(Phase::Started), Output::Send(Message::Offer(offer))];
        let patience = Patience::step(now, SETUP_TIMEOUT);
        Source { state: State::Offered, transfer, sent, patience, outputs: outputs.into() }
    }

    /// The next thing to do; `None` until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Source::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.state != State::Ended).then(|| self.patience.next())
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        match (self.state, input) {
            (State::Ended, _) => {}
            (_, Input::Message(message)) => {
                self.patience.heard(now);
                if let Err(error) = self.message(message, now) {
                    self.fail(error.to_string());
                }
            }
            (State::Connecting, Input::BulkConnected(Ok(()))) => {
                self.state = State::Saving;
                self.outputs.push_back(Output::PauseAndSave);
            }
            (State::Saving, Input::Saved(Ok(sections))) => {
                self.state = State::Loading;
                self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
                self.outputs.push_back(Output::Reached(Phase::Package));
                self.outputs.push_back(Output::Send(Message::Package(sections)));
            }
            (State::Granting, Input::GrantRecorded(Ok(()))) => {
                self.state = State::Granted;
                self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
                self.outputs.push_back(Output::Reached(Phase::Granted));
                self.outputs.push_back(Output::Send(Message::Grant { transfer: self.transfer }));
            }
            (State::Serving, Input::Pushed) => {
                self.outputs.push_back(Output::Reached(Phase::Pushed));
            }
            (_, Input::BulkConnected(Err(reason)) | Input::Saved(Err(reason)))
            | (_, Input::GrantRecorded(Err(reason))) => self.fail(reason),
            (state, Input::GiveUp(reason)) if !state.granted() => self.fail(reason),
            (_, Input::PeerFailed(error)) => self.fail(error.to_string()),
            _ => {}
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        match self.patience.due(now) {
            Due::Nothing => {}
            Due::SayAlive => self.outputs.push_back(Output::Send(Message::Alive)),
            Due::PeerSilent(silent) => {
                let state = self.state.name();
                let seconds = silent.as_secs();
                self.fail(PeerError::Silent { seconds, state }.to_string());
            }
        }
    }

    fn message(&mut self, message: Message<'_>, now: Instant) -> Result<(), PeerError> {
        match (self.state, message) {
            (State::Offered, Message::Accept(accept)) => {
                self.state = State::Connecting;
                self.outputs.push_back(Output::Reached(Phase::Prepared));
                self.outputs.push_back(Output::ConnectBulk(accept.session));
            }
            (State::Loading, Message::Loaded { transfer }) => {
                self.check(transfer)?;
                self.state = State::Granting;
                self.outputs.push_back(Output::Reached(Phase::Loaded));
                self.outputs.push_back(Output::RecordGrant(self.transfer));
            }
            (State::Granted, Message::Owned { transfer }) => {
                self.check(transfer)?;
                self.state = State::Serving;
                self.patience = Patience::serving(now);
                self.outputs.push_back(Output::Reached(Phase::Running));
                self.outputs.push_back(Output::StartPush);
            }
            (State::Granted, Message::Refused { transfer, reason }) => {
                self.check(transfer)?;
                self.reclaim(&reason);
            }
            (
                State::Loading | State::Granting | State::Granted | State::Serving,
                Message::Request(run),
            ) => self.request(run),
            (State::Serving, Message::Complete(complete)) => self.complete(complete)?,
            (state, Message::Abort(Abort { reason }) | Message::Refused { reason, .. })
                if !state.granted() =>
            {
                self.fail(format!("the destination refuses the guest: {reason}"));
            }
            (_, Message::Alive) => {}
            (state, message) => {
                return Err(PeerError::Unexpected { got: message.kind(), state: state.name() });
            }
        }
        Ok(())
    }

    fn check(&self, transfer: u64) -> Result<(), PeerError> {
        if transfer == self.transfer {
            return Ok(());
        }
        Err(PeerError::Transfer { got: transfer, expected: self.transfer })
    }

    fn request(&mut self, run: PageRun) {
        // A page that another channel took is on its way: it travels once.
        let sent = &self.sent;
        self.outputs.extend(run.pages().filter(|&page| sent.take(page)).map(Output::Serve));
    }

    fn complete(&mut self, complete: Complete) -> Result<(), PeerError> {
        let unsent = self.sent.remaining();
        if unsent > 0 && !complete.guest_ended {
            return Err(PeerError::NotComplete { pages: unsent });
        }
        self.state = State::Ended;
        self.outputs.push_back(Output::RecordReleased(self.transfer));
        self.outputs.push_back(Output::Send(Message::Released));
        self.outputs.push_back(Output::Finish(Outcome::Completed));
        Ok(())
    }

    /// The destination has barred itself durably: the guest is ours again.
    fn reclaim(&mut self, reason: &str) {
        self.state = State::Ended;
        let reason = format!("the destination refused the grant: {reason}");
        self.outputs.push_back(Output::RecordReclaimed(self.transfer));
        self.outputs.push_back(Output::Resume);
        self.outputs.push_back(Output::Finish(Outcome::Aborted { reason }));
    }

    fn fail(&mut self, reason: String) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        if state.granted() {
            // Recovery begins here: the pages stay, and only a REFUSED of the destination, or an
            // operator, may let the guest run on this host again.
            self.outputs.push_back(Output::Finish(Outcome::Paused { reason }));
            return;
        }
        self.outputs.push_back(Output::Send(Message::Abort(Abort { reason: reason.clone() })));
        if state == State::Granting {
            self.outputs.push_back(Output::RecordReclaimed(self.transfer));
        }
        if state.paused() {
            self.outputs.push_back(Output::Resume);
        }
        self.outputs.push_back(Output::Finish(Outcome::Aborted { reason }));
    }
}
