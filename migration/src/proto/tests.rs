//! Both machines against each other, one thread, no sockets: every message passes through the
//! wire format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_uffd::page::{PageIndex, PageRun};
use uuid::Uuid;

use super::*;
use crate::page::{Claims, Class, Sent};
use crate::wire::{
    Complete, Encoding, MemslotLayout, Message, Offer, RunHead, Section, decode, encode,
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
}

struct Pair {
    source: Source,
    destination: Destination,
    sent: Arc<Sent>,
    claims: Arc<Claims>,
    now: Instant,
    faults: Faults,
    /// What each side did, by name.
    log: Vec<String>,
    source_end: Option<Outcome>,
    destination_end: Option<Outcome>,
}

fn wire<'a>(message: &Message<'_>, bytes: &'a mut Vec<u8>) -> Message<'a> {
    bytes.clear();
    encode(message, bytes);
    Message::read(&decode(bytes).unwrap().unwrap(), PAGES).unwrap()
}

fn result(fails: bool) -> Result<(), String> {
    if fails { Err("made to fail".into()) } else { Ok(()) }
}

impl Pair {
    fn new(faults: Faults) -> Pair {
        let offer = Offer {
            guest: Uuid::from_u128(1),
            transfer: 4,
            page_bytes: 4096,
            memslots: vec![MemslotLayout { gpa: 0, bytes: u64::from(PAGES) * 4096 }],
            config: vec![],
            requirements: vec![],
        };
        let (sent, now) = (Arc::new(Sent::new(PAGES)), Instant::now());
        Pair {
            source: Source::new(offer, Arc::clone(&sent), now),
            destination: Destination::new(now),
            sent,
            claims: Arc::new(Claims::new(PAGES)),
            now,
            faults,
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

    fn step_source(&mut self) -> bool {
        let Some(output) = self.source.poll_output() else {
            return false;
        };
        let mut bytes = Vec::new();
        match output {
            SourceOutput::Send(Message::Grant { .. }) if self.faults.lost_before_grant_arrives => {
                self.lose_both();
            }
            SourceOutput::Send(message) => {
                self.tell_destination(DestinationInput::Message(wire(&message, &mut bytes)));
            }
            SourceOutput::ConnectBulk(_) => self.tell_source(SourceInput::BulkConnected(Ok(()))),
            SourceOutput::PauseAndSave => {
                self.log.push("pause".into());
                let section = Section { id: 1, version: 1, bytes: vec![] };
                let saved = result(self.faults.save).map(|()| vec![section]);
                self.tell_source(SourceInput::Saved(saved));
            }
            SourceOutput::RecordGrant(4) => {
                self.log.push("granted".into());
                self.tell_source(SourceInput::GrantRecorded(result(self.faults.grant_record)));
            }
            SourceOutput::Serve(page) => {
                let head = RunHead::new(PageRun::one(page), Encoding::Zero, &[]);
                self.tell_destination(DestinationInput::Message(Message::Pages(head, &[])));
            }
            SourceOutput::StartPush => self.log.push("push".into()),
            SourceOutput::Resume => self.log.push("resume".into()),
            SourceOutput::RecordReclaimed(4) => self.log.push("reclaimed".into()),
            SourceOutput::RecordReleased(4) => self.log.push("released".into()),
            SourceOutput::Reached(_) => {}
            SourceOutput::Finish(outcome) => self.source_end = Some(outcome),
            other => panic!("{other:?}"),
        }
        true
    }

    fn step_destination(&mut self) -> bool {
        let Some(output) = self.destination.poll_output() else {
            return false;
        };
        let mut bytes = Vec::new();
        match output {
            DestinationOutput::Send(message) => {
                self.tell_source(SourceInput::Message(wire(&message, &mut bytes)));
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
            DestinationOutput::Discard => self.log.push("discard".into()),
            DestinationOutput::Wake(_) | DestinationOutput::Reached(_) => {}
            DestinationOutput::Finish(outcome) => self.destination_end = Some(outcome),
            other => panic!("{other:?}"),
        }
        true
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
            if self.sent.take(page) {
                self.install(PageRun::one(page));
            }
        }
        self.tell_source(SourceInput::Pushed);
        self.tell_destination(DestinationInput::PushEnded);
    }

    fn lose_both(&mut self) {
        let lost = || PeerError::Lost("cut".into());
        self.tell_source(SourceInput::PeerFailed(lost()));
        self.tell_destination(DestinationInput::PeerFailed(lost()));
    }
}

fn aborted(end: Option<&Outcome>) -> bool {
    matches!(end, Some(Outcome::Aborted { .. }))
}

fn paused(end: Option<&Outcome>) -> bool {
    matches!(end, Some(Outcome::Paused { .. }))
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
fn a_grant_that_gets_lost_leaves_nobody_running() {
    let faults = Faults { lost_before_grant_arrives: true, ..Faults::default() };
    let mut pair = Pair::new(faults);
    pair.run();
    assert!(paused(pair.source_end.as_ref()), "{:?}", pair.source_end);
    assert!(pair.did("granted") && !pair.did("resume") && !pair.did("start"));
    assert!(pair.did("refused"), "the destination bars itself: {:?}", pair.log);
}

#[test]
fn a_peer_lost_while_pages_are_missing_pauses_both_sides() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.lose_both();
    pair.run();
    assert!(paused(pair.source_end.as_ref()) && paused(pair.destination_end.as_ref()));
    assert!(!pair.did("resume"));
    // Faults stay parked, and are not asked of anybody.
    pair.tell_destination(DestinationInput::Fault(PageIndex(3)));
    assert_eq!(pair.destination.poll_output(), None);
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
    pair.run();
    assert!(paused(pair.destination_end.as_ref()), "{:?}", pair.destination_end);
}

#[test]
fn a_destination_that_cannot_have_all_pages_is_not_believed() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    let complete = Complete { zero: PAGES, data: 0, guest_ended: false };
    pair.tell_source(SourceInput::Message(Message::Complete(complete)));
    while pair.step_source() {}
    assert!(paused(pair.source_end.as_ref()), "{:?}", pair.source_end);
}

#[test]
fn a_guest_that_ends_while_moving_ends_the_migration() {
    let mut pair = Pair::new(Faults::default());
    pair.run();
    pair.tell_destination(DestinationInput::GuestEnded);
    pair.run();
    assert_eq!(pair.source_end, Some(Outcome::Completed));
    assert_eq!(pair.destination_end, Some(Outcome::Completed));
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
    assert!(paused(pair.source_end.as_ref()) && paused(pair.destination_end.as_ref()));
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
