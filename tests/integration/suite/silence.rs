//! Peers that say nothing. Every wait is bounded and its end is reported, on both sides.
//!
//! The bounds are long, because a real peer may be slow; so all of these wait at the same time.

use std::thread;

use godwit_migration::wire::{Accept, Channel, Kind, Message, Offer};
use godwit_tests::peer::{Peer, PeerListener};
use godwit_tests::proxy::Proxy;
use godwit_tests::require_kvm;
use godwit_tests::speaker::{Rehearsal, SESSION, Speaker, accept_bulk};
use godwit_tests::stage::{Machine, Node, Stage, Transport};
use godwit_vmm::api::types::{
    GuestState, MigrateRequest, MigrationMode, MigrationState, Role, Status,
};
use rustix::process::Signal;

use crate::GODWIT;
use crate::moving::{is_kept, is_whole};

/// A guest that costs next to nothing while others wait.
const LAZY: Machine<'static> =
    Machine { cpus: 1, memory: "32M", backing: "anon", cmdline: "workload=dirty rate=100" };

#[test]
fn silence_is_bounded_wherever_it_begins() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &LAZY);
    let (stage, rehearsal) = (&stage, &rehearsal);
    thread::scope(|scope| {
        scope.spawn(|| a_stranger_who_says_nothing(stage));
        scope.spawn(|| a_source_that_offers_nothing(stage));
        scope.spawn(|| a_source_that_sends_no_package(stage, rehearsal));
        scope.spawn(|| a_source_that_grants_nothing(stage, rehearsal));
        scope.spawn(|| a_source_that_sends_no_pages(stage, rehearsal));
        scope.spawn(|| a_source_that_is_stopped(stage));
        scope.spawn(|| a_destination_that_is_stopped(stage));
        scope.spawn(|| source_gives_up(stage, "not a godwit", no_preamble));
        scope.spawn(|| source_gives_up(stage, "not accepted", no_accept));
        scope.spawn(|| source_gives_up(stage, "no bulk channel", no_bulk_channel));
        scope.spawn(|| source_gives_up(stage, "not loaded", not_loaded));
        scope.spawn(|| source_keeps_pages(stage, "not owned", not_owned));
        scope.spawn(|| source_keeps_pages(stage, "no requests", no_requests));
    });
}

fn still_receives(stage: &Stage, receiver: &Node, name: &str) {
    let mut source = stage.launch_filled(name, &LAZY);
    stage.migrate(&source, receiver.address()).wait_success();
    assert_eq!(receiver.verdict(1).corrupt, 0);
    source.process.wait_success();
}

fn a_stranger_who_says_nothing(stage: &Stage) {
    let receiver = stage.receive("receiver of strangers", Transport::Tcp);
    // More than it lets say nothing at the same time.
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(receiver.address())).collect();
    peers.iter_mut().for_each(|peer| drop(peer.receive_to_end()));
    receiver.wait_log("turned away");
    still_receives(stage, &receiver, "after strangers");
}

fn a_source_that_offers_nothing(stage: &Stage) {
    let receiver = stage.receive("receiver of nothing", Transport::Unix);
    let mut urgent = Speaker::dial(receiver.address(), Channel::Urgent);
    receiver.wait_log("wants to come");
    // Another one is told why it has to wait.
    let mut other = Speaker::dial(receiver.address(), Channel::Urgent);
    assert!(other.expect_abort().contains("on its way"));
    assert!(urgent.expect_abort().contains("while waiting for an offer"));
    receiver.wait_log("listening again");
    still_receives(stage, &receiver, "after nothing");
}

fn a_source_that_sends_no_package(stage: &Stage, rehearsal: &Rehearsal) {
    let receiver = stage.receive("receiver of no package", Transport::Tcp);
    let (mut urgent, _bulk) = rehearsal.both_channels(receiver.address());
    let status = receiver.status();
    assert_eq!((status.role, status.guest), (Role::Receive, GuestState::Created));
    assert!(urgent.expect_abort().contains("while waiting for the guest's state"));
    receiver.wait_log("listening again");
    still_receives(stage, &receiver, "after no package");
}

fn a_source_that_grants_nothing(stage: &Stage, rehearsal: &Rehearsal) {
    let receiver = stage.receive("receiver of no grant", Transport::Tcp);
    let (mut urgent, _bulk) = rehearsal.until_loaded(receiver.address());
    // A grant may be on its way, so it says durably that it will never run this guest.
    urgent.expect(Kind::Refused);
    receiver.wait_log("listening again");
    // And keeps its word.
    let mut again = rehearsal.offer(receiver.address());
    assert!(again.expect_abort().contains("has seen transfer"));
    still_receives(stage, &receiver, "after no grant");
}

fn a_source_that_sends_no_pages(stage: &Stage, rehearsal: &Rehearsal) {
    let mut receiver = stage.receive("receiver of no pages", Transport::Tcp);
    let (mut urgent, _bulk) = rehearsal.until_loaded(receiver.address());
    urgent.say(&Message::Grant { transfer: rehearsal.offer.transfer }).expect("takes it");
    urgent.expect(Kind::Owned);
    let status = receiver.until_migration(MigrationState::PostcopyPaused);
    assert!(says(&status, "nothing heard for"), "{status:?}");
    receiver.client().shutdown(false).expect("ends");
    receiver.process.wait();
}

fn says(status: &Status, what: &str) -> bool {
    let error = status.migration.as_ref().and_then(|migration| migration.error.as_ref());
    error.is_some_and(|error| error.message.contains(what))
}

/// A source that is stopped while vCPUs wait for its pages: the destination answers all commands,
/// and says that it has lost it. When the source goes on, so does the migration.
fn a_source_that_is_stopped(stage: &Stage) {
    let mut source = stage.launch_filled("stopped source", &LAZY);
    let destination = stage.receive("destination of a stopped source", Transport::Tcp);
    let link = Proxy::that_keeps_pages(destination.address());
    let mut migrate = stage.migrate(&source, link.address());
    source.until_migration(MigrationState::PostcopyActive);
    source.process.signal(Signal::STOP);
    destination.client().pause().expect("pauses");
    assert_eq!(destination.status().guest, GuestState::Paused);
    let status = destination.until_migration(MigrationState::PostcopyPaused);
    assert!(says(&status, "nothing heard for"), "{status:?}");
    assert_eq!(status.guest, GuestState::Paused);
    destination.client().resume().expect("resumes");
    link.release();
    source.process.signal(Signal::CONT);
    migrate.wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
    assert!(destination.until_migration(MigrationState::Completed).owner.owns);
    source.process.wait_success();
}

/// A destination that is stopped after the switchover: the source says so and keeps its pages until
/// it is back.
fn a_destination_that_is_stopped(stage: &Stage) {
    let mut source = stage.launch_filled("source of a stopped destination", &LAZY);
    let mut destination = stage.receive("stopped destination", Transport::Unix);
    let link = Proxy::that_keeps_pages(destination.address());
    let mut migrate = stage.migrate(&source, link.address());
    source.until_migration(MigrationState::PostcopyActive);
    destination.process.signal(Signal::STOP);
    is_kept(&source, &migrate);
    link.release();
    destination.process.signal(Signal::CONT);
    migrate.wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

/// What the other side holds while it is silent.
type Held = (Vec<Peer>, Vec<Speaker>);

fn no_preamble(listener: &PeerListener) -> Held {
    (vec![listener.accept()], Vec::new())
}

fn no_accept(listener: &PeerListener) -> Held {
    let mut urgent = Speaker::accept(listener, Channel::Urgent);
    urgent.expect(Kind::Offer);
    (Vec::new(), vec![urgent])
}

fn no_bulk_channel(listener: &PeerListener) -> Held {
    let (_, mut speakers) = no_accept(listener);
    let accept = Message::Accept(Accept { session: SESSION });
    speakers[0].say(&accept).expect("takes it");
    (vec![listener.accept()], speakers)
}

fn not_loaded(listener: &PeerListener) -> Held {
    let (_, mut speakers) = no_accept(listener);
    let accept = Message::Accept(Accept { session: SESSION });
    speakers[0].say(&accept).expect("takes it");
    speakers.push(accept_bulk(listener));
    speakers[0].expect(Kind::Package);
    (Vec::new(), speakers)
}

fn not_owned(listener: &PeerListener) -> (Held, u64) {
    let mut urgent = Speaker::accept(listener, Channel::Urgent);
    let heard = urgent.expect(Kind::Offer);
    let Message::Offer(Offer { transfer, .. }) = heard.message(0) else { unreachable!() };
    urgent.say(&Message::Accept(Accept { session: SESSION })).expect("takes it");
    let bulk = accept_bulk(listener);
    urgent.expect(Kind::Package);
    urgent.say(&Message::Loaded { transfer }).expect("takes it");
    urgent.expect(Kind::Grant);
    ((Vec::new(), vec![urgent, bulk]), transfer)
}

fn no_requests(listener: &PeerListener) -> (Held, u64) {
    let ((peers, mut speakers), transfer) = not_owned(listener);
    speakers[0].say(&Message::Owned { transfer }).expect("takes it");
    ((peers, speakers), transfer)
}

fn begin(stage: &Stage, name: &str) -> (Node, PeerListener) {
    let source = stage.launch_filled(name, &LAZY);
    let listener = PeerListener::tcp();
    let request = MigrateRequest::new(listener.address(), MigrationMode::Postcopy);
    source.client().migrate(&request).expect("begins");
    (source, listener)
}

/// Before the switchover the guest runs on at the source.
fn source_gives_up(stage: &Stage, name: &str, act: fn(&PeerListener) -> Held) {
    let (source, listener) = begin(stage, name);
    let held = act(&listener);
    let status = source.until_migration(MigrationState::Failed);
    assert!(status.owner.owns && status.guest == GuestState::Running, "{status:?}");
    assert_eq!(source.verdict_from_now(1).corrupt, 0);
    drop(held);
}

/// After it the source keeps its pages and does not run the guest.
fn source_keeps_pages(stage: &Stage, name: &str, act: fn(&PeerListener) -> (Held, u64)) {
    let (mut source, listener) = begin(stage, name);
    let held = act(&listener);
    let status = source.until_interrupted();
    assert!(!status.owner.owns && status.guest == GuestState::Paused, "{status:?}");
    source.client().shutdown(false).expect_err("its pages are nowhere else");
    source.client().shutdown(true).expect("ends");
    source.process.wait();
    drop(held);
}
