//! Both machines against each other, one thread, no sockets: every message passes through the
//! wire format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use uuid::Uuid;

use super::*;
use crate::limits::{PEER_TIMEOUT, REDIAL_MAX, REDIAL_MIN, STALL_TIMEOUT};
use crate::page::{Claims, Class, PageSet, Paging, Requested, Sent};
use crate::schedule::{OnTimeout, RoundLimits};
use crate::wire::{
    Abort, Complete, Encoding, MemslotLayout, Message, Mode, Offer, RunHead, Section, decode,
    encode,
};

const PAGES: u32 = 8;

/// Where a test makes something fail.
#[derive(Default)]
struct Faults {
    prepare: bool,
    save: bool,
    load: bool,
    grant_record: bool,
    owned_record: bool,
    lost_before_grant_arrives: bool,
    /// The destination's process has no session any more, and this is what its records say.
    forgotten: Option<Answer>,
}

struct Pair {
    source: Source,
    destination: Destination,
    sent: Arc<Sent>,
    claims: Arc<Claims>,
    now: Instant,
    faults: Faults,
    /// Pages that are written during each round, while there are any.
    dirty: Vec<Vec<u32>>,
    /// Nothing that is pushed arrives.
    swallows: bool,
    /// Both channels carry bytes.
    connected: bool,
    /// What each side did, by name.
    log: Vec<String>,
    source_end: Option<Outcome>,
    destination_end: Option<Outcome>,
}

fn wire<'a>(message: &Message<'_>, bytes: &'a mut Vec<u8>) -> Message<'a> {
    bytes.clear();
    encode(message, bytes);
    Message::read(&decode(bytes).unwrap().unwrap(), Paging::base(PAGES)).unwrap()
}

fn result(fails: bool) -> Result<(), String> {
    if fails { Err("made to fail".into()) } else { Ok(()) }
}

impl Pair {
    fn new(faults: Faults) -> Pair {
        Pair::of(Mode::Postcopy, faults)
    }

    fn of(mode: Mode, faults: Faults) -> Pair {
        let offer = Offer {
            guest: Uuid::from_u128(1),
            transfer: 4,
            page_bytes: 4096,
            mode,
            connections: 2,
            memslots: vec![MemslotLayout { gpa: 0, bytes: u64::from(PAGES) * 4096 }],
            config: vec![],
            requirements: vec![],
            base: None,
        };
        let (sent, now) = (Arc::new(Sent::new(PAGES)), Instant::now());
        let (downtime, timeout) = (Duration::from_millis(300), Duration::from_secs(60));
        let limits = RoundLimits { downtime, timeout, on_timeout: OnTimeout::Cancel };
        Pair {
            source: Source::new(offer, limits, Arc::clone(&sent), now),
            destination: Destination::new(now),
            sent,
            claims: Arc::new(Claims::new(PAGES)),
            now,
            faults,
            dirty: Vec::new(),
            swallows: false,
            connected: true,
            log: Vec::new(),
            source_end: None,
            destination_end: None,
        }
    }

    fn did(&self, what: &str) -> bool {
        self.log.iter().any(|entry| entry == what)
    }

    fn run(&mut self) {
        while self.step_source() || self.step_destination() {}
    }

    fn tell_source(&mut self, input: SourceInput<'_>) {
        self.source.handle(input, self.now);
    }

    fn tell_destination(&mut self, input: DestinationInput<'_>) {
        self.destination.handle(input, self.now);
    }

    fn did_times(&self, what: &str) -> usize {
        self.log.iter().filter(|entry| *entry == what).count()
    }

    fn next_dirty(&mut self) -> PageSet {
        let mut dirty = PageSet::empty(PAGES);
        if !self.dirty.is_empty() {
            self.dirty.remove(0).into_iter().for_each(|page| dirty.insert(PageIndex(page)));
        }
        dirty
    }

    fn step_source(&mut self) -> bool {
        let Some(output) = self.source.poll_output() else {
            return false;
        };
        let mut bytes = Vec::new();
        match output {
            SourceOutput::Send(Message::Grant { .. }) if self.faults.lost_before_grant_arrives => {
                self.faults.lost_before_grant_arrives = false;
                self.lose_both();
            }
            SourceOutput::Send(message) => {
                if self.connected {
                    self.tell_destination(DestinationInput::Message(wire(&message, &mut bytes)));
                }
            }
            SourceOutput::ConnectBulk { .. } => {
                for _ in 0..2 {
                    self.tell_destination(DestinationInput::BulkJoined);
                }
                self.tell_source(SourceInput::BulkConnected(Ok(())));
            }
            SourceOutput::StartTracking => self.tell_source(SourceInput::TrackingStarted(Ok(()))),
            SourceOutput::Collect => {
                let dirty = self.next_dirty();
                self.now += Duration::from_secs(1);
                self.tell_source(SourceInput::Collected(Ok(dirty)));
            }
            SourceOutput::PauseAndSave => {
                self.log.push("pause".into());
                let sections = vec![Section { id: 1, version: 1, bytes: vec![] }];
                let dirty = self.next_dirty();
                let saved = result(self.faults.save).map(|()| Saved { sections, dirty });
                self.tell_source(SourceInput::Saved(saved));
            }
            SourceOutput::RecordGrant(4) => {
                self.log.push("granted".into());
                self.tell_source(SourceInput::GrantRecorded(result(self.faults.grant_record)));
            }
            SourceOutput::Serve(run) => {
                let head = RunHead::new(PageSize::BASE, run, Encoding::Zero, &[]);
                if self.connected {
                    self.tell_destination(DestinationInput::Message(Message::Pages(head, &[])));
                }
            }
            SourceOutput::Dial { epoch, .. } => self.dial(epoch),
            SourceOutput::StartPush => {
                self.log.push("push".into());
                if self.source.migration_state() != MigrationState::PostcopyActive {
                    self.push();
                }
            }
            SourceOutput::HangUp => self.connected = false,
            SourceOutput::Interrupted(_) => self.log.push("source interrupted".into()),
            SourceOutput::StopTracking => self.log.push("stop tracking".into()),
            SourceOutput::Resume => self.log.push("resume".into()),
            SourceOutput::RecordReclaimed(4) => self.log.push("reclaimed".into()),
            SourceOutput::RecordReleased(4) => self.log.push("released".into()),
            SourceOutput::Reached(phase) => self.log.push(format!("source {phase:?}")),
            SourceOutput::Finish(outcome) => self.source_end = Some(outcome),
            other => panic!("{other:?}"),
        }
        true
    }

    /// The source comes back, if the destination still has the session.
    fn dial(&mut self, epoch: u32) {
        self.log.push("dial".into());
        match self.faults.forgotten.clone() {
            None => self.tell_destination(DestinationInput::Resume { epoch }),
            Some(answer) => {
                self.connected = true;
                self.tell_source(SourceInput::Dialled(Ok(())));
                let message = match answer {
                    Answer::Refused | Answer::Refuse => {
                        Message::Refused { transfer: 4, reason: "no grant came".into() }
                    }
                    Answer::MovedOn => Message::Complete(Complete::moved_on()),
                    Answer::Gone => Message::Gone { transfer: 4 },
                    Answer::Unknown(reason) => Message::Abort(Abort { reason }),
                };
                self.tell_source(SourceInput::Message(message));
            }
        }
    }

    fn step_destination(&mut self) -> bool {
        let Some(output) = self.destination.poll_output() else {
            return false;
        };
        self.perform_destination(output);
        true
    }

    fn perform_destination(&mut self, output: DestinationOutput) {
        let mut bytes = Vec::new();
        match output {
            DestinationOutput::Send(message) => {
                if self.connected {
                    self.tell_source(SourceInput::Message(wire(&message, &mut bytes)));
                }
            }
            DestinationOutput::HangUp => self.connected = false,
            DestinationOutput::Interrupted(_) => self.log.push("destination interrupted".into()),
            DestinationOutput::Adopt { .. } => {
                self.connected = true;
                self.tell_source(SourceInput::Dialled(Ok(())));
                self.tell_destination(DestinationInput::Adopted);
            }
            DestinationOutput::Discard(run) => {
                self.claims.emptied(run);
                self.log.push(format!("empty {run}"));
            }
            DestinationOutput::Prepare(_) => {
                let claims = Arc::clone(&self.claims);
                let prepared =
                    result(self.faults.prepare).map(|()| Prepared { claims, session: [7; 16] });
                self.tell_destination(DestinationInput::Prepared(prepared));
            }
            DestinationOutput::Load(_) => {
                // Loading touches memory: the page must come before the guest is ours.
                self.tell_destination(DestinationInput::Fault(PageIndex(1)));
                self.tell_destination(DestinationInput::Loaded(result(self.faults.load)));
            }
            DestinationOutput::RecordOwned(4) => {
                self.log.push("owned".into());
                let recorded = result(self.faults.owned_record);
                self.tell_destination(DestinationInput::OwnedRecorded(recorded));
            }
            DestinationOutput::RecordRefused(4) => {
                self.log.push("refused".into());
                self.tell_destination(DestinationInput::RefusedRecorded(Ok(())));
            }
            DestinationOutput::Install(head) => self.install(head.run),
            DestinationOutput::StartGuest => self.log.push("start".into()),
            DestinationOutput::Abandon => self.log.push("discard".into()),
            DestinationOutput::Wake(_) | DestinationOutput::Reached(_) => {}
            DestinationOutput::Finish(outcome) => self.destination_end = Some(outcome),
            other => panic!("{other:?}"),
        }
    }

    fn install(&mut self, run: PageRun) {
        self.claims.begin(run).unwrap();
        if self.claims.finish(run, Class::Zero, |_| {}) {
            self.tell_destination(DestinationInput::AllInstalled);
        }
    }

    /// Everything that was not asked for comes over the bulk channel.
    fn push(&mut self) {
        for page in (0..PAGES).map(PageIndex) {
            if self.sent.take(page) && !self.swallows {
                self.install(PageRun::one(page));
            }
        }
        self.tell_source(SourceInput::Pushed);
        if !self.swallows {
            self.tell_destination(DestinationInput::PushEnded);
            self.tell_destination(DestinationInput::PushEnded);
        }
    }

    /// Time passes until the source dials, and all that follows happens.
    fn dial_again(&mut self) {
        self.now += REDIAL_MAX;
        self.source.handle_timeout(self.now);
        self.run();
    }

    fn lose_both(&mut self) {
        self.connected = false;
        let lost = || PeerError::Lost("cut".into());
        self.tell_source(SourceInput::PeerFailed(lost()));
        self.tell_destination(DestinationInput::PeerFailed(lost()));
    }
}

fn aborted(end: Option<&Outcome>) -> bool {
    matches!(end, Some(Outcome::Aborted { .. }))
}

impl Pair {
    /// Both sides wait for each other, and nothing is over.
    fn is_paused(&self) -> bool {
        let paused = MigrationState::PostcopyPaused;
        self.source.migration_state() == paused
            && self.destination.migration_state() == paused
            && self.source_end.is_none()
            && self.destination_end.is_none()
    }
}

#[test]
fn a_guest_moves_and_both_sides_know() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    assert!(pair.did("start") && pair.did("push") && !pair.did("resume"));
    pair.tell_destination(DestinationInput::Fault(PageIndex(5)));
    pair.run();
    assert!(!pair.sent.take(PageIndex(5)), "a fault is answered");
    pair.push();
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
    assert!(pair.did("released"));
}

/// The destination may say that it has all before the threads of the push say that they are done,
/// or after it; the timeline has the end of the push either way, once.
#[test]
fn the_end_of_the_push_is_told_before_the_end_whoever_is_first() {
    for complete_is_first in [true, false] {
        let mut pair = Pair::new(Faults::default());
        pair.run();
        for page in (0..PAGES).map(PageIndex) {
            if pair.sent.take(page) {
                pair.install(PageRun::one(page));
            }
        }
        if !complete_is_first {
            pair.tell_source(SourceInput::Pushed);
        }
        pair.tell_destination(DestinationInput::PushEnded);
        pair.tell_destination(DestinationInput::PushEnded);
        pair.run();
        pair.tell_source(SourceInput::Pushed);
        pair.run();
        assert_eq!(pair.source_end, Some(Outcome::Completed));
        let mut told = pair.log.iter().filter(|told| told.starts_with("source "));
        assert!(told.any(|told| told == "source Running"), "{:?}", pair.log);
        assert!(told.any(|told| told == "source Pushed"), "{:?}", pair.log);
        assert_eq!(pair.did_times("source Pushed"), 1);
    }
}

#[test]
fn any_failure_before_the_grant_leaves_the_guest_running_at_the_source() {
    let failures = [
        Faults { prepare: true, ..Faults::default() },
        Faults { save: true, ..Faults::default() },
        Faults { load: true, ..Faults::default() },
        Faults { grant_record: true, ..Faults::default() },
    ];
    for faults in failures {
        let mut pair = Pair::new(faults);
        pair.run();
        assert!(aborted(pair.source_end.as_ref()) && aborted(pair.destination_end.as_ref()));
        assert_eq!(pair.did("pause"), pair.did("resume"), "{:?}", pair.log);
        assert!(!pair.did("start") && pair.did("discard"), "{:?}", pair.log);
    }
}

#[test]
fn a_refused_grant_gives_the_guest_back() {
    let mut pair = Pair::new(Faults { owned_record: true, ..Faults::default() });
    pair.run();
    assert!(aborted(pair.source_end.as_ref()) && aborted(pair.destination_end.as_ref()));
    assert!(pair.did("refused") && pair.did("reclaimed") && pair.did("resume"));
    assert!(!pair.did("start"));
}

#[test]
fn a_grant_that_gets_lost_leaves_nobody_running_until_the_refusal_is_known() {
    let faults = Faults { lost_before_grant_arrives: true, ..Faults::default() };
    let mut pair = Pair::new(faults);
    pair.run();
    assert!(pair.did("source interrupted") && pair.source_end.is_none());
    assert!(pair.did("granted") && !pair.did("resume") && !pair.did("start"));
    assert!(pair.did("refused"), "the destination bars itself: {:?}", pair.log);
    pair.faults.forgotten = Some(Answer::Unknown("wrong host".into()));
    pair.dial_again();
    assert!(pair.source_end.is_none() && !pair.did("resume"));
    pair.faults.forgotten = Some(Answer::Refused);
    pair.dial_again();
    assert!(aborted(pair.source_end.as_ref()));
    assert!(pair.did("reclaimed") && pair.did("resume"));
}

#[test]
fn a_guest_whose_destination_is_gone_is_lost_and_never_run_again() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.lose_both();
    pair.faults.forgotten = Some(Answer::Gone);
    pair.run();
    pair.dial_again();
    assert!(matches!(pair.source_end, Some(Outcome::Lost { .. })), "{:?}", pair.source_end);
    assert!(!pair.did("resume") && !pair.did("reclaimed"));
}

#[test]
fn a_window_is_answered_but_for_what_the_push_has_taken() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    // Loading has asked for page 1, so a fault behind it is a walk.
    pair.tell_destination(DestinationInput::Fault(PageIndex(2)));
    pair.run();
    let received = |pair: &Pair| pair.claims.received().runs().collect::<Vec<_>>();
    let run = |first, count| PageRun { first: PageIndex(first), count };
    assert_eq!(received(&pair), [run(1, 3)]);
    // The window of page 4 is as large as what is left.
    assert!(pair.sent.take(PageIndex(6)));
    pair.tell_destination(DestinationInput::Fault(PageIndex(4)));
    pair.run();
    assert_eq!(received(&pair), [run(1, 5), run(7, 1)]);
    assert_eq!(pair.claims.requested().runs().collect::<Vec<_>>(), [run(6, 1)]);
    assert_eq!(pair.sent.left().runs().collect::<Vec<_>>(), [run(0, 1)]);
    assert_eq!(pair.source_end, None);
}

#[test]
fn what_was_written_last_is_remembered_for_the_push() {
    let mut pair = Pair::of(Mode::Hybrid, Faults::default());
    pair.dirty = vec![vec![0, 1, 2, 3], vec![2, 5]];
    pair.run();
    assert!(pair.dirty.is_empty());
    let written: Vec<_> = pair.source.written_last().runs().map(|run| run.first.0).collect();
    assert_eq!(written, [2, 5]);
    assert_eq!(pair.source.written_last().len(), 2);
}

#[test]
fn a_peer_lost_while_pages_are_missing_is_waited_for_and_the_session_goes_on() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    // Sent and never received.
    assert!(pair.sent.take(PageIndex(6)));
    pair.lose_both();
    pair.run();
    assert!(pair.is_paused() && !pair.did("resume"));
    // Faults stay parked, and are not asked of anybody.
    pair.tell_destination(DestinationInput::Fault(PageIndex(3)));
    assert_eq!(pair.destination.poll_output(), None);
    pair.dial_again();
    assert_eq!(pair.claims.request(PageIndex(3)), Requested::Present, "asked for again");
    pair.push();
    pair.run();
    assert_eq!(pair.claims.remaining(), 0, "page 6 travels again");
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
}

#[test]
fn what_arrives_while_the_channels_are_hung_up_is_said_to_be_here() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.tell_destination(DestinationInput::Resume { epoch: 1 });
    assert_eq!(pair.destination.poll_output(), Some(DestinationOutput::HangUp));
    // By a thread that the driver waits for.
    pair.install(PageRun::one(PageIndex(3)));
    assert_eq!(pair.destination.poll_output(), Some(DestinationOutput::Adopt { epoch: 1 }));
    assert_eq!(pair.destination.poll_output(), None);
    pair.tell_destination(DestinationInput::Adopted);
    let said = pair.destination.poll_output();
    let Some(DestinationOutput::Send(Message::Received(part))) = said else { panic!("{said:?}") };
    let mut received = PageSet::empty(PAGES);
    part.add_to(&mut received);
    assert!(received.contains(PageIndex(3)));
}

#[test]
fn a_guest_that_is_whole_waits_for_no_source() {
    let interrupted = || {
        let mut pair = Pair::new(Faults::default());
        pair.run();
        pair.tell_destination(DestinationInput::PeerFailed(PeerError::Lost("cut".into())));
        while pair.step_destination() {}
        let mut left = PageSet::full(PAGES);
        pair.claims.received().runs().for_each(|run| left.remove_run(run));
        for run in left.runs() {
            pair.claims.begin(run).unwrap();
            pair.claims.finish(run, Class::Zero, |_| {});
        }
        assert!(pair.destination_end.is_none());
        pair
    };
    let mut pair = interrupted();
    pair.tell_destination(DestinationInput::AllInstalled);
    while pair.step_destination() {}
    assert_eq!(pair.destination_end, Some(Outcome::Completed));

    let mut pair = interrupted();
    pair.tell_destination(DestinationInput::Abandon("the operator wants to end".into()));
    while pair.step_destination() {}
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
}

#[test]
fn a_refusal_that_cannot_be_recorded_is_recorded_again() {
    let mut pair = Pair::new(Faults { owned_record: true, ..Faults::default() });
    loop {
        while pair.step_source() {}
        match pair.destination.poll_output().expect("it comes to refuse") {
            DestinationOutput::RecordRefused(4) => break,
            other => pair.perform_destination(other),
        }
    }
    pair.tell_destination(DestinationInput::RefusedRecorded(Err("no space".into())));
    pair.run();
    assert!(pair.destination_end.is_none() && pair.source_end.is_none() && !pair.did("resume"));
    pair.now = pair.destination.poll_timeout().expect("it tries again");
    pair.destination.handle_timeout(pair.now);
    pair.run();
    assert!(pair.did("refused") && aborted(pair.destination_end.as_ref()));
    pair.faults.forgotten = Some(Answer::Refused);
    pair.tell_source(SourceInput::PeerFailed(PeerError::Lost("it hung up".into())));
    pair.dial_again();
    assert!(aborted(pair.source_end.as_ref()) && pair.did("resume"), "{:?}", pair.log);
}

#[test]
fn channels_that_are_lost_together_are_one_loss() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    for _ in 0..5 {
        pair.tell_source(SourceInput::PeerFailed(PeerError::Lost("cut".into())));
    }
    pair.run();
    assert_eq!(pair.did_times("source interrupted"), 1);
    assert_eq!(pair.source.poll_timeout(), Some(pair.now + REDIAL_MIN));
}

#[test]
fn a_session_goes_on_after_any_number_of_losses() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    for page in 2..PAGES {
        pair.lose_both();
        pair.run();
        assert!(pair.is_paused());
        pair.dial_again();
        pair.tell_destination(DestinationInput::Fault(PageIndex(page)));
        pair.run();
        assert_eq!(pair.claims.request(PageIndex(page)), Requested::Present);
    }
    pair.push();
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.did_times("start"), 1);
}

#[test]
fn hybrid_sends_rounds_and_what_is_dirty_follows_the_guest() {
    let mut pair = Pair::of(Mode::Hybrid, Faults::default());
    pair.dirty = vec![vec![2, 3], vec![3, 5]];
    pair.run();
    assert!(pair.did("empty pages 2..4") && pair.did("empty pages 3..4"), "{:?}", pair.log);
    assert!(pair.did("start") && pair.did("stop tracking"));
    // Page 1 was not written, and is not sent again although loading touches it.
    let left: Vec<_> = pair.sent.left().runs().collect();
    assert_eq!(left.len(), 2, "pages 2, 3 and 5 follow: {left:?}");
    pair.push();
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.claims.remaining(), 0);
}

#[test]
fn precopy_leaves_nothing_for_later() {
    let mut pair = Pair::of(Mode::Precopy, Faults::default());
    pair.dirty = vec![vec![0, 1, 2, 3, 4, 5], vec![4], vec![7]];
    pair.run();
    assert_eq!((pair.sent.remaining(), pair.claims.remaining()), (0, 0));
    assert!(pair.did("empty pages 7..8") && pair.did("start"), "{:?}", pair.log);
    pair.push();
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
}

#[test]
fn a_failure_in_a_round_or_a_cancel_leaves_the_guest_running_at_the_source() {
    let end = |input: fn() -> SourceInput<'static>| {
        let mut pair = Pair::of(Mode::Hybrid, Faults::default());
        while pair.source.migration_state() != MigrationState::Active {
            assert!(pair.step_source() || pair.step_destination());
        }
        pair.tell_source(input());
        pair.run();
        assert!(!pair.did("pause") && pair.did("stop tracking") && pair.did("discard"));
        assert!(aborted(pair.destination_end.as_ref()));
        pair.source_end
    };
    assert!(aborted(end(|| SourceInput::PeerFailed(PeerError::Lost("cut".into()))).as_ref()));
    assert_eq!(end(|| SourceInput::Cancel), Some(Outcome::Cancelled));
}

#[test]
fn a_connection_that_ends_after_the_last_page_is_no_loss() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.push();
    pair.tell_destination(DestinationInput::PeerFailed(PeerError::Lost("end of stream".into())));
    while pair.step_destination() {}
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
}

#[test]
fn the_end_of_a_push_that_forgot_pages_is_no_completion() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.tell_destination(DestinationInput::PushEnded);
    pair.tell_destination(DestinationInput::PushEnded);
    pair.run();
    assert!(pair.did("destination interrupted") && pair.destination_end.is_none());
}

#[test]
fn a_destination_that_cannot_have_all_pages_is_not_believed() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    let complete = Complete { zero: PAGES, data: 0, guest_ended: false };
    pair.tell_source(SourceInput::Message(Message::Complete(complete)));
    while pair.step_source() {}
    assert!(pair.did("source interrupted") && pair.source_end.is_none());
}

#[test]
fn a_guest_that_ends_while_moving_ends_the_migration() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.tell_destination(DestinationInput::GuestEnded);
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
    assert!(!pair.did("source Pushed"), "pages were left: {:?}", pair.log);
}

#[test]
fn silence_is_an_abort_before_the_grant_and_a_loss_after_it() {
    let mut pair = Pair::new(Faults::default());
    let hour = Duration::from_secs(3600);
    pair.source.handle_timeout(pair.now + hour);
    while pair.source.poll_output().is_some_and(|output| {
        if let SourceOutput::Finish(outcome) = output {
            pair.source_end = Some(outcome);
        }
        true
    }) {}
    assert!(aborted(pair.source_end.as_ref()), "{:?}", pair.source_end);

    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.source.handle_timeout(pair.now + hour);
    pair.destination.handle_timeout(pair.now + hour);
    pair.run();
    assert!(pair.is_paused());
}

/// What is pushed does not arrive, and the source says that it is alive all the time.
#[test]
fn pages_that_are_swallowed_while_the_source_is_alive_are_a_loss() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    let begun = pair.now;
    while !pair.did("destination interrupted") && pair.now < begun + STALL_TIMEOUT * 4 {
        pair.now += Duration::from_secs(1);
        pair.tell_destination(DestinationInput::Message(Message::Alive));
        pair.destination.handle_timeout(pair.now);
        while pair.step_destination() {}
    }
    assert_eq!(pair.now - begun, STALL_TIMEOUT * 2, "two channels");
    pair.lose_both();
    pair.run();
    pair.dial_again();
    pair.push();
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));

    // In a round the guest stays where it is.
    let mut pair = Pair::of(Mode::Precopy, Faults::default());
    pair.swallows = true;
    pair.run();
    assert!(pair.did("push"));
    let begun = pair.now;
    while pair.destination_end.is_none() && pair.now < begun + STALL_TIMEOUT * 4 {
        pair.now += Duration::from_secs(1);
        pair.tell_destination(DestinationInput::Message(Message::Alive));
        pair.destination.handle_timeout(pair.now);
        pair.run();
    }
    assert!(aborted(pair.source_end.as_ref()) && aborted(pair.destination_end.as_ref()));
    assert_eq!(pair.now - begun, STALL_TIMEOUT * 2);
    assert!(!pair.did("pause"));
}

#[test]
fn a_source_that_sends_a_long_message_slowly_is_not_silent() {
    let step = PEER_TIMEOUT / 2;
    let mut pair = Pair::new(Faults::default());
    pair.run();
    // A page that takes longer than this is a stall.
    let begun = pair.now;
    while pair.now + step < begun + STALL_TIMEOUT {
        pair.now += step;
        pair.tell_destination(DestinationInput::PartHeard);
        pair.destination.handle_timeout(pair.now);
    }
    while pair.step_destination() {}
    assert!(!pair.did("destination interrupted"), "{:?}", pair.log);
    pair.destination.handle_timeout(pair.now + PEER_TIMEOUT);
    while pair.step_destination() {}
    assert!(pair.did("destination interrupted"), "{:?}", pair.log);
}

#[test]
fn messages_out_of_place_and_other_transfers_are_refused() {
    let mut pair = Pair::new(Faults::default());
    pair.tell_source(SourceInput::Message(Message::Owned { transfer: 4 }));
    while pair.step_source() {}
    assert!(aborted(pair.source_end.as_ref()));

    let mut pair = Pair::new(Faults::default());
    pair.tell_destination(DestinationInput::Message(Message::Grant { transfer: 4 }));
    while pair.step_destination() {}
    assert!(aborted(pair.destination_end.as_ref()) && !pair.did("owned"));
}
