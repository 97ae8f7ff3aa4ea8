//! At each phase of a migration the link breaks, or one of the two processes is killed: the table
//! in the README, row by row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_migration::wire::Kind;
use godwit_tests::proxy::{Fate, Passing, Proxy, Side};
use godwit_tests::stage::{Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};

use crate::GODWIT;
use crate::moving::{fails, fails_with, is_refused, is_whole, runs_on};

/// What both sides know when a phase ends: a row of the README's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// The guest is the source's.
    Before,
    /// The grant is recorded, and has not arrived.
    Granted,
    /// The destination runs the guest, and pages are missing.
    Owned,
    /// All pages are there, and the source does not know.
    Whole,
    /// The source knows.
    Released,
}

/// A phase of a migration by rounds and post-copy, and the frame at which it ends: this kind and
/// number from this side, after the guest has changed hands if `drains`, and after a link that
/// broke then if `resumes`.
#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    from: Side,
    kind: Kind,
    number: usize,
    drains: bool,
    resumes: bool,
    stand: Stand,
}

const fn phase(name: &'static str, from: Side, kind: Kind, stand: Stand) -> Phase {
    Phase { name, from, kind, number: 1, drains: false, resumes: false, stand }
}

/// In their order.
const PHASES: [Phase; 16] = [
    phase("handshake", Side::Source, Kind::Offer, Stand::Before),
    phase("accept", Side::Destination, Kind::Accept, Stand::Before),
    phase("round announced", Side::Source, Kind::Round, Stand::Before),
    phase("round begins", Side::Destination, Kind::RoundReady, Stand::Before),
    Phase { number: 40, ..phase("in a round", Side::Source, Kind::Pages, Stand::Before) },
    phase("round ends", Side::Destination, Kind::RoundDone, Stand::Before),
    phase("guest stopped", Side::Source, Kind::Package, Stand::Before),
    phase("LOADED", Side::Destination, Kind::Loaded, Stand::Before),
    phase("GRANTED", Side::Source, Kind::Grant, Stand::Granted),
    phase("OWNED", Side::Destination, Kind::Owned, Stand::Owned),
    Phase { drains: true, ..phase("drain", Side::Source, Kind::Pages, Stand::Owned) },
    Phase { drains: true, ..phase("end of the push", Side::Source, Kind::PushEnd, Stand::Owned) },
    Phase { resumes: true, ..phase("arrived", Side::Destination, Kind::Received, Stand::Owned) },
    Phase { resumes: true, ..phase("resumed", Side::Destination, Kind::Resumed, Stand::Owned) },
    phase("complete", Side::Destination, Kind::Complete, Stand::Whole),
    phase("released", Side::Source, Kind::Released, Stand::Released),
];

/// A migration that has come to the end of a phase.
struct Reached {
    source: Node,
    destination: Node,
    link: Proxy,
    migrate: Process,
}

/// Moves the guest of `source` until the link does `then` with the last frame of `phase`; what
/// follows has the fate `behind`.
fn reach(stage: &Stage, nodes: [Node; 2], phase: Phase, [then, behind]: [Fate; 2]) -> Reached {
    let [source, destination] = nodes;
    let reached = Arc::new(AtomicBool::new(false));
    let rule = {
        let (reached, mut owned, mut left) = (Arc::clone(&reached), false, phase.number);
        move |passing: &mut Passing<'_>| {
            if reached.load(Ordering::SeqCst) {
                return behind;
            }
            let counts = (owned || !phase.drains)
                && (passing.from, passing.kind) == (phase.from, phase.kind);
            let changed_hands = !owned && passing.kind == Kind::Owned;
            owned |= changed_hands;
            if phase.resumes && changed_hands {
                return Fate::Cut;
            }
            left -= usize::from(counts);
            reached.store(left == 0, Ordering::SeqCst);
            if left == 0 { then } else { Fate::Forward }
        }
    };
    let link = Proxy::start(destination.address(), rule);
    let options = ["--mode", "hybrid", "--connections", "2", "--compression", "none"];
    let migrate = stage.migrate_with(&source, link.address(), &options);
    until(phase.name, || {
        let ends = phase.stand == Stand::Before || source.lives();
        assert!(ends, "{}", migrate.failure("did not come that far"));
        reached.load(Ordering::SeqCst).then_some(())
    });
    Reached { source, destination, link, migrate }
}

/// The receiver listens again, and no guest ran there.
fn took_nothing(destination: &Node, again: usize) {
    let mut log = destination.process.lines(Stream::Stderr);
    (0..again).for_each(|_| {
        log.wait("that it listens again", |line| line.contains("listening again"));
    });
    destination.until("no guest", |status| status.guest == GuestState::None);
    assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there");
}

#[test]
fn a_link_that_breaks_at_any_phase_loses_nothing() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    let mut destination = stage.receive("destination", Transport::Unix);
    let mut failed = 0;
    for phase in PHASES {
        let mut all = reach(&stage, [source, destination], phase, [Fate::Cut, Fate::Forward]);
        if matches!(phase.stand, Stand::Before | Stand::Granted) {
            fails(all.migrate);
            runs_on(&all.source);
            failed += 1;
            took_nothing(&all.destination, failed);
            (source, destination) = (all.source, all.destination);
            continue;
        }
        all.migrate.wait_success();
        is_whole(&all.destination, &all.source);
        let told = all.destination.migration().interruptions;
        assert_eq!(told > 0, phase.stand == Stand::Owned, "{}: {told}", phase.name);
        all.source.process.wait_success();
        drop(all);
        source = stage.launch_filled("source", &SMALL);
        destination = stage.receive("destination", Transport::Unix);
        failed = 0;
    }
}

/// Who runs the guest is gone, and the guest with it, until it has changed hands; then it has what
/// has come.
#[test]
fn a_source_that_is_killed_at_any_phase_takes_along_what_it_alone_had() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut destination = stage.receive("destination", Transport::Unix);
    for (number, phase) in PHASES.into_iter().enumerate() {
        let name = format!("source {number}");
        let source = stage.launch_filled(&name, &SMALL);
        let id = source.status().id.expect("a guest").to_string();
        let mut all = reach(&stage, [source, destination], phase, [Fate::Hold; 2]);
        all.source.process.kill();
        match phase.stand {
            Stand::Before | Stand::Granted => {
                all.migrate.wait_failure();
                took_nothing(&all.destination, number + 1);
            }
            Stand::Owned => {
                all.migrate.wait_failure();
                has_what_came(&stage, &mut all.destination, phase);
            }
            // The command may have heard that it was complete.
            Stand::Whole | Stand::Released => is_whole(&all.destination, &all.source),
        }
        if phase.stand == Stand::Granted {
            // Its host does not know whether the grant has arrived.
            let state = stage.folder().path(&format!("{name}.state"));
            let state = state.to_str().expect("a plain path");
            let words = ["run", "--memory", "64M", "--id", &id, "--state-dir", state];
            fails_with(stage.command("run again", &words), "--override-grant");
        }
        destination = match phase.stand {
            Stand::Before => all.destination,
            _ => {
                drop(all);
                stage.receive("destination", Transport::Unix)
            }
        };
    }
}

/// The guest runs on with the pages that came, and is under control.
fn has_what_came(stage: &Stage, destination: &mut Node, phase: Phase) {
    let status = destination.until_migration(MigrationState::PostcopyPaused);
    assert!(status.owner.owns, "{}: {status:?}", phase.name);
    assert!(status.migration.expect("a migration").pages.remaining > 0, "{}", phase.name);
    stage.control("shutdown", destination, &[]).wait_success();
    destination.process.wait();
    let console = destination.process.text(Stream::Stdout);
    assert!(!console.contains("corrupt vcpu"), "it ran on without its pages: {console}");
}

/// Its records are what is left of it: they prove that the guest never ran there, or that it did
/// and is lost.
#[test]
fn a_destination_that_is_killed_at_any_phase_proves_that_it_had_no_guest_or_has_lost_it() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &SMALL);
    for phase in PHASES {
        let destination = stage.receive("destination", Transport::Unix);
        let mut all = reach(&stage, [source, destination], phase, [Fate::Hold; 2]);
        all.destination.process.kill();
        all.link.decide(|_| Fate::Forward);
        let destination = stage.restart("destination", all.destination);
        match phase.stand {
            Stand::Before | Stand::Granted => {
                fails(all.migrate);
                runs_on(&all.source);
            }
            Stand::Owned | Stand::Whole => {
                let status = all.source.until_migration(MigrationState::Failed);
                assert!(status.lost() && status.guest == GuestState::Paused, "{status:?}");
                fails_with(all.migrate, "the guest is lost");
                is_refused(&stage, "resume", &all.source, "granted");
            }
            // It ends with its host.
            Stand::Released => {
                all.migrate.wait_success();
                all.source.process.wait_success();
            }
        }
        assert_eq!(destination.status().guest, GuestState::None, "{}", phase.name);
        assert_eq!(destination.process.text(Stream::Stdout), "", "no guest ran there again");
        source = match phase.stand {
            Stand::Before | Stand::Granted => all.source,
            _ => stage.launch_filled(&format!("source after {}", phase.name), &SMALL),
        };
    }
}
