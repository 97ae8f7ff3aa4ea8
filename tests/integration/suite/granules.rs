//! Guests whose memory has pages of 2 MiB, and hosts that do not take them.

use godwit_migration::wire::Kind;
use godwit_tests::huge_pages::HugePages;
use godwit_tests::proxy::{Proxy, cuts_at};
use godwit_tests::stage::{Machine, SMALL, Stage, Transport};
use godwit_tests::{require_kvm, until};
use godwit_vmm::api::types::MigrationStatus;

use crate::GODWIT;
use crate::modes::{self, Way};
use crate::moving::{Moved, ToAndFro, fails_with, is_whole, runs_on};

/// Pages of [`SMALL`].
const GUEST_PAGES: u64 = 32;
/// Pages by which each process tries what userfaultfd can do, for a moment.
const TRIED_PAGES: u64 = 5;
const HUGE: [&str; 2] = ["--page-size", "2M"];

/// Room for the guest at both ends.
fn room_for_two() -> Option<HugePages> {
    HugePages::take(2 * GUEST_PAGES + TRIED_PAGES)
}

#[track_caller]
fn moved_in_huge_pages(migration: &MigrationStatus) {
    let pages = &migration.pages;
    assert_eq!((pages.total, pages.bytes), (GUEST_PAGES, 2 << 20), "{pages:?}");
}

fn every_mode_moves(backing: &str, ways: [Way; 7]) {
    require_kvm!();
    let Some(_pages) = room_for_two() else { return };
    let stage = Stage::new(GODWIT);
    let machine = Machine { cpus: 2, backing, ..SMALL };
    let mut guest = ToAndFro::start_with(&stage, &machine, &HUGE);
    for way in ways {
        let Moved { source, destination } = modes::moves(&mut guest, way);
        moved_in_huge_pages(&source);
        moved_in_huge_pages(&destination);
    }
    // What is resumed is counted in the same pages.
    let cuts = |to: &_| Proxy::start(to, cuts_at(&[(Kind::Pages, 9)]));
    let Moved { destination, .. } = guest.moves(&["--compression", "none"], cuts);
    assert!(destination.interruptions >= 1, "{destination:?}");
}

#[test]
fn every_mode_moves_huge_anonymous_memory() {
    every_mode_moves(
        "anon",
        [
            ["postcopy", "1", "none", "kvm-log"],
            ["precopy", "2", "lz4", "kvm-log"],
            ["hybrid", "4", "auto", "kvm-log"],
            ["precopy", "1", "none", "write-protect"],
            ["hybrid", "2", "lz4", "write-protect"],
            ["precopy", "2", "none", "write-faults"],
            ["postcopy", "4", "lz4", "kvm-log"],
        ],
    );
}

#[test]
fn every_mode_moves_huge_shared_memory() {
    every_mode_moves(
        "memfd",
        [
            ["postcopy", "2", "auto", "kvm-log"],
            ["precopy", "4", "none", "kvm-log"],
            ["hybrid", "1", "lz4", "kvm-log"],
            ["precopy", "2", "auto", "write-protect"],
            ["hybrid", "4", "none", "write-protect"],
            ["hybrid", "2", "auto", "write-faults"],
            ["postcopy", "1", "lz4", "kvm-log"],
        ],
    );
}

#[test]
fn a_guest_stays_where_it_is_while_its_destination_lacks_huge_pages_and_goes_once_it_has_them() {
    require_kvm!();
    let Some(pages) = room_for_two() else { return };
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_with("source", &SMALL, &HUGE);
    source.wait_report("filled");
    let destination = stage.receive("destination", Transport::Tcp);
    let lacking = GUEST_PAGES - 1;
    pages.leave_free(lacking).expect("fewer can always be had");
    let why = format!("{GUEST_PAGES} huge pages of 2 MiB, and {lacking} are free");
    let migrate = stage.migrate(&source, destination.address());
    fails_with(migrate, &why);
    runs_on(&source);
    let cure = destination.wait_log("vm.nr_hugepages=");
    assert!(cure.contains(&why), "{cure}");
    pages.leave_free(GUEST_PAGES + TRIED_PAGES).expect("they were free before");
    stage.migrate(&source, destination.address()).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

#[test]
fn a_guest_of_huge_pages_that_the_host_lacks_is_not_launched() {
    require_kvm!();
    let Some(_pages) = HugePages::take(GUEST_PAGES - 1) else { return };
    let stage = Stage::new(GODWIT);
    for backing in ["anon", "memfd"] {
        let words = ["run", "--memory", SMALL.memory, "--memory-backing", backing];
        let refused = || stage.command("run", &[&words[..], &HUGE].concat());
        fails_with(refused(), "32 huge pages of 2 MiB, and 31 are free");
        fails_with(refused(), "vm.nr_hugepages=");
    }
}

#[test]
fn huge_pages_are_given_back_when_a_guest_has_moved() {
    require_kvm!();
    let Some(_pages) = room_for_two() else { return };
    let stage = Stage::new(GODWIT);
    let mut guest = ToAndFro::start_with(&stage, &SMALL, &HUGE);
    // Twice there and back: each time the pages of the host that it left are needed again.
    for _ in 0..4 {
        guest.moves(&[], Proxy::plain);
    }
    drop(guest);
    until("all huge pages to be free", || {
        (HugePages::free() >= Ok(2 * GUEST_PAGES + TRIED_PAGES)).then_some(())
    });
}

#[test]
fn a_guest_of_huge_pages_is_not_saved_and_runs_on() {
    require_kvm!();
    let Some(_pages) = HugePages::take(GUEST_PAGES + TRIED_PAGES) else { return };
    let stage = Stage::new(GODWIT);
    let node = stage.launch_with("source", &SMALL, &HUGE);
    node.wait_report("filled");
    let to = stage.folder().path("snapshot");
    let save = stage.control("snapshot", &node, &[&to.display().to_string()]);
    fails_with(save, "guests with --page-size 4K can be saved; this one can be migrated");
    runs_on(&node);
    assert!(!to.exists());
}

#[test]
fn a_guest_of_huge_pages_has_no_base_and_runs_on() {
    require_kvm!();
    let Some(_pages) = HugePages::take(GUEST_PAGES + TRIED_PAGES) else { return };
    let stage = Stage::new(GODWIT);
    let base = stage.snapshot(&stage.launch_filled("saved", &SMALL), "base", &[]);
    let base = ["--base", base.to_str().expect("a plain path")];
    let source = stage.launch_with("source", &SMALL, &HUGE);
    source.wait_report("filled");
    let destination = stage.receive_with("destination", Transport::Tcp, &base);
    let migrate = stage.migrate_with(&source, destination.address(), &base);
    fails_with(migrate, "pages of 2 MiB, and snapshots are of guests with pages of 4 KiB");
    runs_on(&source);
}

#[test]
fn a_cap_on_bandwidth_lets_a_huge_page_pass_in_time() {
    require_kvm!();
    let Some(_pages) = HugePages::take(GUEST_PAGES + TRIED_PAGES) else { return };
    let stage = Stage::new(GODWIT);
    let source = stage.launch_with("source", &SMALL, &HUGE);
    source.wait_report("filled");
    let destination = stage.receive("destination", Transport::Tcp);
    let migrate = stage.migrate_with(&source, destination.address(), &["--bandwidth", "500K"]);
    fails_with(migrate, "with pages of 2 MiB the least is 524288");
    runs_on(&source);
}

#[test]
fn memory_that_is_no_whole_huge_pages_is_refused() {
    let stage = Stage::new(GODWIT);
    let odd = stage.command("run", &[&["run", "--memory", "65M"][..], &HUGE].concat());
    fails_with(odd, "choose a multiple of 2 MiB");
    let unknown = stage.command("run", &["run", "--page-size", "1G"]);
    fails_with(unknown, "choose 4K or 2M");
}

#[test]
fn a_receiver_that_wants_other_pages_refuses_a_guest_with_the_cure_and_takes_the_next() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let huge = stage.receive_with("huge", Transport::Tcp, &HUGE);
    let migrate = stage.migrate(&source, huge.address());
    fails_with(migrate, "start `godwit receive` with --page-size 4K, or the guest with");
    runs_on(&source);
    huge.wait_log("no guest came; listening again");
    let base = stage.receive_with("base", Transport::Tcp, &["--page-size", "4K"]);
    stage.migrate(&source, base.address()).wait_success();
    is_whole(&base, &source);
    source.process.wait_success();
    let Some(_pages) = HugePages::take(GUEST_PAGES + TRIED_PAGES) else { return };
    let source = stage.launch_with("source", &SMALL, &HUGE);
    source.wait_report("filled");
    let base = stage.receive_with("other", Transport::Tcp, &["--page-size", "4K"]);
    let migrate = stage.migrate(&source, base.address());
    fails_with(migrate, "start `godwit receive` with --page-size 2M, or the guest with");
    runs_on(&source);
}
