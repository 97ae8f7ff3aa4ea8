//! Post-copy of every workload, over both kinds of sockets and of memory, with one and two vCPUs:
//! each guest verifies all of its memory at the destination.

use godwit_tests::resources::descriptors;
use godwit_tests::stage::{Machine, Node, Stage, Transport};
use godwit_tests::{Process, require_kvm};
use godwit_vmm::api::types::{GuestState, MigrationState, Role, Status};

use crate::GODWIT;
use crate::moving::is_whole;

/// Launches `machine`, moves it once it has filled its memory, and lets it verify that. Returns
/// the source and the destination.
fn moves(machine: &Machine<'_>, transport: Transport) -> (Stage, Process, Node) {
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", machine);
    let destination = stage.receive("destination", transport);
    stage.migrate(&source, destination.address()).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
    check_destination(&destination, machine);
    (stage, source.process, destination)
}

/// All pages are counted, and the guest's memory is ordinary again.
fn check_destination(destination: &Node, machine: &Machine<'_>) {
    let status = destination.until_migration(MigrationState::Completed);
    assert_eq!((status.role, &status.guest), (Role::Receive, &GuestState::Running));
    assert!(status.owner.owns && status.owner.grant == 1, "{status:?}");
    let Status { vm: Some(vm), migration: Some(migration), .. } = status else {
        panic!("{}", destination.process.failure("has no machine or no migration"));
    };
    assert_eq!(vm.cpus, machine.cpus);
    let pages = migration.pages;
    assert_eq!(pages.remaining, 0);
    assert_eq!(pages.total, vm.memory_bytes / 4096);
    assert_eq!(pages.zero + pages.data, pages.total);
    let faults = migration.faults.expect("a destination has faults");
    assert_eq!(faults.outstanding, 0);
    let kinds = descriptors(destination.process.pid());
    assert!(kinds.keys().all(|kind| !kind.contains("userfaultfd")), "{kinds:?}");
}

#[test]
fn halt_moves() {
    require_kvm!();
    let cmdline = "workload=halt timer=100";
    moves(&Machine { cpus: 2, memory: "64M", backing: "anon", cmdline }, Transport::Tcp);
}

#[test]
fn touch_moves_with_memory_that_was_never_written() {
    require_kvm!();
    let cmdline = "workload=touch passes=0 fill=100M seed=3";
    moves(&Machine { cpus: 1, memory: "256M", backing: "memfd", cmdline }, Transport::Unix);
}

#[test]
fn stride_moves() {
    require_kvm!();
    let cmdline = "workload=stride stride=67";
    moves(&Machine { cpus: 2, memory: "128M", backing: "memfd", cmdline }, Transport::Tcp);
}

#[test]
fn uniform_random_moves() {
    require_kvm!();
    let cmdline = "workload=random windows=0 seed=11";
    moves(&Machine { cpus: 2, memory: "128M", backing: "anon", cmdline }, Transport::Unix);
}

#[test]
fn zipf_random_moves() {
    require_kvm!();
    let cmdline = "workload=random order=zipf fill=64M windows=0";
    moves(&Machine { cpus: 1, memory: "128M", backing: "anon", cmdline }, Transport::Tcp);
}

#[test]
fn chase_moves() {
    require_kvm!();
    let cmdline = "workload=chase windows=0";
    moves(&Machine { cpus: 2, memory: "64M", backing: "memfd", cmdline }, Transport::Unix);
}

#[test]
fn dirty_moves_with_interrupts_and_page_faults_of_its_own() {
    require_kvm!();
    let cmdline = "workload=dirty timer=100 faults=200";
    moves(&Machine { cpus: 2, memory: "256M", backing: "anon", cmdline }, Transport::Tcp);
}

#[test]
fn checksum_moves() {
    require_kvm!();
    let cmdline = "workload=checksum seed=5";
    moves(&Machine { cpus: 1, memory: "64M", backing: "memfd", cmdline }, Transport::Tcp);
}

#[test]
fn smp_moves() {
    require_kvm!();
    let cmdline = "workload=smp";
    moves(&Machine { cpus: 2, memory: "128M", backing: "anon", cmdline }, Transport::Tcp);
}

#[test]
fn clock_moves() {
    require_kvm!();
    moves(
        &Machine { cpus: 1, memory: "64M", backing: "anon", cmdline: "workload=clock" },
        Transport::Unix,
    );
}

#[test]
fn a_guest_of_a_gibibyte_moves() {
    require_kvm!();
    let cmdline = "workload=dirty rate=20000";
    moves(&Machine { cpus: 2, memory: "1G", backing: "memfd", cmdline }, Transport::Tcp);
}

#[test]
fn a_guest_moves_while_it_starts() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let cmdline = "workload=dirty timer=100";
    let machine = Machine { cpus: 2, memory: "128M", backing: "anon", cmdline };
    let mut source = stage.launch("source", &machine);
    let destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
    assert_eq!(destination.verdict(2).corrupt, 0);
    source.process.wait_success();
}
