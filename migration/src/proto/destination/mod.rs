//! The destination's side.

mod recovery;
mod refusal;
mod rounds;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun};

use self::state::State;
use super::patience::{Arrivals, Due, Patience};
use super::{MigrationState, Outcome, PeerError, Phase};
use crate::limits::{PEER_TIMEOUT, SETUP_TIMEOUT, SWITCHOVER_TIMEOUT, fault_window_pages_max};
use crate::page::{Claims, Class, Requested};
use crate::schedule::FaultWindows;
use crate::wire::{Abort, Accept, Complete, Kind, Message, Offer, RunHead, Section};

/// What happens to the destination.
#[derive(Debug)]
pub enum Input<'a> {
    /// The source said something. Page contents stay with the caller; see [`Output::Install`].
    Message(Message<'a>),
    /// The machine is built and its memory registered, or it cannot be.
    Prepared(Result<Prepared, String>),
    /// The guest's state is loaded, or it cannot be.
    Loaded(Result<(), String>),
    /// OWNED is on stable storage, or is not.
    OwnedRecorded(Result<(), String>),
    /// REFUSED is on stable storage, or is not.
    RefusedRecorded(Result<(), String>),
    /// A vCPU or a device touched a page that is not there.
    Fault(PageIndex),
    /// The channel that resumes the session is in use, and nothing is installed any more from those
    /// that were.
    Adopted,
    /// Bytes of a message came, and it is not whole yet: a huge page takes a while on a slow link.
    PartHeard,
    /// The last page was installed.
    AllInstalled,
    /// A bulk channel of this session and epoch has come.
    BulkJoined,
    /// One bulk channel has read the end of the push, or of the round.
    PushEnded,
    /// A channel has come that resumes this session; it replaces the one that was.
    Resume {
        /// What it said: larger than that of any channel before, or it comes too late.
        epoch: u32,
    },
    /// The guest powered off, or the operator ended it.
    GuestEnded,
    /// The operator gives up the guest, whose missing pages do not come.
    Abandon(String),
    /// The peer broke the protocol, or one of its connections did.
    PeerFailed(PeerError),
}

/// What the VM side has made ready.
#[derive(Debug)]
pub struct Prepared {
    /// The claims of the guest's pages.
    pub claims: Arc<Claims>,
    /// What the guest's other channels say to belong to it.
    pub session: [u8; 16],
}

/// What the destination does.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this.
    Send(Message<'static>),
    /// Build the machine: memory, vCPUs, userfaultfd; nothing outside this process.
    Prepare(Offer),
    /// Load this state, while faults are served.
    Load(Vec<Section>),
    /// Write OWNED for this transfer to stable storage.
    RecordOwned(u64),
    /// Write REFUSED for this transfer to stable storage.
    RecordRefused(u64),
    /// Let the vCPUs run.
    StartGuest,
    /// Install the pages of the message that was just handled: see [`Destination::poll_install`].
    Install(RunHead),
    /// Wake whoever waits on this page, which is there.
    Wake(PageIndex),
    /// What these pages hold is old: empty them, then tell [`Claims::emptied`]. Nobody installs any
    /// meanwhile.
    Discard(PageRun),
    /// Close all channels, and wait until nothing is installed from them any more.
    HangUp,
    /// The source is lost for now, and why; faults stay parked, what is installed stays.
    Interrupted(String),
    /// Use the channel that resumes this session from now on; [`Input::Adopted`] says that it is.
    Adopt {
        /// As it was given.
        epoch: u32,
    },
    /// Throw the machine away: it never ran.
    Abandon,
    /// An instant worth a place in the timeline.
    Reached(Phase),
    /// The end.
    Finish(Outcome),
}

/// The destination of one migration.
#[derive(Debug)]
pub struct Destination {
    state: State,
    transfer: u64,
    /// No pages until the machine is built: no page index is valid until then.
    claims: Arc<Claims>,
    windows: FaultWindows,
    /// How often the session was resumed.
    epoch: u32,
    /// The number of bulk channels, and of those that have read the end of the push.
    connections: u8,
    ended: u8,
    /// Bulk channels that have come, and when all of them must have: one that is lost on its way
    /// would be waited for while both sides say that they are alive.
    joined: u8,
    join_by: Option<Instant>,
    /// The round of pre-copy under way, or 0.
    round: u32,
    /// The channel was lost while the ownership was being recorded.
    lost: Option<String>,
    refusal: String,
    /// When the refusal that could not be recorded is recorded again.
    refuse_at: Option<Instant>,
    patience: Patience,
    arrivals: Arrivals,
    outputs: VecDeque<Output>,
}

impl Destination {
    /// Waits for an offer on a connection that has exchanged its preambles.
    pub fn new(now: Instant) -> Destination {
        Destination {
            state: State::AwaitOffer,
            transfer: 0,
            claims: Arc::new(Claims::new(0)),
            windows: FaultWindows::new(1),
            epoch: 0,
            connections: 0,
            ended: 0,
            joined: 0,
            join_by: None,
            round: 0,
            lost: None,
            refusal: String::new(),
            refuse_at: None,
            patience: Patience::step(now, SETUP_TIMEOUT),
            arrivals: Arrivals::over(0, 0, now),
            outputs: VecDeque::new(),
        }
    }

    /// The number of pages of the guest; 0 until the machine is built.
    pub fn page_count(&self) -> u32 {
        self.claims.page_count()
    }

    /// The number of bulk channels of the session.
    pub fn connections(&self) -> u8 {
        self.connections
    }

    /// What the source is told if it asks once more after this `outcome`; nothing if the records
    /// have the answer.
    pub fn last_words(&self, outcome: &Outcome) -> Option<Message<'static>> {
        match outcome {
            Outcome::Completed => {
                Some(Message::Complete(self.complete(self.claims.remaining() > 0)))
            }
            Outcome::Lost { .. } => Some(Message::Gone { transfer: self.transfer }),
            Outcome::Aborted { .. } | Outcome::Cancelled => None,
        }
    }

    /// The next thing to do; `None` until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The install that the message just handled asks for, if it does.
    pub fn poll_install(&mut self) -> Option<RunHead> {
        match self.outputs.front() {
            Some(&Output::Install(head)) => {
                self.outputs.pop_front();
                Some(head)
            }
            _ => None,
        }
    }

    /// When [`Destination::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.state == State::Refusing {
            return self.refuse_at;
        }
        let next = self.patience.next();
        let next = self.join_by.map_or(next, |at| at.min(next));
        let next = if self.pages_are_due() { next.min(self.arrivals.next()) } else { next };
        self.state.waits_for_source().then_some(next)
    }

    /// The state in the words that users know; that of the outcome is told by the outcome.
    pub fn migration_state(&self) -> MigrationState {
        self.state.migration_state(self.round > 0)
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        let result = match input {
            // A fault is taken in whatever the state: without a source it stays parked.
            Input::Fault(page) => {
                self.fault(page);
                Ok(())
            }
            _ if self.state == State::Ended => Ok(()),
            Input::Message(message) => {
                self.patience.heard(now);
                self.message(message, now)
            }
            Input::PartHeard => self.part_heard(now),
            Input::Prepared(result) => self.prepared(result, now),
            Input::Loaded(result) => self.loaded(result, now),
            Input::OwnedRecorded(result) => self.owned_recorded(result, now),
            Input::RefusedRecorded(result) => {
                self.refused_recorded(result.is_ok(), now);
                Ok(())
            }
            Input::AllInstalled => self.complete_if_whole(now),
            Input::PushEnded => self.push_has_ended(now),
            Input::Adopted => {
                self.adopted(now);
                Ok(())
            }
            Input::BulkJoined => {
                self.joined += 1;
                if self.joined >= self.connections {
                    self.join_by = None;
                }
                Ok(())
            }
            Input::Resume { epoch } => {
                self.resume(epoch);
                Ok(())
            }
            Input::GuestEnded => self.guest_ended(now),
            Input::Abandon(reason) => {
                self.abandon(reason);
                Ok(())
            }
            Input::PeerFailed(error) => Err(error.to_string()),
        };
        if let Err(reason) = result {
            self.fail(reason);
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Refusing {
            self.refuse_again_if_due(now);
        }
        if !self.state.waits_for_source() {
            return;
        }
        if self.join_by.is_some_and(|at| now >= at) {
            let (joined, connections) = (self.joined, self.connections);
            return self.fail(format!("{joined} of {connections} bulk channels have come in time"));
        }
        if let Some(stall) = self.stall(now) {
            return self.fail(stall.to_string());
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

    fn fault(&mut self, page: PageIndex) {
        match self.claims.request(page) {
            Requested::Now if self.state.pages_come() => {
                let run = self.windows.ask(page, &self.claims);
                self.outputs.push_back(Output::Send(Message::Request(run)));
            }
            Requested::Now | Requested::Before => {}
            Requested::Present => self.outputs.push_back(Output::Wake(page)),
        }
    }

    fn message(&mut self, message: Message<'_>, now: Instant) -> Result<(), String> {
        match (self.state, message) {
            (state, Message::Pages(head, _)) if state.pages_come() => {
                self.outputs.push_back(Output::Install(head));
            }
            (State::AwaitOffer, Message::Offer(offer)) => {
                self.state = State::Preparing;
                self.transfer = offer.transfer;
                self.connections = offer.connections;
                if let Ok(paging) = offer.paging() {
                    self.windows = FaultWindows::new(fault_window_pages_max(paging.size));
                }
                self.outputs.push_back(Output::Reached(Phase::Started));
                self.outputs.push_back(Output::Prepare(offer));
            }
            (State::AwaitPackage, Message::Discard(part)) => self.discard(&part)?,
            (State::AwaitPackage, Message::Round { number }) => self.begin_round(number, now)?,
            (State::AwaitPackage, Message::Package(sections)) => {
                self.state = State::Loading;
                self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
                self.outputs.push_back(Output::Reached(Phase::Package));
                self.outputs.push_back(Output::Load(sections));
            }
            (State::AwaitGrant, Message::Grant { transfer }) => {
                if transfer != self.transfer {
                    let expected = self.transfer;
                    return Err(PeerError::Transfer { got: transfer, expected }.to_string());
                }
                self.state = State::Recording;
                self.outputs.push_back(Output::Reached(Phase::Granted));
                self.outputs.push_back(Output::RecordOwned(transfer));
            }
            // Refused already: the answer that the source waits for is on its way.
            (State::Refusing, Message::Grant { .. }) | (_, Message::Alive) => {}
            (State::Completing, Message::Released) => {
                self.finish(Outcome::Completed);
            }
            (State::Running | State::Completing, Message::Abort(_)) => {
                return Err(self.unexpected(Kind::Abort));
            }
            // The source says itself that it never granted: no refusal is owed.
            (_, Message::Abort(Abort { reason })) => {
                self.throw_away(format!("the source gave up: {reason}"));
            }
            (_, message) => return Err(self.unexpected(message.kind())),
        }
        Ok(())
    }

    fn unexpected(&self, got: Kind) -> String {
        PeerError::Unexpected { got, state: self.state.name() }.to_string()
    }

    fn prepared(&mut self, result: Result<Prepared, String>, now: Instant) -> Result<(), String> {
        let Prepared { claims, session } = result?;
        self.claims = claims;
        self.state = State::AwaitPackage;
        self.patience = Patience::step(now, SETUP_TIMEOUT);
        self.join_by = Some(now + SETUP_TIMEOUT);
        self.outputs.push_back(Output::Reached(Phase::Prepared));
        self.outputs.push_back(Output::Send(Message::Accept(Accept { session })));
        Ok(())
    }

    fn loaded(&mut self, result: Result<(), String>, now: Instant) -> Result<(), String> {
        result?;
        if self.state == State::Loading {
            self.state = State::AwaitGrant;
            self.patience = Patience::step(now, SWITCHOVER_TIMEOUT);
            self.outputs.push_back(Output::Reached(Phase::Loaded));
            self.outputs.push_back(Output::Send(Message::Loaded { transfer: self.transfer }));
        }
        Ok(())
    }

    fn owned_recorded(&mut self, result: Result<(), String>, now: Instant) -> Result<(), String> {
        if self.state != State::Recording {
            return Ok(());
        }
        if let Err(reason) = result {
            self.refuse(reason);
            return Ok(());
        }
        self.ended = 0;
        self.state = State::Running;
        self.patience = Patience::serving(now);
        self.arrivals = Arrivals::over(self.connections, self.claims.remaining(), now);
        self.outputs.push_back(Output::StartGuest);
        self.outputs.push_back(Output::Reached(Phase::Running));
        if let Some(reason) = self.lost.take() {
            return Err(reason);
        }
        if self.epoch > 0 {
            self.say_what_is_here(now);
        } else {
            self.outputs.push_back(Output::Send(Message::Owned { transfer: self.transfer }));
        }
        self.complete_if_whole(now)
    }

    fn complete_if_whole(&mut self, now: Instant) -> Result<(), String> {
        if self.claims.remaining() > 0 {
            return Ok(());
        }
        // The last pages were on their way when the source was lost, which is not needed now.
        if self.state == State::Interrupted {
            self.finish(Outcome::Completed);
        }
        if self.state == State::Running && self.ended == self.connections {
            self.outputs.push_back(Output::Reached(Phase::LastPage));
            self.send_complete(false, now);
        }
        Ok(())
    }

    fn guest_ended(&mut self, now: Instant) -> Result<(), String> {
        match self.state {
            State::Running => self.send_complete(true, now),
            // Nobody needs the pages that are missing.
            State::Interrupted => self.finish(Outcome::Completed),
            _ => {}
        }
        Ok(())
    }

    fn send_complete(&mut self, guest_ended: bool, now: Instant) {
        self.state = State::Completing;
        self.patience = Patience::step(now, PEER_TIMEOUT);
        self.outputs.push_back(Output::Send(Message::Complete(self.complete(guest_ended))));
    }

    /// What is said to a source of which nothing more is needed.
    fn complete(&self, guest_ended: bool) -> Complete {
        let (zero, data) = (self.claims.installed(Class::Zero), self.claims.installed(Class::Data));
        Complete { zero, data, guest_ended }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.state = State::Ended;
        self.outputs.push_back(Output::Finish(outcome));
    }

    fn fail(&mut self, reason: String) {
        match self.state {
            State::Ended | State::Interrupted => {}
            // All pages are here: the guest needs nothing from the source any more.
            State::Completing => self.finish(Outcome::Completed),
            State::Running if self.claims.remaining() == 0 => {
                self.finish(Outcome::Completed);
            }
            State::Running => self.interrupt(reason),
            // The grant came. Whether the guest is ours is being written.
            State::Recording => {
                self.lost = Some(reason);
                self.outputs.push_back(Output::HangUp);
            }
            // A grant may have been given: only a durable refusal lets the source run on.
            State::AwaitGrant => self.refuse(reason),
            // It is being written. The source learns it, if not by this channel.
            State::Refusing => self.outputs.push_back(Output::HangUp),
            State::AwaitOffer | State::Preparing | State::AwaitPackage | State::Loading => {
                let abort = Abort { reason: reason.clone() };
                self.outputs.push_back(Output::Send(Message::Abort(abort)));
                self.throw_away(reason);
            }
        }
    }

    fn throw_away(&mut self, reason: String) {
        self.outputs.push_back(Output::Abandon);
        self.finish(Outcome::Aborted { reason });
    }
}
