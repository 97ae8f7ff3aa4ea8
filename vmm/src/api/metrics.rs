//! The figures of a guest's latest migration, for Prometheus, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;

use super::types::{FaultReport, MigrationStatus, Status};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// All figures that `status` has.
pub(super) fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("godwit");
    let owner = gauges(&mut registry, "owner", "Whether this process may run the guest", None);
    set(&owner, &[], f64::from(u8::from(status.owner.owns)));
    if let Some(migration) = &status.migration {
        add_migration(registry.sub_registry_with_prefix("migration"), migration);
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

fn add_migration(registry: &mut Registry, migration: &MigrationStatus) {
    let labels = [
        ("direction", word(migration.direction)),
        ("mode", word(migration.mode)),
        ("state", word(migration.state)),
        ("peer", migration.peer.clone()),
    ];
    let info = gauges(registry, "info", "The migration and where it stands", None);
    info.get_or_create(&labels.to_vec()).set(1.0);

    let pages = &migration.pages;
    let family = gauges(registry, "pages", "Pages of the guest by what became of them", None);
    for (what, count) in [("total", pages.total), ("remaining", pages.remaining)] {
        set(&family, &[("what", what)], whole(count));
    }
    let requested = counters(registry, "requested_pages", "Pages that a fault asked for");
    count(&requested, &[], pages.requested);

    let pages = counters(registry, "pages_by_class", "Pages that travelled, by how they did");
    let bytes = counters(registry, "bytes_by_class", "Bytes of their frames");
    let classes = &migration.classes;
    for (class, counted) in [
        ("zero", classes.zero),
        ("word", classes.word),
        ("lz4", classes.lz4),
        ("raw", classes.raw),
        ("poisoned", classes.poisoned),
        ("same", classes.same),
    ] {
        count(&pages, &[("class", class)], counted.pages);
        count(&bytes, &[("class", class)], counted.bytes);
    }
    let bytes = counters(registry, "bytes", "Bytes of page contents and heads");
    count(&bytes, &[], migration.bytes);
    let lost = counters(registry, "interruptions", "Times that the peer was lost");
    count(&lost, &[], migration.interruptions.into());
    let held = counters(registry, "writes_held", "Writes that waited until they were allowed");
    count(&held, &[], migration.writes_held.writes);
    if let Some(blackout) = migration.blackout_us {
        let family = seconds(registry, "blackout", "Time in which no vCPU ran anywhere");
        set(&family, &[], whole(blackout) / 1e6);
    }
    if let Some(faults) = &migration.faults {
        add_faults(registry, faults);
    }
    let blocked =
        seconds(registry, "blocktime", "Time that a vCPU has waited for pages, or none of them");
    for (vcpu, time) in migration.blocktime_us.iter().flatten().enumerate() {
        set(&blocked, &[("vcpu", &vcpu.to_string())], whole(*time) / 1e6);
    }
    if let Some(time) = migration.blocktime_others_us {
        set(&blocked, &[("vcpu", "none")], whole(time) / 1e6);
    }
}

fn add_faults(registry: &mut Registry, faults: &FaultReport) {
    let served = counters(registry, "faults", "Faults that were served");
    count(&served, &[], faults.count);
    let waiting = gauges(registry, "faults_outstanding", "Faults that wait", None);
    set(&waiting, &[], whole(faults.outstanding));
    let latency = seconds(registry, "fault_latency", "Latency of faults, by stage and quantile");
    let stages = &faults.stages;
    for (stage, p50, p99) in [
        ("all", faults.p50_us, faults.p99_us),
        ("queue", stages.queue.p50_us, stages.queue.p99_us),
        ("wire", stages.wire.p50_us, stages.wire.p99_us),
        ("service", stages.service.p50_us, stages.service.p99_us),
        ("install", stages.install.p50_us, stages.install.p99_us),
    ] {
        set(&latency, &[("stage", stage), ("quantile", "0.5")], whole(p50) / 1e6);
        set(&latency, &[("stage", stage), ("quantile", "0.99")], whole(p99) / 1e6);
    }
}

fn gauges(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>) -> Gauges {
    let family = Gauges::default();
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
        None => registry.register(name, help, family.clone()),
    }
    family
}

fn seconds(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    gauges(registry, name, help, Some(Unit::Seconds))
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

/// A value as the API spells it.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels.iter().map(|&(name, value)| (name, value.to_owned())).collect()
}

fn set(family: &Gauges, labels: &[(&'static str, &str)], value: f64) {
    family.get_or_create(&owned(labels)).set(value);
}

fn count(family: &Counters, labels: &[(&'static str, &str)], value: u64) {
    family.get_or_create(&owned(labels)).inc_by(value);
}

#[expect(clippy::cast_precision_loss, reason = "figures for people, far below 2^53")]
fn whole(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::super::tests::guest::full_status;
    use super::*;

    #[test]
    fn every_figure_of_a_status_is_there() {
        let text = render(&full_status());
        for line in [
            "godwit_owner{} 1.0",
            "godwit_migration_faults_total{} 40",
            "godwit_migration_faults_outstanding{} 2.0",
            "godwit_migration_blocktime_seconds{vcpu=\"1\"} 0.0008",
            "godwit_migration_blocktime_seconds{vcpu=\"none\"} 0.0009",
            "godwit_migration_fault_latency_seconds{stage=\"wire\",quantile=\"0.5\"} 0.00002",
            "godwit_migration_interruptions_total{} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("state=\"") && text.ends_with("# EOF\n"), "{text}");
    }
}
