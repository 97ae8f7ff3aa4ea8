//! The source's side.

mod recovery;
mod rounds;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun};

use self::recovery::Redial;
use self::rounds::RoundStep;
use self::state::State;
use super::patience::{Due, Patience};
use super::{MigrationState, Outcome, PeerError, Phase};
use crate::limits::{SETUP_TIMEOUT, SWITCHOVER_TIMEOUT};
use crate::page::{PageSet, Sent};
use crate::schedule::{RoundLimits, Rounds};
use crate::wire::{Abort, BitmapPart, Complete, Message, Mode, Offer, Section};

/// What happens to the source.
#[derive(Debug)]
pub enum Input<'a> {
    /// The destination said something.
    Message(Message<'a>),
    /// The bulk channels of this epoch are connected, or could not be.
    BulkConnected(Result<(), String>),
    /// Writes to guest memory are noted from now on, or cannot be.
    TrackingStarted(Result<(), String>),
    /// The pages that were written since the last time, or since tracking began.
    Collected(Result<PageSet, String>),
    /// The guest is paused and its state saved, or it could not be and may be paused.
    Saved(Result<Saved, String>),
    /// The grant is on stable storage, or is not.
    GrantRecorded(Result<(), String>),
    /// The push has sent all that it had, or was told to stop, on all bulk channels.
    Pushed,
    /// The operator wants the rounds to end and the guest to change hands.
    SwitchNow,
    /// The channel that resumes the session is connected and has said so, or could not be.
    Dialled(Result<(), String>),
    /// The operator knows that the destination can be reached, perhaps elsewhere.
    Redial,
    /// Somebody here wants no migration: the guest ended, the operator said so. Without effect
    /// after the grant.
    GiveUp(String),
    /// The operator wants no migration. Without effect after the grant.
    Cancel,
    /// The operator gives up the guest, whose pages are only here.
    Abandon(String),
    /// The peer broke the protocol, or its connection did.
    PeerFailed(PeerError),
}

/// The guest, paused.
#[derive(Debug)]
pub struct Saved {
    /// The state of vCPUs and devices.
    pub sections: Vec<Section>,
    /// The pages that were written since the last collection; none in post-copy.
    pub dirty: PageSet,
}

/// What the source does.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this.
    Send(Message<'static>),
    /// Connect the bulk channels of this session.
    ConnectBulk {
        /// What they say to belong to it.
        session: [u8; 16],
        /// And to be of this time.
        epoch: u32,
    },
    /// Begin to note which pages the guest writes.
    StartTracking,
    /// Find out which pages were written.
    Collect,
    /// Writes need not be noted any more.
    StopTracking,
    /// Pause the guest, drain its devices, save their state, collect for the last time.
    PauseAndSave,
    /// Write GRANTED for this transfer to stable storage.
    RecordGrant(u64),
    /// Write that this transfer was refused: the guest is ours again.
    RecordReclaimed(u64),
    /// Write that the destination has everything.
    RecordReleased(u64),
    /// Begin to push what is not sent, over all bulk channels.
    StartPush,
    /// End the round early: what is not sent stays.
    StopPush,
    /// Send these pages, which are taken, on the urgent channel.
    Serve(PageRun),
    /// Close all channels; nothing that is still on them counts.
    HangUp,
    /// The destination is lost for now, and why; both sides keep the guest safe.
    Interrupted(String),
    /// Connect a channel that resumes this session.
    Dial {
        /// The session.
        session: [u8; 16],
        /// One more than the last.
        epoch: u32,
    },
    /// Let the guest run on here.
    Resume,
    /// An instant worth a place in the timeline.
    Reached(Phase),
    /// The end.
    Finish(Outcome),
}

/// The source of one migration.
#[derive(Debug)]
pub struct Source {
    state: State,
    mode: Mode,
    transfer: u64,
    session: [u8; 16],
    epoch: u32,
    sent: Arc<Sent>,
    /// What the guest wrote since it was looked for before, when it was looked for last.
    written: Arc<PageSet>,
    patience: Patience,
    rounds: Rounds,
    round: rounds::Current,
    /// Writes are being noted.
    tracking: bool,
    /// What is sent when the last round of pre-copy is done.
    sections: Vec<Section>,
    /// The destination has said that the guest runs there.
    owned: bool,
    /// It is told that the push is over, which it is for the first time.
    pushed: bool,
    redial: Redial,
    received: PageSet,
    outputs: VecDeque<Output>,
}

impl Source {
    /// Begins by sending `offer` on a connection that has exchanged its preambles.
    pub fn new(offer: Offer, limits: RoundLimits, sent: Arc<Sent>, now: Instant) -> Source {
        let (transfer, mode) = (offer.transfer, offer.mode);
        let rounds = Rounds::new(mode, limits, offer.page_bytes, now);
        let outputs = [Output::Reached(Phase::Started), Output::Send(Message::Offer(offer))];
        Source {
            state: State::Offered,
            mode,
            transfer,
            session: [0; 16],
            epoch: 0,
            written: Arc::new(PageSet::empty(sent.page_count())),
            sent,
            patience: Patience::step(now, SETUP_TIMEOUT),
            rounds,
            round: rounds::Current::new(now),
            tracking: false,
            sections: Vec::new(),
            owned: false,
            pushed: false,
            redial: Redial::new(now),
            received: PageSet::empty(0),
            outputs: outputs.into(),
        }
    }

    /// The next thing to do; `None` until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Source::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            // Whoever dials says how it went.
            State::Ended | State::Dialling => None,
            State::Interrupted => Some(self.redial.at()),
            State::Round(RoundStep::Pushing { stopped: false, .. }) => {
                let deadline = self.rounds.deadline();
                Some(deadline.map_or(self.patience.next(), |at| at.min(self.patience.next())))
            }
            _ => Some(self.patience.next()),
        }
    }

    /// The state in the words that users know; that of the outcome is told by the outcome.
    pub fn migration_state(&self) -> MigrationState {
        self.state.migration_state()
    }

    /// Whether writes of the guest are being noted.
    pub fn tracks(&self) -> bool {
        self.tracking
    }

    /// What the guest wrote last before it changes hands: of the pages that are left, those that it
    /// is likely to need first. Whatever else is left after rounds was written before that, or
    /// never sent. Empty in post-copy.
    pub fn written_last(&self) -> &Arc<PageSet> {
        &self.written
    }

    /// How often the session was resumed, or tried to be.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        let result = match input {
            Input::Message(message) => {
                self.patience.heard(now);
                self.message(message, now).map_err(|error| error.to_string())
            }
            Input::BulkConnected(result) => result.map(|()| self.bulk_connected(now)),
            Input::TrackingStarted(result) => result.map(|()| self.tracking_started(now)),
            Input::Collected(result) => result.and_then(|dirty| self.collected(dirty, now)),
            Input::Saved(result) => result.map(|saved| self.saved(saved, now)),
            Input::GrantRecorded(result) => result.map(|()| self.grant_recorded(now)),
            Input::Pushed => {
                self.pushed(now);
                Ok(())
            }
            Input::SwitchNow => {
                self.switch_now();
                Ok(())
            }
            Input::Dialled(result) => result.map(|()| self.dialled(now)),
            Input::Redial => {
                self.redial_now(now);
                Ok(())
            }
            Input::GiveUp(reason) if self.state.granted() => {
                tracing::debug!(reason, "too late to give up: the guest is granted");
                Ok(())
            }
            Input::GiveUp(reason) => Err(reason),
            Input::Cancel => {
                self.cancel();
                Ok(())
            }
            Input::Abandon(reason) => {
                self.abandon(reason);
                Ok(())
            }
            // Of channels that are closed already.
            Input::PeerFailed(_) if self.state == State::Interrupted => Ok(()),
            Input::PeerFailed(error) => Err(error.to_string()),
        };
        if let Err(reason) = result {
            self.fail(reason, now);
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Ended | State::Dialling => return,
            State::Interrupted => return self.dial_if_due(now),
            State::Round(_) => self.check_round_deadline(now),
            _ => {}
        }
        match self.patience.due(now) {
            Due::Nothing => {}
            Due::SayAlive => self.outputs.push_back(Output::Send(Message::Alive)),
            Due::PeerSilent(silent) => {
                let (seconds, state) = (silent.as_secs(), self.state.name());
                self.fail(PeerError::Silent { seconds, state }.to_string(), now);
            }
        }
    }

    fn message(&mut self, message: Message<'_>, now: Instant) -> Result<(), PeerError> {
        match (self.state, message) {
            (State::Offered, Message::Accept(accept)) => {
                self.state = State::Connecting;
                self.session = accept.session;
                self.outputs.push_back(Output::Reached(Phase::Prepared));
                self.connect_bulk();
            }
            (_, Message::RoundReady { number }) => self.round_ready(number, now)?,
            (_, Message::RoundDone { number }) => self.round_done(number, now)?,
            (State::Loading, Message::Loaded { transfer }) => {
                self.check(transfer)?;
                self.state = State::Granting;
                self.outputs.push_back(Output::Reached(Phase::Loaded));
                self.outputs.push_back(Output::RecordGrant(self.transfer));
            }
            (State::Granted, Message::Owned { transfer }) => {
                self.check(transfer)?;
                self.guest_is_owned();
                self.serve(now);
            }
            (State::Granted | State::Resuming, Message::Refused { transfer, reason })
                if !self.owned =>
            {
                self.check(transfer)?;
                self.reclaim(&reason);
            }
            (state, Message::Request(run)) if state.serves() => self.request(run),
            (State::Serving | State::Resuming | State::Reconnecting, Message::Complete(c)) => {
                self.complete(c)?;
            }
            (State::Resuming, message) => self.resuming(message)?,
            (state, Message::Abort(Abort { reason }) | Message::Refused { reason, .. })
                if !state.granted() =>
            {
                self.abort(format!("the destination refuses the guest: {reason}"));
            }
            (_, Message::Alive) => {}
            (_, message) => return Err(self.unexpected(&message)),
        }
        Ok(())
    }

    fn unexpected(&self, message: &Message<'_>) -> PeerError {
        PeerError::Unexpected { got: message.kind(), state: self.state.name() }
    }

    fn check(&self, transfer: u64) -> Result<(), PeerError> {
        if transfer == self.transfer {
            return Ok(());
        }
        Err(PeerError::Transfer { got: transfer, expected: self.transfer })
    }

    fn connect_bulk(&mut self) {
        let (session, epoch) = (self.session, self.epoch);
        self.outputs.push_back(Output::ConnectBulk { session, epoch });
    }

    fn bulk_connected(&mut self, now: Instant) {
        match self.state {
            State::Connecting if self.mode == Mode::Postcopy => self.pause_and_save(),
            State::Connecting => {
                self.state = State::Tracking;
                self.outputs.push_back(Output::StartTracking);
            }
            State::Reconnecting => self.serve(now),
            _ => {}
        }
    }

    fn pause_and_save(&mut self) {
        self.state = State::Saving;
        self.outputs.push_back(Output::PauseAndSave);
    }

    /// The guest stands still: what is not sent and what was written since are old at the
    /// destination, which discards them before it loads anything.
    fn saved(&mut self, saved: Saved, now: Instant) {
        if self.state != State::Saving {
            return;
        }
        self.stop_tracking();
        self.outputs.push_back(Output::Reached(Phase::Package));
        self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
        self.send_again(saved.dirty);
        self.sections = saved.sections;
        if self.round.finishing && self.sent.remaining() > 0 {
            return self.announce_round(now);
        }
        self.send_package(now);
    }

    fn send_package(&mut self, now: Instant) {
        self.state = State::Loading;
        self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
        let sections = std::mem::take(&mut self.sections);
        self.outputs.push_back(Output::Send(Message::Package(sections)));
    }

    /// Pages that the destination has were written here since. Returns how many had been sent.
    fn send_again(&mut self, dirty: PageSet) -> u32 {
        let old = self.sent.give_back(&dirty);
        let parts = BitmapPart::of(&dirty).map(|part| Output::Send(Message::Discard(part)));
        self.outputs.extend(parts);
        self.written = Arc::new(dirty);
        old
    }

    fn stop_tracking(&mut self) {
        if std::mem::take(&mut self.tracking) {
            self.outputs.push_back(Output::StopTracking);
        }
    }

    fn grant_recorded(&mut self, now: Instant) {
        if self.state != State::Granting {
            return;
        }
        self.state = State::Granted;
        self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
        self.outputs.push_back(Output::Reached(Phase::Granted));
        self.outputs.push_back(Output::Send(Message::Grant { transfer: self.transfer }));
    }

    fn guest_is_owned(&mut self) {
        if !std::mem::replace(&mut self.owned, true) {
            self.outputs.push_back(Output::Reached(Phase::Running));
        }
    }

    fn push_is_over(&mut self) {
        if !std::mem::replace(&mut self.pushed, true) {
            self.outputs.push_back(Output::Reached(Phase::Pushed));
        }
    }

    fn serve(&mut self, now: Instant) {
        self.state = State::Serving;
        self.patience = Patience::serving(now);
        self.outputs.push_back(Output::StartPush);
    }

    fn request(&mut self, run: PageRun) {
        // A page that another channel took is on its way: it travels once.
        let taken: Vec<PageIndex> = run.pages().filter(|&page| self.sent.take(page)).collect();
        // Somebody waits for the first page, and not for those behind it.
        let joins = |a: &PageIndex, b: &PageIndex| *a != run.first && a.0 + 1 == b.0;
        for pages in taken.chunk_by(joins) {
            let count = u32::try_from(pages.len()).expect("at most the run");
            self.outputs.push_back(Output::Serve(PageRun { first: pages[0], count }));
        }
    }

    fn complete(&mut self, complete: Complete) -> Result<(), PeerError> {
        let unsent = self.sent.remaining();
        if unsent > 0 && !complete.guest_ended {
            return Err(PeerError::NotComplete { pages: unsent });
        }
        self.guest_is_owned();
        if unsent == 0 {
            // Whoever has it all may say so before the threads that sent it do.
            self.push_is_over();
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

    fn fail(&mut self, reason: String, now: Instant) {
        match self.state {
            // Another channel of those that were: they are lost once.
            State::Interrupted => {}
            state if state.granted() => self.interrupt(reason, now),
            _ => self.abort(reason),
        }
    }

    fn cancel(&mut self) {
        if !self.state.granted() {
            self.stay("cancelled by the operator".into());
            self.outputs.push_back(Output::Finish(Outcome::Cancelled));
        }
    }

    fn abort(&mut self, reason: String) {
        self.stay(reason.clone());
        self.outputs.push_back(Output::Finish(Outcome::Aborted { reason }));
    }

    /// Before the grant: the guest runs on here as if nothing had happened.
    fn stay(&mut self, reason: String) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        self.stop_tracking();
        self.outputs.push_back(Output::Send(Message::Abort(Abort { reason })));
        if state == State::Granting {
            self.outputs.push_back(Output::RecordReclaimed(self.transfer));
        }
        if state.paused() {
            self.outputs.push_back(Output::Resume);
        }
    }
}
