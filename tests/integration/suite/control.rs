//! Commands while a guest moves: with vCPUs that wait for pages, and at the edges of the
//! switchover.

use godwit_migration::page::Paging;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use godwit_migration::wire::{Kind, Message, decode};
use godwit_tests::proxy::{Fate, Passing, Proxy, Side};
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};
use rustix::process::Signal;

use crate::GODWIT;
use crate::moving::{Moving, is_kept, is_refused};

/// A guest that looks at the clock for some seconds and then ends itself with code 7. It needs few
/// pages, all below [`LOW_PAGES`].
const ENDS_ITSELF: Machine<'static> = Machine {
    cpus: 1,
    memory: "64M",
    backing: "anon",
    cmdline: "workload=clock passes=6 exit=7 span=4M fill=4M",
};
/// Pages below 32 MiB: more than the guest's image, bookkeeping and 4 MiB of arena.
const LOW_PAGES: u64 = 32 << 8;

/// Pages that end above [`LOW_PAGES`] are kept.
fn keeps_high_pages(passing: &mut Passing<'_>) -> Fate {
    let frame = decode(passing.bytes).expect("a frame").expect("all of it");
    match Message::read(&frame, Paging::base(u32::MAX)) {
        Ok(Message::Pages(head, _)) if head.run.end() > LOW_PAGES => Fate::Hold,
        _ if passing.kind == Kind::PushEnd => Fate::Hold,
        _ => Fate::Forward,
    }
}

/// The guest did not run on with zeros in the place of pages that never came.
fn saw_no_zeros(destination: &Node) {
    let console = destination.process.text(Stream::Stdout);
    let wrong = ["corrupt vcpu", "exception", "panic"].iter().any(|what| console.contains(what));
    assert!(!wrong, "{}", destination.process.failure("ran on without its pages"));
}

#[test]
fn a_guest_whose_vcpus_wait_for_pages_can_be_paused_and_resumed() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    for backing in ["anon", "memfd"] {
        let machine = Machine { cpus: 2, backing, ..SMALL };
        let source = stage.launch_filled(&format!("source {backing}"), &machine);
        let Moving { mut source, destination, link, mut migrate } =
            Moving::without_pages(&stage, source);
        destination.until("a vCPU that waits", |status| {
            let faults = status.migration.as_ref().and_then(|migration| migration.faults);
            faults.is_some_and(|faults| faults.outstanding > 0)
        });
        for _ in 0..3 {
            stage.control("pause", &destination, &[]).wait_success();
            assert_eq!(destination.status().guest, GuestState::Paused);
            stage.control("resume", &destination, &[]).wait_success();
            assert_eq!(destination.status().guest, GuestState::Running);
        }
        stage.control("pause", &destination, &[]).wait_success();
        let console = destination.process.text(Stream::Stdout);
        link.release();
        migrate.wait_success();
        source.process.wait_success();
        let status = destination.until_migration(MigrationState::Completed);
        assert_eq!(status.guest, GuestState::Paused, "it was not resumed");
        assert_eq!(destination.process.text(Stream::Stdout), console, "it ran");
        stage.control("resume", &destination, &[]).wait_success();
        assert_eq!(destination.verdict(2).corrupt, 0);
    }
}

#[test]
fn how_pages_are_put_in_place_is_told_as_long_as_they_are_missing() {
    require_kvm!();
    for (backing, has_cache) in [("anon", false), ("memfd", true)] {
        let stage = Stage::new(GODWIT);
        let machine = Machine { backing, ..SMALL };
        let source = stage.launch_filled("source", &machine);
        assert_eq!(source.status().memory, None);
        let Moving { source: _source, destination, link, mut migrate } =
            Moving::without_pages(&stage, source);
        let methods = destination.status().memory.expect("pages are missing");
        assert_eq!((&*methods.copy, &*methods.zero), ("COPY", "ZEROPAGE"));
        assert!(has_cache || methods.r#continue.starts_with("refused: "), "{methods:?}");
        let mut status = stage.control("status", &destination, &[]);
        status.wait_success();
        let (text, line) = (status.text(Stream::Stdout), format!("zero      {}", methods.zero));
        assert!(text.contains(&line), "{text}");
        link.release();
        migrate.wait_success();
        assert_eq!(destination.until_migration(MigrationState::Completed).memory, None);
    }
}

#[test]
fn a_guest_whose_vcpus_wait_for_pages_can_be_shut_down() {
    require_kvm!();
    for (cpus, options) in [(1, &[][..]), (2, &["--force"][..])] {
        let stage = Stage::new(GODWIT);
        let source = stage.launch_filled("source", &Machine { cpus, ..SMALL });
        let Moving { mut source, mut destination, link: _link, mut migrate } =
            Moving::without_pages(&stage, source);
        stage.control("status", &destination, &["--json"]).wait_success();
        stage.control("shutdown", &destination, options).wait_success();
        destination.process.wait_success();
        saw_no_zeros(&destination);
        // The source is told that nobody needs its pages any more.
        migrate.wait_success();
        source.process.wait_success();
    }
}

/// SIGTERM is a shutdown, too.
#[test]
fn a_signal_ends_a_destination_whose_vcpus_wait_for_pages() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        Moving::without_pages(&stage, source);
    destination.process.signal(Signal::TERM);
    destination.process.wait_success();
    saw_no_zeros(&destination);
    migrate.wait_success();
    source.process.wait_success();
}

#[test]
fn a_guest_that_is_paused_arrives_paused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let destination = stage.receive("destination", Transport::Tcp);
    stage.control("pause", &source, &[]).wait_success();
    stage.migrate(&source, destination.address()).wait_success();
    source.process.wait_success();
    let status = destination.until_migration(MigrationState::Completed);
    assert_eq!(status.guest, GuestState::Paused);
    assert_eq!(destination.process.text(Stream::Stdout), "", "it ran");
    stage.control("resume", &destination, &[]).wait_success();
    assert_eq!(destination.verdict(2).corrupt, 0);
}

/// A migration that fails leaves a paused guest paused, and a running one running.
#[test]
fn a_guest_that_is_paused_stays_so_when_its_migration_fails() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_cuts_at(destination.address(), Kind::Loaded);
    stage.control("pause", &source, &[]).wait_success();
    stage.migrate(&source, link.address()).wait_failure();
    assert_eq!(source.status().guest, GuestState::Paused);
    stage.control("resume", &source, &[]).wait_success();
    assert_eq!(source.verdict_from_now(1).corrupt, 0);
}

/// While nobody runs the guest, nobody can say what it shall do next.
#[test]
fn a_guest_that_is_being_handed_over_takes_no_commands() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_holds(destination.address(), Kind::Loaded);
    let mut migrate = stage.migrate(&source, link.address());
    until("a loaded guest", || (link.seen(Side::Destination, Kind::Loaded) > 0).then_some(()));
    is_refused(&stage, "pause", &source, "being handed over");
    is_refused(&stage, "resume", &source, "being handed over");
    is_refused(&stage, "pause", &destination, "does not own");
    is_refused(&stage, "resume", &destination, "does not own");
    let mut again = stage.migrate(&source, destination.address());
    again.wait_failure();
    assert!(again.text(Stream::Stderr).contains("under way"), "{}", again.failure("says not why"));
    link.release();
    migrate.wait_success();
    source.process.wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
}

/// The guest ends itself at the destination while most of its pages are on their way.
#[test]
fn a_guest_that_powers_off_while_it_moves_ends_the_migration() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch("source", &ENDS_ITSELF);
    source.wait_report("filled");
    source.client().pause().expect("pauses");
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        Moving::with_rule(&stage, source, keeps_high_pages);
    destination.client().resume().expect("resumes");
    assert_eq!(destination.process.wait_failure(), 7);
    assert!(destination.wait_report("end").contains("corrupt=0"));
    migrate.wait_success();
    source.process.wait_success();
}

/// The guest ends itself at the source while the destination is being prepared.
#[test]
fn a_guest_that_powers_off_before_it_moves_ends_the_migration() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch("source", &ENDS_ITSELF);
    let destination = stage.receive("destination", Transport::Tcp);
    source.client().pause().expect("pauses");
    let link = Proxy::that_holds(destination.address(), Kind::Accept);
    let mut migrate = stage.migrate(&source, link.address());
    until("an accept", || (link.seen(Side::Destination, Kind::Accept) > 0).then_some(()));
    source.client().resume().expect("resumes");
    assert_eq!(source.process.wait_failure(), 7);
    migrate.wait_failure();
    destination.wait_log("listening again");
    assert_eq!(destination.status().guest, GuestState::None);
}

/// A source that is told to end while its pages are nowhere else hands them over first.
#[test]
fn a_source_that_is_shut_down_finishes_its_drain() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let Moving { mut source, destination, link, mut migrate } =
        Moving::without_pages(&stage, source);
    source.process.signal(Signal::TERM);
    source.wait_log("finishing the migration first");
    assert!(source.process.is_running());
    link.release();
    migrate.wait();
    source.process.wait_success();
    destination.until_migration(MigrationState::Completed);
    assert_eq!(destination.verdict(1).corrupt, 0);
}

/// If it cannot, it keeps them.
#[test]
fn a_source_that_is_shut_down_keeps_the_pages_of_a_drain_that_breaks() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let Moving { mut source, mut destination, link: _link, mut migrate } =
        Moving::without_pages(&stage, source);
    stage.control("shutdown", &source, &[]).wait_success();
    source.wait_log("finishing the migration first");
    destination.process.kill();
    is_kept(&source, &migrate);
    is_refused(&stage, "shutdown", &source, "--force");
    assert!(source.process.is_running());
    stage.control("shutdown", &source, &["--force"]).wait_success();
    source.process.wait();
    migrate.wait_failure();
}

/// Others may look at a migration; the one who waits for it learns how it ended all the same.
#[test]
fn a_migration_that_many_watch_succeeds_for_whoever_started_it() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive("destination", Transport::Tcp);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) && source.client().status().is_ok() {
                    std::thread::yield_now();
                }
            });
        }
        let mut migrate = stage.migrate(&source, destination.address());
        let status = migrate.wait();
        ended.store(true, Ordering::Relaxed);
        assert!(status.success(), "{}", migrate.failure("failed"));
    });
    assert_eq!(destination.verdict(1).corrupt, 0);
}

/// A guest whose pages are still coming cannot be moved on; once they are there, it can at once.
#[test]
fn a_guest_moves_on_as_soon_as_it_is_whole() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = stage.launch_filled("source", &SMALL);
    let last = stage.receive("last", Transport::Tcp);
    let Moving { source: _source, destination, link, mut migrate } =
        Moving::without_pages(&stage, source);
    let mut early = stage.migrate(&destination, last.address());
    early.wait_failure();
    assert!(early.text(Stream::Stderr).contains("under way"), "{}", early.failure("says not why"));
    link.release();
    migrate.wait_success();
    stage.migrate(&destination, last.address()).wait_success();
    assert_eq!(last.verdict(1).corrupt, 0);
}
