//! The test is the destination and misbehaves in every way: the source never runs a guest that it
//! gave away, and never stops one that it did not.

use std::collections::HashMap;
use std::thread;

use godwit_migration::wire::{
    Abort, Accept, Channel, Complete, Encoding, Kind, Message, Offer, Preamble, PushFrame, RunHead,
};
use godwit_tests::peer::PeerListener;
use godwit_tests::speaker::{Heard, SESSION, Speaker, accept_bulk};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{require_kvm, until};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use godwit_vmm::api::types::{
    GuestState, MigrateRequest, MigrationMode, MigrationState, MigrationStatus,
};

use crate::GODWIT;
use crate::hostile::{HTTP_ANSWER, frame, other_version};

/// A guest whose passes are short and printed often.
const QUICK: Machine<'static> = Machine { cmdline: "workload=dirty pass_ms=10", ..SMALL };
/// Its pages.
const PAGES: u32 = 64 << 8;

/// One way to misbehave, and what the source says about it.
struct Case {
    says: &'static str,
    act: fn(&PeerListener),
}

fn offered(listener: &PeerListener) -> Speaker {
    let mut urgent = Speaker::accept(listener, Channel::Urgent);
    urgent.expect(Kind::Offer);
    urgent
}

fn accepted(listener: &PeerListener) -> Speaker {
    let mut urgent = offered(listener);
    urgent.say(&Message::Accept(Accept { session: SESSION })).expect("takes it");
    urgent
}

/// Up to the package. The number of the transfer comes along.
fn packaged(listener: &PeerListener) -> (Speaker, Speaker, u64) {
    let mut urgent = Speaker::accept(listener, Channel::Urgent);
    let heard = urgent.expect(Kind::Offer);
    let Message::Offer(Offer { transfer, .. }) = heard.message(0) else { unreachable!() };
    urgent.say(&Message::Accept(Accept { session: SESSION })).expect("takes it");
    let bulk = accept_bulk(listener);
    urgent.expect(Kind::Package);
    (urgent, bulk, transfer)
}

fn granted(listener: &PeerListener) -> (Speaker, Speaker, u64) {
    let (mut urgent, bulk, transfer) = packaged(listener);
    urgent.say(&Message::Loaded { transfer }).expect("takes it");
    urgent.expect(Kind::Grant);
    (urgent, bulk, transfer)
}

fn owned(listener: &PeerListener) -> (Speaker, Speaker) {
    let (mut urgent, bulk, transfer) = granted(listener);
    urgent.say(&Message::Owned { transfer }).expect("takes it");
    (urgent, bulk)
}

/// Says one thing after the offer, and listens until the source hangs up.
fn after_the_offer(listener: &PeerListener, message: &Message<'_>) {
    let mut urgent = offered(listener);
    urgent.say(message).expect("takes it");
    urgent.peer.receive_to_end();
}

fn bytes_after_the_offer(listener: &PeerListener, bytes: &[u8]) {
    let mut urgent = offered(listener);
    // The source may hang up at the first of them.
    let _ = urgent.peer.send(bytes);
    urgent.peer.receive_to_end();
}

fn after_the_package(listener: &PeerListener, message: &Message<'_>) {
    let (mut urgent, _bulk, _) = packaged(listener);
    urgent.say(message).expect("takes it");
    urgent.peer.receive_to_end();
}

fn greets_with(listener: &PeerListener, bytes: &[u8]) {
    let mut peer = listener.accept();
    peer.send(bytes).expect("takes it");
    peer.finish_sending();
    peer.receive_to_end();
}

fn run(first: u32, count: u32) -> PageRun {
    PageRun { first: PageIndex(first), count }
}

const STRANGERS: [Case; 9] = [
    Case { says: "connection lost", act: |listener| drop(listener.accept()) },
    Case { says: "connection lost", act: |listener| listener.accept().reset() },
    Case { says: "not godwit", act: |listener| greets_with(listener, &[0xa5; 4096]) },
    Case { says: "not godwit", act: |listener| greets_with(listener, HTTP_ANSWER) },
    Case {
        says: "does not answer as godwit",
        act: |listener| greets_with(listener, &Preamble::ours(Channel::Urgent).encode()[..9]),
    },
    Case {
        says: "versions 8 to 9",
        act: |listener| greets_with(listener, &other_version(8, 9).encode()),
    },
    Case {
        says: "versions 0 to 0",
        act: |listener| greets_with(listener, &other_version(0, 0).encode()),
    },
    Case {
        says: "connection lost",
        act: |listener| drop(Speaker::accept(listener, Channel::Urgent)),
    },
    Case { says: "connection lost", act: |listener| drop(offered(listener)) },
];

const INSTEAD_OF_ACCEPT: [Case; 13] = [
    Case {
        says: "unknown kind 30583",
        act: |listener| bytes_after_the_offer(listener, &frame(0x7777, 0, &[])),
    },
    Case {
        says: "unknown kind 0",
        act: |listener| bytes_after_the_offer(listener, &(1u64 << 63).to_le_bytes()),
    },
    Case {
        says: "4294967295 bytes: the limit is",
        act: |listener| {
            bytes_after_the_offer(listener, &frame(Kind::Accept as u16, u32::MAX, &[0; 4096]));
        },
    },
    Case {
        says: "connection lost",
        act: |listener| {
            let mut urgent = offered(listener);
            urgent.peer.send(&frame(Kind::Accept as u16, 16, &[1; 9])).expect("takes it");
        },
    },
    Case {
        says: "bytes left over",
        act: |listener| bytes_after_the_offer(listener, &frame(Kind::Accept as u16, 20, &[1; 20])),
    },
    Case {
        says: "cannot be decoded",
        act: |listener| bytes_after_the_offer(listener, &frame(Kind::Accept as u16, 0, &[])),
    },
    Case {
        says: "a Loaded message while",
        act: |listener| after_the_offer(listener, &Message::Loaded { transfer: 1 }),
    },
    Case {
        says: "a Request message while",
        act: |listener| after_the_offer(listener, &Message::Request(run(0, 1))),
    },
    Case {
        says: "a Pages message while",
        act: |listener| {
            let head = RunHead::new(PageSize::BASE, run(0, 1), Encoding::Zero, &[]);
            after_the_offer(listener, &Message::Pages(head, &[]));
        },
    },
    Case {
        says: "not for the urgent channel",
        act: |listener| bytes_after_the_offer(listener, &PushFrame::End.encode()),
    },
    Case {
        says: "refuses the guest: no room at all",
        act: |listener| {
            let reason = "no room at all".to_owned();
            after_the_offer(listener, &Message::Abort(Abort { reason }));
        },
    },
    Case {
        says: "1048576 bytes: the limit is",
        act: |listener| {
            bytes_after_the_offer(listener, &frame(Kind::Abort as u16, 1 << 20, &[b'x'; 4096]));
        },
    },
    Case {
        says: "refuses the guest: not yet",
        act: |listener| {
            let reason = "not yet".to_owned();
            after_the_offer(listener, &Message::Refused { transfer: 1, reason });
        },
    },
];

const AFTER_ACCEPT: [Case; 11] = [
    Case {
        says: "connection lost",
        act: |listener| {
            let _urgent = accepted(listener);
            drop(listener.accept());
        },
    },
    Case {
        says: "not godwit",
        act: |listener| {
            let _urgent = accepted(listener);
            greets_with(listener, HTTP_ANSWER);
        },
    },
    Case { says: "connection lost", act: |listener| drop(packaged(listener)) },
    Case {
        says: "unknown kind",
        act: |listener| {
            let (mut urgent, _bulk, _) = packaged(listener);
            urgent.peer.send(&[0xa5; 64]).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "about transfer 99999",
        act: |listener| after_the_package(listener, &Message::Loaded { transfer: 99999 }),
    },
    Case {
        says: "a Owned message while",
        act: |listener| after_the_package(listener, &Message::Owned { transfer: 1 }),
    },
    Case {
        says: "a Complete message while",
        act: |listener| {
            let complete = Complete { zero: 0, data: PAGES, guest_ended: false };
            after_the_package(listener, &Message::Complete(complete));
        },
    },
    Case {
        says: "pages 16384..16385 of a guest of 16384",
        act: |listener| after_the_package(listener, &Message::Request(run(PAGES, 1))),
    },
    Case {
        says: "pages 4294967295..4294967359",
        act: |listener| after_the_package(listener, &Message::Request(run(u32::MAX, 64))),
    },
    Case {
        says: "pages 7..7",
        act: |listener| after_the_package(listener, &Message::Request(run(7, 0))),
    },
    Case {
        says: "at most 64 at once",
        act: |listener| after_the_package(listener, &Message::Request(run(0, 65))),
    },
];

fn begin(source: &Node, listener: &PeerListener) {
    let request = MigrateRequest::new(listener.address(), MigrationMode::Postcopy);
    source.client().migrate(&request).expect("begins");
}

fn says(source: &Node, migration: &MigrationStatus, what: &str) {
    let message = migration.error.as_ref().map_or("", |error| &error.message);
    let why = format!("says {message:?} and not {what:?}");
    assert!(message.contains(what), "{}", source.process.failure(&why));
}

#[test]
fn no_destination_can_stop_a_guest_before_the_switchover() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &QUICK);
    let sockets = [PeerListener::tcp(), PeerListener::unix(&stage.folder().path("socket"))];
    let cases = STRANGERS.iter().chain(&INSTEAD_OF_ACCEPT).chain(&AFTER_ACCEPT);
    for (case, listener) in cases.zip(sockets.iter().cycle()) {
        begin(&source, listener);
        (case.act)(listener);
        let status = source.until_migration(MigrationState::Failed);
        says(&source, &status.migration.expect("a migration"), case.says);
        assert!(status.owner.owns && status.guest == GuestState::Running, "{}", case.says);
        assert_eq!(source.verdict_from_now(1).corrupt, 0, "{}", case.says);
    }
    let destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
    source.process.wait_success();
}

const AFTER_GRANT: [Case; 9] = [
    Case { says: "connection lost", act: |listener| drop(granted(listener)) },
    Case {
        says: "unknown kind",
        act: |listener| {
            let (mut urgent, _bulk, _) = granted(listener);
            urgent.peer.send(&[0xa5; 64]).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "about transfer 99999",
        act: |listener| {
            let (mut urgent, _bulk, _) = granted(listener);
            let reason = "of another guest".to_owned();
            urgent.say(&Message::Refused { transfer: 99999, reason }).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "about transfer 99999",
        act: |listener| {
            let (mut urgent, _bulk, _) = granted(listener);
            urgent.say(&Message::Owned { transfer: 99999 }).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "a Abort message while",
        act: |listener| {
            let (mut urgent, _bulk, _) = granted(listener);
            let reason = "too late".to_owned();
            urgent.say(&Message::Abort(Abort { reason })).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "pages 16384..16385 of a guest of 16384",
        act: |listener| {
            let (mut urgent, _bulk) = owned(listener);
            urgent.say(&Message::Request(run(PAGES, 1))).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        // It reads nothing from the bulk channel, so the source cannot have sent all.
        says: "were never sent to it",
        act: |listener| {
            let (mut urgent, _bulk) = owned(listener);
            let complete = Complete { zero: 0, data: PAGES, guest_ended: false };
            urgent.say(&Message::Complete(complete)).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "bulk channel",
        act: |listener| {
            let (mut urgent, bulk) = owned(listener);
            drop(bulk);
            urgent.peer.receive_to_end();
        },
    },
    Case {
        says: "a Accept message while",
        act: |listener| {
            let (mut urgent, _bulk) = owned(listener);
            urgent.say(&Message::Accept(Accept { session: SESSION })).expect("takes it");
            urgent.peer.receive_to_end();
        },
    },
];

#[test]
fn no_destination_can_make_a_source_run_what_it_gave_away() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let listener = PeerListener::tcp();
    for (number, case) in AFTER_GRANT.iter().enumerate() {
        let mut source = stage.launch_filled(&format!("source {number}"), &QUICK);
        begin(&source, &listener);
        (case.act)(&listener);
        let status = source.until_interrupted();
        let migration = status.migration.expect("a migration");
        says(&source, &migration, case.says);
        assert_eq!(migration.pages.total, u64::from(PAGES));
        assert!(!status.owner.owns && status.guest == GuestState::Paused, "{}", case.says);
        source.client().resume().expect_err("it was granted");
        source.client().shutdown(false).expect_err("its pages are nowhere else");
        source.client().shutdown(true).expect("ends");
        source.process.wait();
    }
}

/// A destination that has barred itself durably gives the guest back.
#[test]
fn a_grant_that_is_refused_lets_the_guest_run_on() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &QUICK);
    let listener = PeerListener::tcp();
    begin(&source, &listener);
    let (mut urgent, _bulk, transfer) = granted(&listener);
    let reason = "the disk is full".to_owned();
    urgent.say(&Message::Refused { transfer, reason }).expect("takes it");
    let status = source.until_migration(MigrationState::Failed);
    says(&source, status.migration.as_ref().expect("a migration"), "the disk is full");
    assert!(status.owner.owns && status.guest == GuestState::Running, "{status:?}");
    let record = status.owner.record.expect("a record");
    assert!(record.starts_with("reclaimed 1 "), "{record}");
    assert_eq!(source.verdict_from_now(1).corrupt, 0);

    let destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
    source.process.wait_success();
}

fn count_pages(heard: &Heard, counts: &mut HashMap<u32, u32>) {
    if let Message::Pages(head, _) = heard.message(PAGES) {
        for page in head.run.pages() {
            *counts.entry(page.0).or_default() += 1;
        }
    }
}

/// Whatever is asked, and however often, each page travels once, and the end is acknowledged.
#[test]
fn every_page_is_sent_once_whatever_is_asked() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &QUICK);
    let listener = PeerListener::tcp();
    let mut migrate = stage.migrate(&source, &listener.address());
    let (mut urgent, mut bulk) = owned(&listener);
    let pushed = thread::spawn(move || {
        let mut counts = HashMap::new();
        loop {
            let heard = bulk.hear();
            if heard.kind() == Kind::PushEnd {
                return counts;
            }
            count_pages(&heard, &mut counts);
        }
    });
    for first in (0..PAGES).step_by(997) {
        let message = Message::Request(run(first, (PAGES - first).min(64)));
        urgent.say(&message).expect("takes it");
        urgent.say(&message).expect("takes it");
    }
    let mut counts = pushed.join().expect("the push ends");
    let pushed: u32 = counts.values().sum();
    let mut asked = 0;
    while asked + pushed < PAGES {
        let before: u32 = counts.values().sum();
        count_pages(&urgent.expect(Kind::Pages), &mut counts);
        asked += counts.values().sum::<u32>() - before;
    }
    assert_eq!(counts.len(), PAGES as usize);
    assert!(counts.values().all(|count| *count == 1), "a page was sent twice");
    let complete = Complete { zero: 0, data: PAGES, guest_ended: false };
    urgent.say(&Message::Complete(complete)).expect("takes it");
    urgent.expect(Kind::Released);
    migrate.wait_success();
    until("the end of the source", || (!source.lives()).then_some(()));
    source.process.wait_success();
}
