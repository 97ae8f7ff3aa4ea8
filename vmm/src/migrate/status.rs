//! What is true now, as the API tells it.

use std::sync::atomic::Ordering;

use godwit_migration::metrics::{self, Mark, Report, Stage, monotonic_us};
use godwit_migration::proto::{Ownership as Recorded, Phase, Record};
use godwit_migration::wire::Mode;

use super::{Guest, Host, HostEvent, Migration, Restore, Saving};
use crate::api::types::{
    ClassCount, Classes, Direction, FaultReport, FaultStages, GuestState, MemoryBacking,
    MemoryMethods, MigrationMode, MigrationStatus, Ownership, Pages, Problem, RestorePages,
    RestoreStatus, RestoreTimeline, StageLatency, Status, Timeline, VmInfo,
};
use crate::vm::GuestExit;

impl Host {
    pub(super) fn status(&self) -> Status {
        let state = self.state();
        let (guest, moved) = (state.guest.as_ref(), state.moved.as_ref());
        let elsewhere =
            moved.map_or(GuestState::None, |moved| GuestState::Moved { to: moved.to.clone() });
        let migration = state.migration.as_ref().map(|m| migration_status(m, guest));
        let ended = migration.as_ref().is_some_and(|migration| migration.state.is_final());
        let granted_away = state.migration.as_ref().is_some_and(|m| m.granted_to().is_some());
        let status = Status {
            id: guest.map(|guest| guest.id).or(moved.map(|moved| moved.id)),
            role: self.role,
            guest: guest.map_or(elsewhere, guest_state),
            owner: Ownership {
                owns: guest.is_some_and(|g| g.owned && g.exit.is_none()) && !granted_away,
                grant: guest.map_or(moved.map_or(0, |moved| moved.transfer), |g| g.transfer),
                record: None,
            },
            memory: guest.and_then(memory_methods),
            vm: guest.map(vm_info).or(moved.map(|moved| moved.vm)),
            migration,
            snapshot: state.saving.as_ref().map(Saving::status),
            restore: state.restore.as_ref().map(restore_status),
        };
        drop(state);
        if ended && !self.outcome_seen.swap(true, Ordering::AcqRel) {
            self.events.send(HostEvent::OutcomeSeen);
        }
        self.with_record(status)
    }

    fn with_record(&self, mut status: Status) -> Status {
        let record = status.id.and_then(|id| self.records.read(id).ok().flatten());
        status.owner.record = record.map(|record| record_line(&record));
        status
    }
}

fn record_line(record: &Record) -> String {
    let word = match record.ownership {
        Recorded::Expected => "expected",
        Recorded::Granted => "granted",
        Recorded::Owned => "owned",
        Recorded::Refused => "refused",
        Recorded::Reclaimed => "reclaimed",
        Recorded::Released => "released",
    };
    format!("{word} {} ({})", record.transfer, record.peer)
}

fn guest_state(guest: &Guest) -> GuestState {
    match &guest.exit {
        Some(GuestExit::PowerOff { code }) => GuestState::PoweredOff { code: *code },
        Some(GuestExit::Reset) => GuestState::PoweredOff { code: 0 },
        Some(GuestExit::Crash(reason)) => GuestState::Crashed { reason: reason.clone() },
        None if !guest.owned => GuestState::Created,
        None if guest.paused || guest.vm.is_paused() => GuestState::Paused,
        None => GuestState::Running,
    }
}

pub(super) fn vm_info(guest: &Guest) -> VmInfo {
    let config = guest.vm.config();
    VmInfo {
        cpus: config.cpus,
        memory_bytes: config.memory_bytes,
        backing: match config.backing.kind().is_file() {
            false => MemoryBacking::Anon,
            true => MemoryBacking::Memfd,
        },
        page_bytes: u32::try_from(config.backing.page_size().bytes()).expect("2 MiB at most"),
        tsc_khz: guest.tsc_khz,
    }
}

fn memory_methods(guest: &Guest) -> Option<MemoryMethods> {
    let kind = guest.vm.memory().kind();
    let words = guest.memory.as_ref()?.methods(kind).in_words();
    let [copy, zero, r#continue, poison, r#move, protect] = words.map(|(_, method)| method);
    let kind = kind.name().to_owned();
    Some(MemoryMethods { kind, copy, zero, r#continue, poison, r#move, protect })
}

fn migration_status(migration: &Migration, guest: Option<&Guest>) -> MigrationStatus {
    let report = migration.progress.report();
    let blocked = report.faults.as_ref().zip(guest).map(|(faults, guest)| blocktime(faults, guest));
    let at = |phase| report.reached_us.get(&phase).copied();
    let blackout_us = match (migration.direction, at(Phase::Paused), at(Phase::Running)) {
        (Direction::Outgoing, Some(paused), Some(running)) => Some(running - paused),
        _ => None,
    };
    let step = match migration.direction {
        Direction::Outgoing => "migrate",
        Direction::Incoming => "receive",
    };
    MigrationStatus {
        direction: migration.direction,
        state: report.state,
        mode: match report.mode {
            None | Some(Mode::Postcopy) => MigrationMode::Postcopy,
            Some(Mode::Precopy) => MigrationMode::Precopy,
            Some(Mode::Hybrid) => MigrationMode::Hybrid,
        },
        interruptions: report.interruptions,
        peer: report.peer.clone(),
        error: report.error.as_ref().map(|error| Problem::new(step, error, None)),
        timeline: timeline(&report),
        pages: pages(&report),
        classes: classes(&report),
        bytes: report.bytes,
        drain_bytes_per_s: drain_rate(&report),
        writes_held: report.writes_held,
        blocktime_others_us: blocked.as_ref().map(|(_, others)| *others),
        blocktime_us: blocked.map(|(vcpus, _)| vcpus),
        faults: report.faults.as_ref().map(fault_report),
        blackout_us,
        paused_tsc: migration.paused_tsc.clone(),
    }
}

fn restore_status(restore: &Restore) -> RestoreStatus {
    let report = restore.progress.report();
    let at = |mark| report.reached_us.get(&mark).map(|at| at.saturating_sub(restore.began_us));
    let pages = |pages: metrics::Pages| RestorePages {
        total: pages.total.into(),
        remaining: pages.remaining.into(),
        zero: pages.zero.into(),
        data: pages.data.into(),
        poisoned: pages.poisoned.into(),
        damaged: report.damaged.into(),
        requested: pages.urgent.into(),
    };
    RestoreStatus {
        snapshot: restore.snapshot,
        dir: restore.dir.clone(),
        mode: restore.mode,
        state: report.state,
        error: report.error.as_ref().map(|error| Problem::new("restore", error, None)),
        timeline: RestoreTimeline {
            began_monotonic_us: restore.began_us,
            opened_us: at(Mark::Opened),
            restored_us: at(Mark::Restored),
            recorded_us: at(Mark::Recorded),
            working_set_us: at(Mark::WorkingSet),
            resident_us: at(Mark::Resident),
            checked_us: at(Mark::Checked),
        },
        pages: report.pages.map(pages),
        faults: report.faults.as_ref().map(fault_report),
    }
}

fn timeline(report: &Report) -> Timeline {
    let began = report.reached_us.get(&Phase::Started).copied();
    let since = |phase| {
        let at = report.reached_us.get(&phase).copied()?;
        Some(at.saturating_sub(began.unwrap_or(at)))
    };
    Timeline {
        began_monotonic_us: began,
        prepared_us: since(Phase::Prepared),
        first_round_us: since(Phase::FirstRound),
        resumed_us: since(Phase::Resumed),
        paused_us: since(Phase::Paused),
        package_us: since(Phase::Package),
        loaded_us: since(Phase::Loaded),
        granted_us: since(Phase::Granted),
        first_instruction_us: since(Phase::Running),
        pushed_us: since(Phase::Pushed),
        last_page_us: since(Phase::LastPage),
        released_us: since(Phase::Released),
        ended_us: since(Phase::Failed).or(since(Phase::Lost)),
    }
}

fn pages(report: &Report) -> Pages {
    let pages = report.pages;
    Pages {
        bytes: pages.bytes,
        total: pages.total.into(),
        remaining: pages.remaining.into(),
        zero: pages.zero.into(),
        data: pages.data.into(),
        poisoned: pages.poisoned.into(),
        requested: pages.urgent.into(),
    }
}

fn classes(report: &Report) -> Classes {
    let count = |count: godwit_migration::metrics::ClassCount| ClassCount {
        pages: count.pages,
        bytes: count.bytes,
    };
    let classes = report.classes;
    Classes {
        zero: count(classes.zero),
        word: count(classes.word),
        lz4: count(classes.lz4),
        raw: count(classes.raw),
        poisoned: count(classes.poisoned),
        same: count(classes.same),
    }
}

/// How long each vCPU of `guest` was kept waiting, and all other threads together.
fn blocktime(faults: &metrics::FaultReport, guest: &Guest) -> (Vec<u64>, u64) {
    let of = |thread: Option<u32>| faults.blocked_us.get(&thread?).copied();
    let vcpus = guest.vm.vcpu_threads().into_iter().map(|thread| of(thread).unwrap_or(0));
    let vcpus: Vec<u64> = vcpus.collect();
    let others = faults.blocked_us.values().sum::<u64>() - vcpus.iter().sum::<u64>();
    (vcpus, others)
}

fn fault_report(faults: &metrics::FaultReport) -> FaultReport {
    let stage = |stage| {
        let latency = faults.stages.get(&stage).copied().unwrap_or_default();
        StageLatency { p50_us: us(latency.p50_us), p99_us: us(latency.p99_us) }
    };
    FaultReport {
        count: faults.count,
        outstanding: faults.outstanding,
        p50_us: us(faults.latency.p50_us),
        p90_us: us(faults.latency.p90_us),
        p99_us: us(faults.latency.p99_us),
        max_us: us(faults.latency.max_us),
        stages: FaultStages {
            queue: stage(Stage::Queue),
            wire: stage(Stage::Wire),
            service: stage(Stage::Service),
            install: stage(Stage::Install),
        },
    }
}

/// Microseconds of a latency fit, and the digits behind the point mean nothing to a user.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn us(us: f64) -> u64 {
    us.round() as u64
}

fn drain_rate(report: &Report) -> Option<u64> {
    let at = |phase| report.reached_us.get(&phase).copied();
    let begin = at(Phase::Running)?;
    let end = at(Phase::LastPage).or(at(Phase::Released)).unwrap_or_else(monotonic_us);
    let contents = report.drained * u64::from(report.pages.bytes);
    Some(contents * 1_000_000 / end.saturating_sub(begin).max(1))
}
