//! Many moves and many failures leave a process with what it had: descriptors, threads, memory.

use godwit_migration::transport::Address;
use godwit_migration::wire::{Channel, Message, Offer};
use godwit_tests::peer::{Peer, PeerListener};
use godwit_tests::resources::{Resources, descriptors};
use godwit_tests::speaker::{Rehearsal, Speaker};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrateRequest, MigrationMode, MigrationState};

use crate::GODWIT;

/// What the allocator and the page tables of a process may keep.
const TOLERANCE_BYTES: u64 = 12 << 20;

/// Waits until `node` holds no more than it held at `before`.
pub fn holds_as_much(node: &Node, before: Resources) {
    let mut now = before;
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("descriptors, threads and memory to be as before", || {
            now = Resources::of(node.process.pid());
            let more = now.resident_bytes.saturating_sub(before.resident_bytes);
            let same = now.descriptors <= before.descriptors && now.threads <= before.threads;
            (same && more < TOLERANCE_BYTES).then_some(())
        });
    }));
    let kinds = descriptors(node.process.pid());
    assert!(settled.is_ok(), "{before:?} became {now:?} with {kinds:?}");
}

/// Waits until `node` has no threads and descriptors of a migration any more, and counts.
pub fn resources_at_rest(node: &Node) -> Resources {
    let mut last = Resources::of(node.process.pid());
    let mut same = 0;
    until("a process at rest", || {
        let now = Resources::of(node.process.pid());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same == 20).then_some(now)
    })
}

#[test]
fn ten_moves_to_and_fro_leave_nothing_behind() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let machine = Machine { cpus: 2, cmdline: "workload=dirty timer=100", ..SMALL };
    let mut source = stage.launch_filled("source", &machine);
    let nodes = [stage.receive("a", Transport::Tcp), stage.receive("b", Transport::Unix)];
    let empty = resources_at_rest(&nodes[0]);
    stage.migrate(&source, nodes[0].address()).wait_success();
    source.process.wait_success();

    let transfer = |number: usize| {
        let (here, there) = (&nodes[number % 2], &nodes[1 - number % 2]);
        stage.migrate(here, there.address()).wait_success();
        let verdict = there.verdict_from_now(2);
        assert_eq!(verdict.corrupt, 0, "{}", there.process.failure("has corrupt pages"));
        let status = there.until_migration(MigrationState::Completed);
        assert_eq!(status.owner.grant, number as u64);
        let status = here.status();
        assert!(matches!(status.guest, GuestState::Moved { .. }), "{status:?}");
        assert!(!status.owner.owns, "{status:?}");
    };
    // There and back: after that everything has been used once.
    (2..=3).for_each(transfer);
    let before = [resources_at_rest(&nodes[0]), resources_at_rest(&nodes[1])];
    (4..=13).for_each(transfer);
    for (node, before) in nodes.iter().zip(before) {
        holds_as_much(node, before);
    }
    // The guest is at the first; the other holds no more than one that never had a guest.
    holds_as_much(&nodes[1], empty);
}

/// Strangers, liars and guests that cannot be had.
fn try_in_vain(address: &Address, offer: &Offer, attempt: usize) {
    match attempt % 4 {
        0 => drop(Peer::connect(address)),
        1 => {
            let mut peer = Peer::connect(address);
            // It may hang up at the first bytes.
            let _ = peer.send(&[0xa5; 4096]);
            peer.receive_to_end();
        }
        2 => {
            let mut urgent = Speaker::dial(address, Channel::Urgent);
            let offer = Offer { memslots: Vec::new(), ..offer.clone() };
            urgent.say(&Message::Offer(offer)).expect("takes it");
            urgent.expect_abort();
        }
        _ => {
            let mut urgent = Speaker::dial(address, Channel::Urgent);
            urgent.say(&Message::Offer(offer.clone())).expect("takes it");
            urgent.expect(godwit_migration::wire::Kind::Accept);
        }
    }
}

#[test]
fn a_hundred_failed_attempts_leave_a_receiver_as_it_was() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut rehearsal = Rehearsal::of(&stage, &SMALL);
    let node = stage.receive("receiver", Transport::Tcp);
    let mut before = None;
    for attempt in 0..112 {
        let mut log = node.process.new_lines(Stream::Stderr);
        rehearsal.offer.transfer += 1;
        try_in_vain(node.address(), &rehearsal.offer, attempt);
        log.wait("the end of the attempt", |line| {
            line.contains("turned away") || line.contains("listening again")
        });
        node.until("a receiver without a guest", |status| status.guest == GuestState::None);
        if attempt == 11 {
            before = Some(resources_at_rest(&node));
        }
    }
    holds_as_much(&node, before.expect("after the first attempts"));
    let mut source = stage.launch_filled("source", &SMALL);
    stage.migrate(&source, node.address()).wait_success();
    assert_eq!(node.verdict(1).corrupt, 0);
    source.process.wait_success();
}

#[test]
fn a_hundred_failed_attempts_leave_a_source_as_it_was() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let listener = PeerListener::tcp();
    let nobody = {
        let gone = PeerListener::tcp();
        gone.address()
    };
    let mut before = None;
    for attempt in 0..112 {
        let there = attempt % 2 == 0;
        let destination_url = if there { listener.address() } else { nobody.clone() };
        let mode = MigrationMode::Postcopy;
        source.client().migrate(&MigrateRequest::new(destination_url, mode)).expect("begins");
        if there {
            let mut urgent = Speaker::accept(&listener, Channel::Urgent);
            urgent.expect(godwit_migration::wire::Kind::Offer);
        }
        source.until_migration(MigrationState::Failed);
        if attempt == 11 {
            before = Some(resources_at_rest(&source));
        }
    }
    holds_as_much(&source, before.expect("after the first attempts"));
    assert_eq!(source.verdict_from_now(1).corrupt, 0);
    let node = stage.receive("receiver", Transport::Tcp);
    stage.migrate(&source, node.address()).wait_success();
    assert_eq!(node.verdict(1).corrupt, 0);
    source.process.wait_success();
}
