//! The figures, and how they are told.

use std::fmt;

use godwit_uffd::memory::MemoryKind;

use super::Work;

/// The rounds of one work, in nanoseconds per page. Those with the same index ran one right after
/// the other.
#[derive(Clone, Debug)]
pub struct Record {
    /// The work.
    pub work: Work,
    /// The memory.
    pub kind: MemoryKind,
    /// Pages per call.
    pub batch: u64,
    /// On the running kernel.
    pub kernel: Vec<f64>,
    /// On the model.
    pub model: Vec<f64>,
}

impl Record {
    fn medians(&self) -> (f64, f64) {
        (median(&self.kernel), median(&self.model))
    }
}

/// All figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Table(pub Vec<Record>);

impl Table {
    /// The record of a work, to be added to.
    pub fn record(&mut self, work: Work, kind: MemoryKind, batch: u64) -> &mut Record {
        let same =
            |record: &Record| (record.work, record.kind, record.batch) == (work, kind, batch);
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            let (kernel, model) = (Vec::new(), Vec::new());
            self.0.push(Record { work, kind, batch, kernel, model });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

impl fmt::Display for Table {
    /// As a table of Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| call | memory | pages per call | kernel | model | model/kernel |")?;
        writeln!(f, "|---|---|--:|--:|--:|--:|")?;
        for record in &self.0 {
            let (kernel, model) = record.medians();
            let (work, kind, batch) = (record.work.name(), record.kind.name(), record.batch);
            let ratio = model / kernel;
            writeln!(f, "| {work} | {kind} | {batch} | {kernel:.0} | {model:.0} | {ratio:.2} |")?;
        }
        let slower = self.0.iter().filter(|record| record.medians().1 > record.medians().0);
        write!(f, "\nthe model is slower in {} of {} rows", slower.count(), self.0.len())
    }
}

/// The middle one, or the mean of the two in the middle; of none, zero.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (half, 0) => f64::midpoint(sorted[half - 1], sorted[half]),
        (half, _) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).abs() < f64::EPSILON);
        assert!((median(&[5.0, 1.0, 100.0]) - 5.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 100.0, 2.0]) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_row_has_medians_and_their_ratio() {
        let mut table = Table::default();
        table.record(Work::Copy, MemoryKind::Memfd, 8).kernel.extend([400.0, 300.0, 900.0]);
        table.record(Work::Copy, MemoryKind::Memfd, 8).model.push(500.0);
        let text = table.to_string();
        assert!(text.contains("| COPY | memfd | 8 | 400 | 500 | 1.25 |"), "{text}");
        assert!(text.ends_with("the model is slower in 1 of 1 rows"), "{text}");
    }
}
