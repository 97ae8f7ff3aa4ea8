//! The figures of several rounds, side by side: medians, and in brackets the least and the most.

use std::fmt;

use serde_json::Value;

use crate::rounds::Subject;
use crate::spread::{Rounds, Spread, figure, ratios};

struct Measured {
    round: u32,
    subject: Subject,
    figures: Value,
}

/// The measurements of all rounds.
pub struct Table {
    qemu: Option<String>,
    measured: Vec<Measured>,
}

impl Table {
    /// An empty table; `qemu` is the version of QEMU if there is one.
    pub fn new(qemu: Option<String>) -> Table {
        Table { qemu, measured: Vec::new() }
    }

    /// The subject is to be measured.
    pub fn expects(&self, subject: Subject) -> bool {
        self.qemu.is_some() || !matches!(subject, Subject::Qemu | Subject::QemuPreempt)
    }

    /// Adds a measurement.
    pub fn add(&mut self, round: u32, subject: Subject, figures: Value) {
        self.measured.push(Measured { round, subject, figures });
    }

    /// The values of one figure, each with its round, in the unit of the table.
    fn values(&self, column: Column) -> Rounds {
        let rows = self.measured.iter().filter(|measured| measured.subject == column.subject);
        let figures = |row: &Measured| figure(&row.figures, column.pointer, column.unit);
        rows.filter_map(|row| Some((row.round, figures(row)?))).collect()
    }

    fn cell(&self, subject: Subject, pointer: &'static str, unit: f64) -> String {
        let values = self.values(Column { subject, pointer, unit });
        Spread::text(values.into_iter().map(|(_, value)| value))
    }

    fn write_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = "faults as the guest sees them";
        writeln!(f, "{title:32}{:>20}{:>20}{:>22}{:>18}", "p50 us", "p90 us", "p99 us", "count")?;
        for (subject, label) in FAULT_ROWS {
            if self.expects(subject) {
                let [p50, p90, p99, count] =
                    [P50, P90, P99, COUNT].map(|pointer| self.cell(subject, pointer, 1.0));
                writeln!(f, "  {label:30}{p50:>20}{p90:>20}{p99:>22}{count:>18}")?;
            }
        }
        Ok(())
    }

    fn write_moves(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = "moves of the same guest";
        writeln!(f, "\n{title:32}{:>20}{:>22}{:>20}", "gap ms", "next second ms", "total ms")?;
        for (subject, label) in FAULT_ROWS.into_iter().skip(2) {
            if self.expects(subject) {
                let [gap, second, total] = ["/gap_us", "/gap_first_second_us", "/total_us"]
                    .map(|pointer| self.cell(subject, pointer, 1000.0));
                writeln!(f, "  {label:30}{gap:>20}{second:>22}{total:>20}")?;
            }
        }
        Ok(())
    }

    fn write_throughput(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = "throughput, GB/s";
        writeln!(f, "\n{title:32}{:>20}{:>20}", "quiet", "vCPUs spinning")?;
        for (pointer, label) in [
            ("/memory_copy_bytes_per_s", "memory copy"),
            ("/stream_bytes_per_s", "loopback TCP"),
            ("/receive_bytes_per_s", "bare receive loop"),
        ] {
            let [quiet, busy] = [Subject::FloorReceive, Subject::FloorReceiveBusy]
                .map(|subject| self.cell(subject, pointer, 1e9));
            writeln!(f, "  {label:30}{quiet:>20}{busy:>20}")?;
        }
        let [quiet, busy] = [Subject::GodwitHalt, Subject::GodwitBusy]
            .map(|subject| self.cell(subject, "/bytes_per_s", 1e9));
        writeln!(f, "  {:30}{quiet:>20}{busy:>20}", "Godwit's drain")
    }

    fn write_ratios(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p50 = |subject| Column { subject, pointer: P50, unit: 1.0 };
        let rate = |subject, pointer| Column { subject, pointer, unit: 1.0 };
        let (drain, receive) = ("/bytes_per_s", "/receive_bytes_per_s");
        let rows = [
            (
                "median fault by the floor's under the same load (at most 1.3)",
                p50(Subject::Godwit),
                p50(Subject::FloorFaultBulk),
            ),
            (
                "median fault by QEMU's with preempt (below 1 in every round)",
                p50(Subject::Godwit),
                p50(Subject::QemuPreempt),
            ),
            (
                "drain by the bare receive loop, quiet (at least 0.8)",
                rate(Subject::GodwitHalt, drain),
                rate(Subject::FloorReceive, receive),
            ),
            (
                "drain by the bare receive loop, vCPUs spinning (at least 0.8)",
                rate(Subject::GodwitBusy, drain),
                rate(Subject::FloorReceiveBusy, receive),
            ),
        ];
        writeln!(f, "\n{:64}{:>20}", "Godwit, round by round", "ratio")?;
        for (label, ours, other) in rows {
            let cell = Spread::text(ratios(&self.values(ours), &self.values(other)));
            writeln!(f, "  {label:62}{cell:>20}")?;
        }
        let gap = self.cell(Subject::Godwit, "/gap_us", 1000.0);
        writeln!(f, "  {:62}{gap:>20}", "largest gap at the switchover in ms (below 10)")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_faults(f)?;
        self.write_moves(f)?;
        self.write_throughput(f)?;
        self.write_ratios(f)?;
        let qemu = self.qemu.as_deref().unwrap_or("QEMU is absent");
        writeln!(f, "\nmedian (least-most); {qemu}")
    }
}

/// One figure of one subject, divided by `unit`.
#[derive(Clone, Copy)]
struct Column {
    subject: Subject,
    pointer: &'static str,
    unit: f64,
}

const P50: &str = "/faults/p50_us";
const P90: &str = "/faults/p90_us";
const P99: &str = "/faults/p99_us";
const COUNT: &str = "/faults/count";

/// The rows that have faults; those behind the first two are moves.
const FAULT_ROWS: [(Subject, &str); 5] = [
    (Subject::FloorFault, "floor, nothing beside"),
    (Subject::FloorFaultBulk, "floor, under the same load"),
    (Subject::Godwit, "Godwit"),
    (Subject::Qemu, "QEMU"),
    (Subject::QemuPreempt, "QEMU, postcopy-preempt"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut table = Table::new(None);
        table.add(1, Subject::FloorFaultBulk, json!({ "error": "failed" }));
        table.add(1, Subject::Godwit, json!({ "faults": { "p50_us": 200.0 } }));
        for (round, ours, floor) in [(2, 130.0, 100.0), (3, 300.0, 200.0)] {
            table.add(round, Subject::Godwit, json!({ "faults": { "p50_us": ours } }));
            table.add(round, Subject::FloorFaultBulk, json!({ "faults": { "p50_us": floor } }));
        }
        let text = table.to_string();
        assert!(text.contains("1.40 (1.30-1.50)"), "{text}");
        assert!(text.contains("200 (130-300)"), "{text}");
        assert!(text.contains("QEMU is absent"), "{text}");
        assert!(!text.contains("postcopy-preempt"), "{text}");
    }
}
