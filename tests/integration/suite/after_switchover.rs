//! What breaks after the switchover is reported on both sides; the source keeps its pages and does
//! not run the guest, and nobody hangs.

use std::collections::HashSet;

use godwit_migration::transport::Address;
use godwit_migration::wire::Kind;
use godwit_tests::guest::reports;
use godwit_tests::proxy::{Fate, Proxy};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm};
use godwit_vmm::api::types::{GuestState, MigrationState};
use rustix::process::Signal;

use crate::GODWIT;

/// A guest that has just changed hands, with all of its pages still at the source.
struct Moving {
    source: Node,
    destination: Node,
    link: Proxy,
    migrate: Process,
}

fn moving(stage: &Stage, machine: &Machine<'_>) -> Moving {
    let source = stage.launch_filled("source", machine);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_keeps_pages(destination.address());
    let migrate = stage.migrate(&source, link.address());
    source.until_migration(MigrationState::PostcopyActive);
    destination.until_migration(MigrationState::PostcopyActive);
    Moving { source, destination, link, migrate }
}

/// The source keeps all pages and the guest does not run there; `migrate` says so.
fn is_kept(source: &Node, migrate: &mut Process) {
    let status = source.until_migration(MigrationState::PostcopyPaused);
    assert_eq!(status.guest, GuestState::Paused);
    assert!(!status.owner.owns, "{status:?}");
    let record = status.owner.record.expect("a record of the grant");
    assert!(record.starts_with("granted 1 "), "{record}");
    let migration = status.migration.expect("a migration");
    assert_eq!(migration.pages.total, status.vm.expect("a machine").memory_bytes / 4096);
    assert!(migration.error.is_some());
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    let kept = format!("keeps all {} pages", migration.pages.total);
    assert!(stderr.contains("lost after the switchover"), "{}", migrate.failure("does not say it"));
    assert!(stderr.contains(&kept), "{}", migrate.failure("does not say what is kept"));
}

/// The command is refused, and its stderr says why.
fn is_refused(stage: &Stage, verb: &str, node: &Node, why: &str) {
    let mut command = stage.control(verb, node, &[]);
    command.wait_failure();
    let stderr = command.text(Stream::Stderr);
    assert!(stderr.contains(why), "{}", command.failure(&format!("does not say {why:?}")));
}

#[test]
fn a_destination_that_dies_leaves_the_guest_paused_with_its_pages_at_the_source() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        moving(&stage, &Machine { cpus: 2, ..SMALL });
    destination.process.kill();
    is_kept(&source, &mut migrate);
    let console = source.process.text(Stream::Stdout);

    is_refused(&stage, "resume", &source, "the guest");
    is_refused(&stage, "pause", &source, "the guest");
    is_refused(&stage, "shutdown", &source, "--force");
    // It would be in two places: nobody knows what the lost destination does with it.
    let fresh = stage.receive("fresh", Transport::Tcp);
    let mut again = stage.migrate(&source, fresh.address());
    again.wait_failure();
    let stderr = again.text(Stream::Stderr);
    assert!(stderr.contains("granted"), "{}", again.failure("does not say why"));
    source.process.signal(Signal::TERM);
    source.wait_log("ask again");
    is_kept(&source, &mut migrate);
    assert_eq!(source.process.text(Stream::Stdout), console, "the guest ran");

    stage.control("shutdown", &source, &["--force"]).wait_success();
    let status = source.process.wait();
    assert!(status.code().is_some(), "{status}");
    assert_eq!(fresh.status().guest, GuestState::None);
}

#[test]
fn a_source_that_dies_leaves_the_guest_under_control_at_the_destination() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        moving(&stage, &Machine { cpus: 2, ..SMALL });
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
fn a_link_that_breaks_pauses_both_sides_and_only_one_owns_the_guest() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let Moving { source, destination, link, mut migrate } = moving(&stage, &SMALL);
    link.cut();
    is_kept(&source, &mut migrate);
    let status = destination.until_migration(MigrationState::PostcopyPaused);
    assert!(status.owner.owns, "{status:?}");
    let record = status.owner.record.expect("a record");
    assert!(record.starts_with("owned 1 "), "{record}");
}

/// The grant is lost on its way: nobody runs the guest, and the receiver listens again because it
/// has barred itself.
#[test]
fn a_grant_that_is_lost_leaves_nobody_running_the_guest() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_cuts_at(destination.address(), Kind::Grant);
    let mut migrate = stage.migrate(&source, link.address());
    is_kept(&source, &mut migrate);
    destination.wait_log("listening again");
    assert_eq!(destination.status().guest, GuestState::None);
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");

    let other = stage.launch_filled("other", &SMALL);
    stage.migrate(&other, destination.address()).wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
}

/// Both know that the destination owns the guest, or only the destination does.
#[test]
fn a_link_that_breaks_at_the_first_words_of_an_owner_pauses_both() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for at in [Kind::Owned, Kind::Request] {
        let source = stage.launch_filled(&format!("source {at:?}"), &SMALL);
        let destination = stage.receive(&format!("destination {at:?}"), Transport::Tcp);
        let link = Proxy::start(destination.address(), move |passing| match passing.kind {
            now if now == at => Fate::Cut,
            Kind::Pages => Fate::Hold,
            _ => Fate::Forward,
        });
        let mut migrate = stage.migrate(&source, link.address());
        is_kept(&source, &mut migrate);
        let status = destination.until_migration(MigrationState::PostcopyPaused);
        assert!(status.owner.owns, "{status:?}");
    }
}

/// All pages are at the destination, so the guest is whole there; a source that does not hear of
/// it keeps what it has.
#[test]
fn a_link_that_breaks_at_the_last_words_leaves_the_guest_whole() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for at in [Kind::Complete, Kind::Released] {
        let mut source = stage.launch_filled(&format!("source {at:?}"), &SMALL);
        let destination = stage.receive(&format!("destination {at:?}"), Transport::Tcp);
        let link = Proxy::that_cuts_at(destination.address(), at);
        let mut migrate = stage.migrate(&source, link.address());
        let verdict = destination.verdict(1);
        assert_eq!(verdict.corrupt, 0);
        let status = destination.until_migration(MigrationState::Completed);
        assert_eq!(status.migration.expect("a migration").pages.remaining, 0);
        if at == Kind::Complete {
            is_kept(&source, &mut migrate);
        } else {
            migrate.wait_success();
            source.process.wait_success();
        }
    }
}

/// The polynomial of CRC-32C as it is on the wire: whatever it is added to keeps its checksum.
const UNSEEN_BY_CHECKSUMS: [u8; 5] = [0xf1, 0x76, 0xec, 0x05, 0x01];

/// A link that adds `change` to one page.
fn link_that_changes(to: &Address, change: &'static [u8]) -> Proxy {
    let mut changed = false;
    Proxy::start(to, move |passing| {
        // Past the guest's own image and bookkeeping: the first run of many pages above 32 MiB.
        let first = passing.bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let long = passing.bytes.len() > 32 * 4096;
        if !changed && passing.kind == Kind::Pages && long && first >= Some(32 << 8) {
            let bytes = passing.bytes[10_000..].iter_mut();
            bytes.zip(change).for_each(|(byte, bits)| *byte ^= bits);
            changed = true;
        }
        Fate::Forward
    })
}

#[test]
fn a_byte_that_changed_on_its_way_is_never_installed() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = link_that_changes(destination.address(), &[1]);
    let mut migrate = stage.migrate(&source, link.address());
    let status = destination.until_migration(MigrationState::PostcopyPaused);
    let error = status.migration.and_then(|migration| migration.error).expect("an error");
    assert!(error.message.contains("the checksum of pages"), "{error}");
    is_kept(&source, &mut migrate);
}

/// A page that changed on its way, as no checksum can see, is found by the guest: the check that all
/// tests rest on.
#[test]
fn a_page_that_changed_on_its_way_is_found_by_the_guest() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let machine = Machine { cmdline: "workload=checksum", ..SMALL };
    let source = stage.launch_filled("source", &machine);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = link_that_changes(destination.address(), &UNSEEN_BY_CHECKSUMS);
    stage.migrate(&source, link.address()).wait_success();
    // The pass in which it moved finds it, or the first whole one at the destination, or both.
    let verdict = destination.verdict(1);
    assert!(verdict.corrupt > 0, "{}", destination.process.failure("has not noticed"));
    let console = destination.process.text(Stream::Stdout);
    let corrupt = reports(&console).into_iter().filter(|report| report.kind == "corrupt");
    let pages: HashSet<u64> = corrupt.map(|report| report.number("page")).collect();
    assert_eq!(pages.len(), 1, "one page was changed: {pages:?}");
}
