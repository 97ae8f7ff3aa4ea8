//! What breaks after the switchover is reported on both sides; the source keeps its pages and does
//! not run the guest, and nobody hangs. What can go on does so by itself; what cannot is said to be
//! lost, and a guest that was refused is the source's again.

use godwit_migration::page::Paging;
use godwit_uffd::page::PageSize;
use std::collections::HashSet;

use godwit_migration::wire::{Encoding, Kind, Message, PushFrame, RunHead, decode};
use godwit_tests::guest::reports;
use godwit_tests::proxy::{Fate, Passing, Proxy};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm};
use godwit_vmm::api::types::{GuestState, MigrationState};
use rustix::process::Signal;

use crate::GODWIT;
use crate::moving::{Moving, fails, fails_with, is_kept, is_refused, is_whole, runs_on};

#[test]
fn a_destination_that_dies_leaves_the_guest_paused_with_its_pages_at_the_source() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let Moving { mut source, mut destination, link: _link, migrate } =
        Moving::without_pages(&stage, source);
    destination.process.kill();
    is_kept(&source, &migrate);
    let console = source.process.text(Stream::Stdout);

    is_refused(&stage, "resume", &source, "the guest");
    is_refused(&stage, "pause", &source, "the guest");
    is_refused(&stage, "cancel", &source, "too late");
    is_refused(&stage, "shutdown", &source, "--force");
    // It would be in two places: nobody knows what the lost destination does with it.
    let fresh = stage.receive("fresh", Transport::Tcp);
    fails_with(stage.migrate(&source, fresh.address()), "under way");
    source.process.signal(Signal::TERM);
    source.wait_log("ask again");
    is_kept(&source, &migrate);
    assert_eq!(source.process.text(Stream::Stdout), console, "the guest ran");

    stage.control("shutdown", &source, &["--force"]).wait_success();
    let status = source.process.wait();
    assert!(status.code().is_some(), "{status}");
    let mut migrate = migrate;
    migrate.wait_failure();
    assert_eq!(fresh.status().guest, GuestState::None);
}

/// It comes back without the guest, and knows that it had it: that guest is nowhere any more.
#[test]
fn a_destination_that_lost_the_guest_says_so_when_it_is_back() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let Moving { mut source, destination, link: _link, migrate } =
        Moving::without_pages(&stage, source);
    let console = source.process.text(Stream::Stdout);
    let destination = stage.restart("destination", destination);
    let status = source.until_migration(MigrationState::Failed);
    assert!(status.lost() && !status.owner.owns, "{status:?}");
    assert_eq!(status.guest, GuestState::Paused);
    assert!(status.owner.record.is_some_and(|record| record.starts_with("granted 1 ")));
    fails_with(migrate, "the guest is lost");

    is_refused(&stage, "resume", &source, "granted");
    is_refused(&stage, "pause", &source, "granted");
    fails_with(stage.migrate(&source, destination.address()), "granted");
    assert_eq!(source.process.text(Stream::Stdout), console, "the guest ran");
    assert_eq!(destination.status().guest, GuestState::None);
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
    // Nothing is kept for anybody.
    stage.control("shutdown", &source, &[]).wait_success();
    source.process.wait();

    let mut other = stage.launch_filled("other", &SMALL);
    stage.migrate(&other, destination.address()).wait_success();
    is_whole(&destination, &other);
    other.process.wait_success();
}

#[test]
fn a_source_that_dies_leaves_the_guest_under_control_at_the_destination() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        Moving::without_pages(&stage, source);
    source.process.kill();
    migrate.wait_failure();
    let status = destination.until_migration(MigrationState::PostcopyPaused);
    assert!(status.owner.owns, "{status:?}");
    let migration = status.migration.expect("a migration");
    assert!(migration.pages.remaining > 0 && migration.error.is_some(), "{migration:?}");

    stage.control("status", &destination, &[]).wait_success();
    stage.control("pause", &destination, &[]).wait_success();
    assert_eq!(destination.status().guest, GuestState::Paused);
    stage.control("resume", &destination, &[]).wait_success();
    assert_eq!(destination.status().guest, GuestState::Running);
    // What is missing is nowhere: the guest cannot be moved on.
    let fresh = stage.receive("fresh", Transport::Tcp);
    stage.migrate(&destination, fresh.address()).wait_failure();
    assert_eq!(fresh.status().guest, GuestState::None);
    stage.control("shutdown", &destination, &[]).wait_success();
    let status = destination.process.wait();
    assert!(status.code().is_some(), "{status}");
}

#[test]
fn a_link_that_breaks_pauses_both_sides_only_one_owns_the_guest_and_it_goes_on() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let moving = Moving::without_pages(&stage, source);
    moving.link.block();
    is_kept(&moving.source, &moving.migrate);
    let status = moving.destination.until_migration(MigrationState::PostcopyPaused);
    assert!(status.owner.owns, "{status:?}");
    let record = status.owner.record.expect("a record");
    assert!(record.starts_with("owned 1 "), "{record}");
    assert!(status.migration.expect("a migration").error.is_some());
    moving.link.unblock();
    moving.link.release();
    moving.completes();
}

/// The grant is lost on its way. The receiver has barred itself from it durably, so the source
/// learns, when it has dialled again, that the guest is its own.
#[test]
fn a_grant_that_is_lost_is_refused_and_the_guest_runs_on_at_the_source() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_cuts_at(destination.address(), Kind::Grant);
    fails(stage.migrate(&source, link.address()));
    let status = source.until_migration(MigrationState::Failed);
    assert!(!status.lost());
    assert!(status.owner.record.is_some_and(|record| record.starts_with("reclaimed 1 ")));
    runs_on(&source);
    destination.wait_log("listening again");
    assert_eq!(destination.status().guest, GuestState::None);
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");

    stage.migrate(&source, destination.address()).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

/// Both know that the destination owns the guest, or only the destination does.
#[test]
fn a_link_that_breaks_at_the_first_words_of_an_owner_is_dialled_again() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for at in [Kind::Owned, Kind::Request] {
        let mut source = stage.launch_filled(&format!("source {at:?}"), &SMALL);
        let destination = stage.receive(&format!("destination {at:?}"), Transport::Tcp);
        let link = Proxy::that_cuts_at(destination.address(), at);
        stage.migrate(&source, link.address()).wait_success();
        is_whole(&destination, &source);
        assert_eq!(destination.migration().interruptions, 1, "{at:?}");
        source.process.wait_success();
    }
}

/// All pages are at the destination, so the guest is whole there; a source that did not hear of it
/// asks, and is told.
#[test]
fn a_link_that_breaks_at_the_last_words_leaves_the_guest_whole() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for at in [Kind::Complete, Kind::Released] {
        let mut source = stage.launch_filled(&format!("source {at:?}"), &SMALL);
        let destination = stage.receive(&format!("destination {at:?}"), Transport::Tcp);
        let link = Proxy::that_cuts_at(destination.address(), at);
        stage.migrate(&source, link.address()).wait_success();
        is_whole(&destination, &source);
        source.process.wait_success();
        // It would be the second of its own; it listens again for nobody.
        let other = stage.launch_filled(&format!("other {at:?}"), &SMALL);
        fails_with(stage.migrate(&other, destination.address()), "runs here already");
    }
}

/// Changes a byte of a page past the guest's own image and bookkeeping: in the first run of many
/// pages as they are, above 32 MiB. With a checksum that fits if `forged`.
fn change_a_byte(passing: &mut Passing<'_>, forged: bool) -> bool {
    let frame = decode(passing.bytes).expect("a frame").expect("all of it");
    let Ok(Message::Pages(head, contents)) = Message::read(&frame, Paging::base(u32::MAX)) else {
        return false;
    };
    let (raw, first) = (head.encoding == Encoding::Raw, head.run.first.0);
    if !raw || head.run.count < 32 || first < 32 << 8 {
        return false;
    }
    let mut changed = contents.to_vec();
    changed[10_000] ^= 1;
    let head =
        if forged { RunHead::new(PageSize::BASE, head.run, head.encoding, &changed) } else { head };
    *passing.bytes = [&PushFrame::Pages(head).encode()[..], &changed].concat();
    true
}

/// Moves a guest over a link that changes one byte, once. Returns its destination.
fn moves_with_a_change(stage: &Stage, forged: bool) -> (Node, Node) {
    let machine = Machine { cmdline: "workload=checksum", ..SMALL };
    let source = stage.launch_filled("source", &machine);
    let destination = stage.receive("destination", Transport::Tcp);
    let mut done = false;
    let link = Proxy::start(destination.address(), move |passing| {
        if !done && passing.kind == Kind::Pages {
            done = change_a_byte(passing, forged);
        }
        Fate::Forward
    });
    let options = ["--compression", "none"];
    stage.migrate_with(&source, link.address(), &options).wait_success();
    (source, destination)
}

/// A page that changed on its way, as no checksum can see, is found by the guest: the check that
/// all tests rest on.
#[test]
fn a_byte_that_was_forged_on_its_way_is_found_by_the_guest() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let (_source, destination) = moves_with_a_change(&stage, true);
    // The pass in which it moved finds it, or the first whole one at the destination, or both.
    let verdict = destination.verdict(1);
    assert!(verdict.corrupt > 0, "{}", destination.process.failure("has not noticed"));
    let console = destination.process.text(Stream::Stdout);
    let corrupt = reports(&console).into_iter().filter(|report| report.kind == "corrupt");
    let pages: HashSet<u64> = corrupt.map(|report| report.number("page")).collect();
    assert_eq!(pages.len(), 1, "one page was changed: {pages:?}");
}

/// A page that does not fit its checksum is not installed: it is sent again.
#[test]
fn a_byte_that_changed_on_its_way_is_sent_again() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let (mut source, destination) = moves_with_a_change(&stage, false);
    is_whole(&destination, &source);
    assert_eq!(destination.migration().interruptions, 1);
    source.process.wait_success();
}
