//! The test is the source and misbehaves in every way: the receiver says why it turns it away, and
//! listens again.

use godwit_migration::transport::Address;
use godwit_migration::wire::{
    Abort, BulkHello, Channel, Encoding, Kind, MemslotLayout, Message, Offer, PREAMBLE_BYTES,
    Preamble, PushFrame, RESUME_HELLO_BYTES, RUN_HEAD_BYTES, ResumeHello, RunHead, Section, encode,
};
use godwit_tests::peer::Peer;
use godwit_tests::speaker::{Rehearsal, Speaker};
use godwit_tests::stage::{Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use godwit_vmm::api::types::{GuestState, MigrationState};
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::VmConfig;

use crate::GODWIT;
use crate::hostile::{HTTP_REQUEST, frame, other_version};

/// What a source does wrong on its two channels.
type Misdeed = fn(Speaker, Speaker);

/// The pages of the guest that is offered.
pub const PAGES: u32 = 64 << 8;

/// One way to misbehave, and what the receiver says about it.
struct Case {
    says: &'static str,
    act: fn(&Rehearsal, &Address),
}

pub fn run(first: u32, count: u32) -> PageRun {
    PageRun { first: PageIndex(first), count }
}

fn zeros(first: u32, count: u32) -> [u8; RUN_HEAD_BYTES] {
    PushFrame::Pages(RunHead::new(PageSize::BASE, run(first, count), Encoding::Zero, &[])).encode()
}

fn calls_with(address: &Address, bytes: &[u8]) {
    let mut peer = Peer::connect(address);
    // It may hang up at the first of them.
    let _ = peer.send(bytes);
    peer.finish_sending();
    peer.receive_to_end();
}

fn begins_with(address: &Address, bytes: &[u8]) {
    let mut urgent = Speaker::dial(address, Channel::Urgent);
    let _ = urgent.peer.send(bytes);
    urgent.peer.receive_to_end();
}

fn begins_with_message(address: &Address, message: &Message<'_>) {
    let mut bytes = Vec::new();
    encode(message, &mut bytes);
    begins_with(address, &bytes);
}

/// Says it once the offer is accepted.
fn after_accept(rehearsal: &Rehearsal, address: &Address, message: &Message<'_>) {
    let (mut urgent, _bulk) = rehearsal.both_channels(address);
    urgent.say(message).expect("takes it");
    urgent.expect_abort();
}

/// Connects both channels, says it on the bulk channel and is aborted.
pub fn pushes(rehearsal: &Rehearsal, address: &Address, bytes: &[u8]) {
    let (mut urgent, mut bulk) = rehearsal.both_channels(address);
    // It may hang up at the first of them.
    let _ = bulk.peer.send(bytes);
    urgent.expect_abort();
}

/// They are turned away at the door.
const STRANGERS: [Case; 10] = [
    Case { says: "before it said what it is", act: |_, at| drop(Peer::connect(at)) },
    Case { says: "turned away", act: |_, at| Peer::connect(at).reset() },
    Case { says: "not godwit", act: |_, at| calls_with(at, &[0xa5; 4096]) },
    Case { says: "not godwit", act: |_, at| calls_with(at, HTTP_REQUEST) },
    Case {
        says: "turned away",
        act: |_, at| calls_with(at, &Preamble::ours(Channel::Urgent).encode()[..9]),
    },
    Case {
        says: "versions 8 to 9",
        act: |_, at| {
            let mut peer = Peer::connect(at);
            peer.send(&other_version(8, 9).encode()).expect("takes it");
            // It tells the other godwit which versions it speaks.
            let answer = peer.receive(PREAMBLE_BYTES).try_into().expect("as many");
            Preamble::decode(&answer).expect("a preamble");
            peer.receive_to_end();
        },
    },
    Case {
        says: "a bulk channel of no session",
        act: |_, at| {
            let mut bulk = Speaker::dial(at, Channel::Bulk);
            let hello = BulkHello { session: [7; 16], epoch: 0 };
            bulk.peer.send(&hello.encode()).expect("takes it");
            bulk.peer.receive_to_end();
        },
    },
    Case { says: "before it said what it is", act: |_, at| drop(Speaker::dial(at, Channel::Bulk)) },
    Case {
        says: "before it said what it is",
        act: |_, at| drop(Speaker::dial(at, Channel::Resume)),
    },
    Case {
        says: "turned away",
        act: |_, at| {
            let mut resumed = Speaker::dial(at, Channel::Resume);
            resumed.peer.send(&[7; RESUME_HELLO_BYTES - 1]).expect("takes it");
        },
    },
];

/// They come in, and no guest comes with them.
const INSTEAD_OF_OFFER: [Case; 10] = [
    Case { says: "connection lost", act: |_, at| drop(Speaker::dial(at, Channel::Urgent)) },
    Case { says: "unknown kind 30583", act: |_, at| begins_with(at, &frame(0x7777, 0, &[])) },
    Case { says: "unknown kind 0", act: |_, at| begins_with(at, &(1u64 << 63).to_le_bytes()) },
    Case {
        says: "4294967295 bytes: the limit is 1048576",
        act: |_, at| begins_with(at, &frame(Kind::Offer as u16, u32::MAX, &[0; 4096])),
    },
    Case {
        says: "cannot be decoded",
        act: |_, at| begins_with(at, &frame(Kind::Offer as u16, 500, &[0xff; 500])),
    },
    Case {
        says: "connection lost",
        act: |_, at| {
            let mut urgent = Speaker::dial(at, Channel::Urgent);
            let part = frame(Kind::Offer as u16, 500, &[1; 99]);
            urgent.peer.send(&part).expect("takes it");
        },
    },
    Case {
        says: "a Grant message while waiting for an offer",
        act: |_, at| begins_with_message(at, &Message::Grant { transfer: 1 }),
    },
    Case {
        says: "a Package message while waiting for an offer",
        act: |_, at| begins_with_message(at, &Message::Package(Vec::new())),
    },
    Case { says: "pages 0..1 of a guest of 0 pages", act: |_, at| begins_with(at, &zeros(0, 1)) },
    Case {
        says: "not for the urgent channel",
        act: |_, at| begins_with(at, &PushFrame::End.encode()),
    },
];

const AFTER_ACCEPT: [Case; 17] = [
    Case { says: "connection lost", act: |rehearsal, at| drop(rehearsal.both_channels(at)) },
    Case {
        says: "a Offer message while",
        act: |rehearsal, at| after_accept(rehearsal, at, &Message::Offer(rehearsal.offer.clone())),
    },
    Case {
        says: "a Grant message while",
        act: |rehearsal, at| after_accept(rehearsal, at, &Message::Grant { transfer: 1 }),
    },
    Case {
        says: "a Pages message while",
        act: |rehearsal, at| {
            let head = RunHead::new(PageSize::BASE, run(5, 1), Encoding::Zero, &[]);
            after_accept(rehearsal, at, &Message::Pages(head, &[]));
        },
    },
    Case {
        says: "gave up: so it goes",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.both_channels(at);
            let reason = "so it goes".to_owned();
            urgent.say(&Message::Abort(Abort { reason })).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "its checksum is wrong",
        act: |rehearsal, at| {
            let mut bytes = Vec::new();
            encode(&Message::Package(rehearsal.sections.clone()), &mut bytes);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let (mut urgent, _bulk) = rehearsal.both_channels(at);
            urgent.peer.send(&bytes).expect("takes it");
            urgent.expect_abort();
        },
    },
    Case {
        says: "the limit is 16777216",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.both_channels(at);
            let head = frame(Kind::Package as u16, (16 << 20) + 1, &[0; 512]);
            urgent.peer.send(&head).expect("takes it");
            urgent.expect_abort();
        },
    },
    Case {
        says: "the state of the operator is missing",
        act: |rehearsal, at| after_accept(rehearsal, at, &Message::Package(Vec::new())),
    },
    Case {
        says: "bulk channel",
        act: |rehearsal, at| {
            let (mut urgent, bulk) = rehearsal.both_channels(at);
            drop(bulk);
            urgent.expect_abort();
        },
    },
    Case { says: "unknown kind", act: |rehearsal, at| pushes(rehearsal, at, &[0xa5; 512]) },
    Case {
        says: "pages 16383..16385 of a guest of 16384",
        act: |rehearsal, at| pushes(rehearsal, at, &zeros(PAGES - 1, 2)),
    },
    Case {
        says: "pages 4294967295..4296015871",
        act: |rehearsal, at| pushes(rehearsal, at, &zeros(u32::MAX, 1 << 20)),
    },
    Case { says: "pages 5..5", act: |rehearsal, at| pushes(rehearsal, at, &zeros(5, 0)) },
    Case {
        says: "unknown encoding",
        act: |rehearsal, at| {
            let mut bytes = zeros(5, 1);
            bytes[16] = 9;
            pushes(rehearsal, at, &bytes);
        },
    },
    Case {
        says: "not as long as its run",
        act: |rehearsal, at| {
            let mut bytes = zeros(5, 1);
            bytes[4] += 1;
            pushes(rehearsal, at, &bytes);
        },
    },
    Case {
        // No round has begun that could end.
        says: "a PushEnd message while waiting for the guest's state",
        act: |rehearsal, at| pushes(rehearsal, at, &PushFrame::End.encode()),
    },
    Case {
        says: "was sent twice",
        act: |rehearsal, at| pushes(rehearsal, at, &[zeros(700, 9), zeros(704, 1)].concat()),
    },
];

/// Once the guest is loaded, only a durable refusal ends it: the source is told so.
const AFTER_LOADED: [Case; 6] = [
    Case { says: "connection lost", act: |rehearsal, at| drop(rehearsal.until_loaded(at)) },
    Case {
        says: "gave up: so it goes",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.until_loaded(at);
            let reason = "so it goes".to_owned();
            urgent.say(&Message::Abort(Abort { reason })).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "a message about transfer 99999",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.until_loaded(at);
            urgent.say(&Message::Grant { transfer: 99999 }).expect("takes it");
            urgent.expect(Kind::Refused);
        },
    },
    Case {
        says: "pages 16384..16385",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.until_loaded(at);
            urgent.peer.send(&zeros(PAGES, 1)).expect("takes it");
            urgent.expect(Kind::Refused);
        },
    },
    Case {
        says: "was sent twice",
        act: |rehearsal, at| {
            let (mut urgent, mut bulk) = rehearsal.until_loaded(at);
            bulk.peer.send(&zeros(900, 1)).expect("takes it");
            urgent.peer.send(&[zeros(901, 1), zeros(901, 1)].concat()).expect("takes it");
            urgent.expect(Kind::Refused);
        },
    },
    Case {
        says: "a Package message while",
        act: |rehearsal, at| {
            let (mut urgent, _bulk) = rehearsal.until_loaded(at);
            urgent.say(&Message::Package(rehearsal.sections.clone())).expect("takes it");
            urgent.expect(Kind::Refused);
        },
    },
];

/// Does it, and waits until the receiver has come to an `end` and said why.
pub fn ends(receiver: &Node, end: &str, says: &str, act: impl FnOnce()) {
    let mut log = receiver.process.new_lines(Stream::Stderr);
    act();
    let line = log.wait(end, |line| line.contains(end));
    assert!(line.contains(says), "{}", receiver.process.failure(&format!("does not say {says:?}")));
    receiver.until("no guest", |status| status.guest == GuestState::None);
}

/// A real guest comes after all.
pub fn still_receives(stage: &Stage, receiver: &Node) {
    assert_eq!(receiver.process.text(Stream::Stdout), "", "no guest ran there");
    let mut source = stage.launch_filled("source", &SMALL);
    stage.migrate(&source, receiver.address()).wait_success();
    assert_eq!(receiver.verdict(1).corrupt, 0);
    source.process.wait_success();
}

#[test]
fn no_source_can_keep_a_receiver_from_listening() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut rehearsal = Rehearsal::of(&stage, &SMALL);
    let receivers = [stage.receive("tcp", Transport::Tcp), stage.receive("unix", Transport::Unix)];
    let guests = INSTEAD_OF_OFFER.iter().chain(&AFTER_ACCEPT).chain(&AFTER_LOADED);
    let guests = guests.map(|case| ("listening again", case));
    let cases = STRANGERS.iter().map(|case| ("turned away", case)).chain(guests);
    for ((end, case), receiver) in cases.zip(receivers.iter().cycle()) {
        // A transfer that was refused is barred for good.
        rehearsal.offer.transfer += 1;
        ends(receiver, end, case.says, || (case.act)(&rehearsal, receiver.address()));
    }
    for receiver in &receivers {
        still_receives(&stage, receiver);
    }
}

/// A source that resumes a session of which nobody here knows learns that, and nothing is recorded.
#[test]
fn a_session_that_nobody_knows_is_not_resumed() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    let hello = |epoch| ResumeHello {
        guest: rehearsal.offer.guest,
        transfer: rehearsal.offer.transfer,
        session: [7; 16],
        epoch,
    };
    for epoch in [0, 1, u32::MAX] {
        let mut resumed = Speaker::dial(receiver.address(), Channel::Resume);
        resumed.peer.send(&hello(epoch).encode()).expect("takes it");
        assert!(resumed.expect_abort().contains("no record of the guest here"));
    }
    // By a wrong session of a guest that is on its way it is refused for good, before its grant.
    let (mut urgent, _bulk) = rehearsal.until_loaded(receiver.address());
    let mut resumed = Speaker::dial(receiver.address(), Channel::Resume);
    resumed.peer.send(&hello(1).encode()).expect("takes it");
    resumed.expect(Kind::Refused);
    urgent.say(&Message::Grant { transfer: rehearsal.offer.transfer }).expect("takes it");
    urgent.expect(Kind::Refused);
    still_receives(&stage, &receiver);
}

fn config(cpus: u8, memory_bytes: u64) -> Vec<u8> {
    let config = VmConfig { cpus, memory_bytes, backing: Backing::Anon, devices: Vec::new() };
    postcard::to_stdvec(&config).expect("plain data")
}

fn slot(gpa: u64, bytes: u64) -> MemslotLayout {
    MemslotLayout { gpa, bytes }
}

/// Guests that no host can run, or not this one.
fn impossible(offer: &Offer) -> Vec<(&'static str, Offer)> {
    let with = |change: &dyn Fn(&mut Offer)| {
        let mut changed = offer.clone();
        change(&mut changed);
        changed
    };
    let slots = |slots: &[MemslotLayout]| with(&|offer| offer.memslots = slots.to_vec());
    let bytes = u64::from(PAGES) * 4096;
    vec![
        ("pages of a size that", with(&|offer| offer.page_bytes = 8192)),
        ("pages of 2 MiB but 4 KiB configured", with(&|offer| offer.page_bytes = 2 << 20)),
        ("no memslots", slots(&[])),
        ("no memslots", slots(&[slot(0, 4096); 65])),
        ("overlap", slots(&[slot(0, 8192), slot(4096, 4096)])),
        ("beyond all addresses", slots(&[slot(u64::MAX - 4095, 4096)])),
        ("not whole pages", slots(&[slot(0, 100)])),
        (
            "not whole pages",
            with(&|offer| {
                offer.page_bytes = 2 << 20;
                offer.memslots = vec![slot(0, 1 << 20)];
            }),
        ),
        ("more pages than an index can count", slots(&[slot(0, 1 << 62)])),
        ("laid out in a way", slots(&[slot(0, bytes / 2), slot(bytes, bytes / 2)])),
        ("configured", slots(&[slot(0, bytes / 2)])),
        ("configuration cannot be read", with(&|offer| offer.config = vec![0xff; 40])),
        ("a guest with 0 vCPUs", with(&|offer| offer.config = config(0, bytes))),
        ("a guest with 255 vCPUs", with(&|offer| offer.config = config(255, bytes))),
        (
            "guest memory of 1099511627776 bytes",
            with(&|offer| {
                offer.config = config(1, 1 << 40);
                offer.memslots = vec![slot(0, 3 << 30), slot(1 << 32, (1 << 40) - (3 << 30))];
            }),
        ),
        ("requirements", with(&|offer| offer.requirements = vec![0xff; 40])),
        ("requirements", with(&|offer| offer.requirements = Vec::new())),
        ("transfer", with(&|offer| offer.transfer = 0)),
        ("transfer", with(&|offer| offer.transfer = u64::MAX)),
    ]
}

#[test]
fn a_guest_that_cannot_run_here_is_refused_with_the_reason() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    for (says, offer) in impossible(&rehearsal.offer) {
        ends(&receiver, "listening again", says, || {
            let mut urgent = Speaker::dial(receiver.address(), Channel::Urgent);
            urgent.say(&Message::Offer(offer)).expect("takes it");
            // The operator of the source reads it as well.
            let reason = urgent.expect_abort();
            assert!(reason.contains(says), "{reason:?} and not {says:?}");
        });
    }
    still_receives(&stage, &receiver);
}

/// Saved state that is shorter, empty, of another version, of somebody else or made of noise: it is
/// refused, or it is loaded and never runs; the receiver lives on.
#[test]
fn state_that_is_damaged_is_no_harm() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    let damages: [fn(&mut Section); 6] = [
        |section| section.bytes.truncate(section.bytes.len() / 2),
        |section| section.bytes.clear(),
        |section| section.bytes.fill(0xff),
        |section| section.bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x55),
        |section| section.version += 1,
        |section| section.id = 0x7ffe,
    ];
    for number in 0..rehearsal.sections.len() {
        for damage in damages {
            rehearsal.offer.transfer += 1;
            let mut damaged = rehearsal.clone();
            damage(&mut damaged.sections[number]);
            ends(&receiver, "listening again", "", || {
                let (mut urgent, _bulk) = damaged.both_channels(receiver.address());
                urgent.say(&Message::Package(damaged.sections)).expect("takes it");
                let answer = urgent.hear();
                assert!(matches!(answer.kind(), Kind::Abort | Kind::Loaded), "{answer:?}");
            });
        }
    }
    still_receives(&stage, &receiver);
}

/// A guest that has been granted, and whose source misbehaves then: it is lost, it is said so, and
/// the receiver stays under control.
#[test]
fn a_source_that_misbehaves_after_the_grant_is_reported() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &SMALL);
    let misdeeds: [(&str, Misdeed); 6] = [
        ("connection lost", |urgent, bulk| drop((urgent, bulk))),
        ("bulk channel", |mut urgent, bulk| {
            drop(bulk);
            urgent.peer.receive_to_end();
        }),
        // What has not come whole is not installed.
        ("it ended inside a run", |mut urgent, mut bulk| {
            let head = RunHead::new(PageSize::BASE, run(64, 64), Encoding::Raw, &[0x11; 64 * 4096]);
            bulk.peer.send(&PushFrame::Pages(head).encode()).expect("takes it");
            drop(bulk);
            urgent.peer.receive_to_end();
        }),
        ("was sent twice", |mut urgent, mut bulk| {
            bulk.peer.send(&[zeros(9000, 9), zeros(9008, 1)].concat()).expect("takes it");
            urgent.peer.receive_to_end();
        }),
        ("pages never sent", |mut urgent, mut bulk| {
            bulk.peer.send(&PushFrame::End.encode()).expect("takes it");
            urgent.peer.receive_to_end();
        }),
        ("a Released message while", |mut urgent, _bulk| {
            urgent.say(&Message::Released).expect("takes it");
            urgent.peer.receive_to_end();
        }),
    ];
    for (number, (says, act)) in misdeeds.into_iter().enumerate() {
        let mut receiver = stage.receive(&format!("receiver {number}"), Transport::Tcp);
        let transfer = rehearsal.offer.transfer;
        let (mut urgent, bulk) = rehearsal.until_loaded(receiver.address());
        urgent.say(&Message::Grant { transfer }).expect("takes it");
        urgent.expect(Kind::Owned);
        act(urgent, bulk);
        let status = receiver.until_migration(MigrationState::PostcopyPaused);
        let error = status.migration.and_then(|migration| migration.error).expect("an error");
        assert!(error.message.contains(says), "{error} and not {says:?}");
        receiver.client().pause().expect("pauses");
        assert_eq!(receiver.status().guest, GuestState::Paused);
        receiver.client().resume().expect("resumes");
        receiver.client().shutdown(false).expect("ends");
        receiver.process.wait();
    }
}

/// A source that says that all memory is zero gets what it deserves: the guest crashes, alone.
#[test]
fn a_guest_whose_memory_is_nonsense_crashes_alone() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &SMALL);
    let mut receiver = stage.receive("receiver", Transport::Tcp);
    let transfer = rehearsal.offer.transfer;
    let (mut urgent, mut bulk) = rehearsal.until_loaded(receiver.address());
    bulk.peer.send(&zeros(0, PAGES)).expect("takes it");
    urgent.say(&Message::Grant { transfer }).expect("takes it");
    urgent.expect(Kind::Owned);
    bulk.peer.send(&PushFrame::End.encode()).expect("takes it");
    while urgent.hear().kind() != Kind::Complete {}
    urgent.say(&Message::Released).expect("takes it");
    receiver.process.wait_failure();
    receiver.wait_log("crashed");
}
