//! The figures of several rounds as one: the middle, and in brackets the least and the most.

use std::fmt;

use serde_json::Value;

/// The values of one figure, each with its round.
pub type Rounds = Vec<(u32, f64)>;

/// The middle and the ends of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// The spread as it is printed, or a dash if there are no values.
    pub fn text(values: impl Iterator<Item = f64>) -> String {
        Spread::of(values).map_or("-".to_owned(), |spread| spread.to_string())
    }

    /// `None` if there are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: low.midpoint(high), least, most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, least, most } = self;
        let digits = if *most < 20.0 { 2 } else { 0 };
        f.write_str(&format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"))
    }
}

/// One figure of one measurement in the unit of a table, if it was made.
pub fn figure(figures: &Value, pointer: &str, unit: f64) -> Option<f64> {
    Some(figures.pointer(pointer)?.as_f64()? / unit)
}

/// The ratios of figures that were measured in the same round.
pub fn ratios(ours: &[(u32, f64)], others: &[(u32, f64)]) -> impl Iterator<Item = f64> {
    ours.iter().filter_map(|(round, ours)| {
        let (_, other) = others.iter().find(|(other, value)| other == round && *value > 0.0)?;
        Some(ours / other)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(Spread::of([].into_iter()), None);
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter()).unwrap();
        assert_eq!(spread, Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::text([4.0, 1.0].into_iter()), "2.50 (1.00-4.00)");
        assert_eq!(Spread::text([100.0].into_iter()), "100 (100-100)");
    }

    #[test]
    fn only_rounds_with_both_figures_have_a_ratio() {
        let (ours, others) = ([(1, 6.0), (2, 8.0), (3, 9.0)], [(1, 3.0), (3, 0.0), (4, 1.0)]);
        assert_eq!(ratios(&ours, &others).collect::<Vec<_>>(), [2.0]);
    }

    #[test]
    fn a_measurement_that_failed_has_no_figures() {
        assert_eq!(figure(&json!({ "error": "failed" }), "/gap_us", 1000.0), None);
        assert_eq!(figure(&json!({ "gap_us": 500 }), "/gap_us", 1000.0), Some(0.5));
    }
}
