//! The figures of several rounds as tables in Markdown.

use std::fmt;

use serde_json::Value;

use crate::engine::Part;
use crate::engine::cases::{CASES, Case, Subject};
use crate::spread::{Rounds, Spread, figure, ratios};

/// The measurements of all rounds.
#[derive(Default)]
pub struct Tables {
    measured: Vec<Measured>,
}

struct Measured {
    round: u32,
    name: &'static str,
    figures: Value,
}

/// A column of a table: its title, and a figure in some unit.
type Column = (&'static str, &'static str, f64);

impl Tables {
    /// Adds the measurement of a case.
    pub fn add(&mut self, round: u32, name: &'static str, figures: Value) {
        self.measured.push(Measured { round, name, figures });
    }

    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Measured> {
        self.measured.iter().filter(move |measured| measured.name == name)
    }

    /// The values of one figure of a case, each with its round.
    fn values(&self, name: &str, pointer: &str, unit: f64) -> Rounds {
        let figures = |row: &Measured| figure(&row.figures, pointer, unit);
        self.of(name).filter_map(|row| Some((row.round, figures(row)?))).collect()
    }

    fn cell(&self, name: &str, pointer: &str, unit: f64) -> String {
        Spread::text(self.values(name, pointer, unit).into_iter().map(|(_, value)| value))
    }

    /// How often a case ended in which way.
    fn outcomes(&self, name: &str) -> String {
        let outcome = |row: &'_ Measured| row.figures["outcome"].as_str().map(str::to_owned);
        let mut outcomes: Vec<String> = self.of(name).filter_map(outcome).collect();
        outcomes.sort();
        outcomes.dedup();
        outcomes.join(", ")
    }

    /// The cases of a part that were measured.
    fn cases(&self, part: Part) -> impl Iterator<Item = &'static Case> {
        CASES.iter().filter(move |case| case.part == part && self.of(case.name).next().is_some())
    }

    fn write_gate(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: [Column; 5] = [
            ("p50", "/faults/p50_us", 1.0),
            ("p90", "/faults/p90_us", 1.0),
            ("p99", P99, 1.0),
            ("count", "/faults/count", 1.0),
            ("p99 from reading to waking, by Godwit", "/served_p99_us", 1.0),
        ];
        let titles = columns.map(|(title, _, _)| title);
        let ratio = "p99 by p99 of idle (Godwit: at most 2)";
        head(f, "faults as the guest sees them, in us", titles.into_iter().chain([ratio]))?;
        let mut idle = Rounds::new();
        for case in self.cases(Part::Gate) {
            let p99 = self.values(case.name, P99, 1.0);
            let cells = columns.map(|(_, pointer, unit)| self.cell(case.name, pointer, unit));
            // The idle case comes before those that are compared with it.
            let last = if case.name.ends_with("idle") {
                idle = p99;
                "1".to_owned()
            } else {
                Spread::text(ratios(&p99, &idle))
            };
            row(f, case.label, cells.iter().chain([&last]))?;
        }
        Ok(())
    }

    /// The same case without the link and over it in one row.
    fn write_drain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["loopback, GB/s", "over 1 Gbit/s, GB/s", "sent by memory"];
        head(f, "drain of a halted guest: data, compression", titles.into_iter())?;
        let mut labels: Vec<&str> = self.cases(Part::Drain).map(|case| case.label).collect();
        let mut seen = Vec::new();
        labels.retain(|label| {
            !seen.contains(label) && {
                seen.push(*label);
                true
            }
        });
        for label in labels {
            let cell = |link: bool, values: &dyn Fn(&Case) -> Rounds| {
                let mut cases = self.cases(Part::Drain);
                let case = cases.find(|case| case.label == label && has_link(case) == link);
                let values = case.map(values).unwrap_or_default();
                Spread::text(values.into_iter().map(|(_, value)| value))
            };
            let rate = |case: &Case| self.values(case.name, "/drained_bytes_per_s", 1e9);
            let packed = |case: &Case| self.packed(case.name);
            row(f, label, [cell(false, &rate), cell(true, &rate), cell(false, &packed)].iter())?;
        }
        Ok(())
    }

    /// Bytes on the link by bytes of the pages that travelled in them.
    fn packed(&self, name: &str) -> Rounds {
        let share = |row: &Measured| {
            let classes = row.figures.get("classes")?.as_object()?;
            let sum = |key| classes.values().filter_map(|class| class[key].as_f64()).sum::<f64>();
            Some(sum("bytes") / (sum("pages") * 4096.0))
        };
        self.of(name).filter_map(|row| Some((row.round, share(row)?))).collect()
    }

    fn write_modes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: [Column; 5] = [
            ("total s", "/total_us", 1e6),
            ("downtime ms", "/blackout_us", 1e3),
            ("guest's gap ms", "/gap_us", 1e3),
            ("blocktime of a vCPU s", "/blocktime_us", 1e6),
            ("sent GB", "/link_bytes", 1e9),
        ];
        let titles = columns.map(|(title, _, _)| title);
        head(f, "guest that dirties faster than 1 Gbit/s", ["ended"].into_iter().chain(titles))?;
        for case in self.cases(Part::Modes) {
            let outcomes = self.outcomes(case.name);
            let cells = columns.map(|(_, pointer, unit)| self.cell(case.name, pointer, unit));
            row(f, case.label, [&outcomes].into_iter().chain(&cells))?;
        }
        Ok(())
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [Part::Gate, Part::Drain, Part::Modes] {
            if self.cases(part).next().is_none() {
                continue;
            }
            match part {
                Part::Gate => self.write_gate(f)?,
                Part::Drain => self.write_drain(f)?,
                Part::Modes => self.write_modes(f)?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn has_link(case: &Case) -> bool {
    matches!(case.subject, Subject::Move(wanted) if wanted.has_link())
}

fn head<'a>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    columns: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    let columns: Vec<&str> = columns.collect();
    writeln!(f, "| {title} | {} |", columns.join(" | "))?;
    writeln!(f, "|---|{}", "---|".repeat(columns.len()))
}

fn row<'a>(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    cells: impl Iterator<Item = &'a String>,
) -> fmt::Result {
    let cells: Vec<&str> = cells.map(String::as_str).collect();
    writeln!(f, "| {label} | {} |", cells.join(" | "))
}

const P99: &str = "/faults/p99_us";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(measured: &[(u32, &'static str, Value)]) -> String {
        let mut tables = Tables::default();
        for (round, name, figures) in measured {
            tables.add(*round, name, figures.clone());
        }
        tables.to_string()
    }

    fn faults(p99: f64) -> Value {
        json!({ "faults": { "p50_us": 1.0, "p90_us": 2.0, "p99_us": p99, "count": 9 } })
    }

    #[test]
    fn faults_are_compared_with_those_of_the_idle_link_of_their_kind() {
        let text = text(&[
            (1, "gate-idle", faults(100.0)),
            (1, "gate-full-1", faults(150.0)),
            (1, "gate-link-idle", faults(200.0)),
            (1, "gate-link-full-1", faults(100.0)),
            (2, "gate-idle", faults(100.0)),
            (2, "gate-full-1", faults(250.0)),
        ]);
        let row = |label: &str| text.lines().find(|line| line.contains(label)).unwrap();
        assert!(row("loopback, 1 bulk").ends_with("| 2.00 (1.50-2.50) |"), "{text}");
        assert!(row("200 us, 1 bulk").ends_with("| 0.50 (0.50-0.50) |"), "{text}");
        assert!(!text.contains("bare loop") && !text.contains("drain"), "{text}");
        let bars: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(bars[..6], [8; 6], "{text}");
    }

    #[test]
    fn a_drain_has_one_row_with_and_without_the_link() {
        let figures = |rate: f64, bytes: u64| {
            let raw = json!({ "pages": 0, "bytes": 0 });
            let classes = json!({ "lz4": { "pages": 10, "bytes": bytes }, "raw": raw });
            json!({ "drained_bytes_per_s": rate, "classes": classes })
        };
        let text = text(&[
            (1, "drain-text-lz4", figures(3e8, 20_480)),
            (1, "drain-link-text-lz4", figures(2e8, 1)),
            (1, "drain-8", json!({ "error": "failed" })),
        ]);
        let expected = "| text, lz4 | 0.30 (0.30-0.30) | 0.20 (0.20-0.20) | 0.50 (0.50-0.50) |";
        assert!(text.lines().any(|line| line == expected), "{text}");
        assert!(text.contains("8 connections | - | - | - |"), "{text}");
    }

    #[test]
    fn what_did_not_move_has_a_time_and_no_downtime() {
        let text = text(&[
            (1, "modes-all-cancel", json!({ "outcome": "cancelled", "total_us": 5e6 })),
            (2, "modes-all-cancel", json!({ "outcome": "completed", "total_us": 7e6 })),
        ]);
        assert!(text.contains("| cancelled, completed | 6.00 (5.00-7.00) | - | - |"), "{text}");
    }
}
