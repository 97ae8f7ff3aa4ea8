//! The records of who owns a guest, which outlive the processes.

use godwit_migration::driver::Records;
use godwit_migration::proto::Ownership;
use godwit_tests::proxy::Proxy;
use godwit_tests::speaker::Rehearsal;
use godwit_tests::stage::{Machine, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm};
use godwit_vmm::api::types::{GuestState, MigrationState};
use uuid::Uuid;

use crate::GODWIT;

const ID: &str = "3c5f8a52-9d0e-4d57-9d4c-2f6b1d0c7a11";

fn id() -> Uuid {
    ID.parse().expect("a UUID")
}

/// `godwit run` of the guest with the records in `state` of this stage.
fn run_again(stage: &Stage, state: &str, options: &[&str]) -> Process {
    let state = stage.folder().path(state);
    let state = state.to_str().expect("a plain path");
    let words = ["run", "--memory", "64M", "--id", ID, "--state-dir", state];
    stage.command("run again", &[&words, options].concat())
}

/// It does not start, and says all of this.
fn is_refused(mut run: Process, says: &[&str]) {
    run.wait_failure();
    let stderr = run.text(Stream::Stderr);
    for what in says {
        assert!(stderr.contains(what), "{}", run.failure(&format!("does not say {what:?}")));
    }
    assert_eq!(run.text(Stream::Stdout), "", "{}", run.failure("ran the guest"));
}

#[test]
fn a_guest_that_was_granted_away_is_run_only_by_an_operator_who_insists() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_with("source", &SMALL, &["--id", ID]);
    source.wait_report("filled");
    let destination = stage.receive("destination", Transport::Tcp);
    let there = destination.address().to_string();
    stage.migrate(&source, destination.address()).wait_success();
    source.process.wait_success();
    assert_eq!(destination.status().id, Some(id()));

    let says = [ID, &there, "transfer 1", "--override-grant"];
    is_refused(run_again(&stage, "source.state", &[]), &says);
    drop(destination);
    is_refused(run_again(&stage, "source.state", &[]), &says);

    let state = stage.folder().path("source.state");
    let options =
        ["--id", ID, "--override-grant", "--state-dir", state.to_str().expect("a plain path")];
    let mut again = stage.launch_with("again", &SMALL, &options);
    again.wait_log("OVERRIDDEN");
    assert_eq!(again.status().owner.grant, 1);
    // It counts on from there.
    let destination = stage.receive("another destination", Transport::Tcp);
    stage.migrate(&again, destination.address()).wait_success();
    again.process.wait_success();
    assert_eq!(destination.status().owner.grant, 2);
}

#[test]
fn a_guest_that_was_lost_is_not_run_from_the_start() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_with("source", &SMALL, &["--id", ID]);
    let mut destination = stage.receive("destination", Transport::Tcp);
    let link = Proxy::that_keeps_pages(destination.address());
    let mut migrate = stage.migrate(&source, link.address());
    source.until_migration(MigrationState::PostcopyActive);
    destination.process.kill();
    source.until_interrupted();
    source.client().shutdown(true).expect("ends");
    source.process.wait();
    migrate.wait_failure();
    let there = link.address().to_string();
    is_refused(run_again(&stage, "source.state", &[]), &[ID, &there, "--override-grant"]);
}

/// A guest that ended is over: its records go, at both ends of its way.
#[test]
fn a_guest_that_ended_leaves_no_record() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_with("source", &SMALL, &["--id", ID]);
    source.wait_report("start");
    let mut destination = stage.receive("destination", Transport::Tcp);
    stage.migrate(&source, destination.address()).wait_success();
    source.process.wait_success();
    let state = stage.folder().path("destination.state");
    let records = Records::open(&state).expect("opens");
    let record = records.read(id()).expect("reads").expect("it is here");
    assert_eq!((record.ownership, record.transfer), (Ownership::Owned, 1));
    stage.control("shutdown", &destination, &[]).wait_success();
    destination.process.wait_success();
    let left: Vec<_> = std::fs::read_dir(&state).expect("a folder").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_record_that_cannot_be_read_forbids_what_it_may_forbid() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let state = stage.folder().path("destination.state");
    std::fs::create_dir(&state).expect("a folder");
    let record = state.join(format!("{ID}.json"));
    std::fs::write(&record, b"{\"guest\": 1").expect("writes");
    let path = record.to_str().expect("a plain path");
    is_refused(run_again(&stage, "destination.state", &[]), &[path, "is damaged"]);

    let source = stage.launch_with("source", &SMALL, &["--id", ID]);
    let destination = stage.receive("destination", Transport::Tcp);
    let mut migrate = stage.migrate(&source, destination.address());
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("is damaged"), "{}", migrate.failure("does not say why"));
    destination.wait_log("listening again");
    std::fs::remove_file(&record).expect("removes");
    stage.migrate(&source, destination.address()).wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
}

/// A transfer is tried once: what was refused stays refused, whoever offers it again.
#[test]
fn a_transfer_is_not_taken_twice() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    rehearsal.offer.transfer = 5;
    let mut log = receiver.process.lines(Stream::Stderr);
    drop(rehearsal.until_loaded(receiver.address()));
    for transfer in [5, 4, 1] {
        log.wait("the end of the one before", |line| line.contains("listening again"));
        rehearsal.offer.transfer = transfer;
        let reason = rehearsal.offer(receiver.address()).expect_abort();
        assert!(reason.contains("has seen transfer 5"), "{reason}");
    }
}

/// Processes of one host may keep their records in one place, and a guest may come back.
#[test]
fn one_state_directory_is_enough_for_both_ends() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let state = stage.folder().path("shared");
    let state = state.to_str().expect("a plain path");
    let machine = Machine { cpus: 2, ..SMALL };
    let options = ["--id", ID, "--state-dir", state];
    let mut source = stage.launch_with("source", &machine, &options);
    source.wait_report("filled");
    let nodes = ["a", "b"].map(|n| stage.receive_with(n, Transport::Tcp, &["--state-dir", state]));
    stage.migrate(&source, nodes[0].address()).wait_success();
    source.process.wait_success();
    for transfer in 2..=5 {
        let (here, there) = (&nodes[transfer % 2], &nodes[1 - transfer % 2]);
        stage.migrate(here, there.address()).wait_success();
        assert_eq!(there.verdict_from_now(2).corrupt, 0);
        let records = Records::open(state.as_ref()).expect("opens");
        let record = records.read(id()).expect("reads").expect("it is here");
        assert_eq!((record.ownership, record.transfer), (Ownership::Owned, transfer as u64));
        is_refused(run_again(&stage, "shared", &[]), &[ID]);
    }
}

#[test]
fn a_guest_runs_once_on_a_host() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let state = stage.folder().path("shared");
    let state = state.to_str().expect("a plain path");
    let mut first = stage.launch_with("first", &SMALL, &["--id", ID, "--state-dir", state]);
    is_refused(run_again(&stage, "shared", &[]), &[ID, "runs here already"]);
    is_refused(run_again(&stage, "shared", &["--override-grant"]), &[ID, "runs here already"]);
    // Another guest does, and this one again once the first process is gone, however it went.
    let _other = stage.launch_with("other", &SMALL, &["--state-dir", state]);
    first.process.kill();
    let mut again = stage.launch_with("again", &SMALL, &["--id", ID, "--state-dir", state]);
    again.client().shutdown(false).expect("ends");
    again.process.wait_success();
}

#[test]
fn a_guest_that_runs_here_does_not_come_here() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let _here = stage.launch_with("here", &SMALL, &["--id", ID]);
    let state = stage.folder().path("here.state");
    let state = state.to_str().expect("a plain path");
    let destination = stage.receive_with("destination", Transport::Tcp, &["--state-dir", state]);
    let elsewhere = stage.launch_with("elsewhere", &SMALL, &["--id", ID]);
    let mut migrate = stage.migrate(&elsewhere, destination.address());
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("runs here already"), "{}", migrate.failure("does not say why"));
    let status = elsewhere.status();
    assert!(status.owner.owns && status.guest == GuestState::Running, "{status:?}");
    assert_eq!(elsewhere.verdict_from_now(1).corrupt, 0);
}
