//! The measurements of some rounds, one after the other, each kept as a line of JSON.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Error;

/// Where measurements are written to, and how many of them failed.
pub struct Recorder {
    lines: File,
    rounds: u32,
    failed: u32,
}

/// One measurement.
#[derive(Serialize)]
struct Record<'a> {
    round: u32,
    subject: &'a str,
    #[serde(flatten)]
    figures: &'a Value,
}

impl Recorder {
    /// Appends to the file at `path`; there will be so many `rounds`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it cannot be opened.
    pub fn open(path: &Path, rounds: u32) -> Result<Recorder, Error> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let lines = file.map_err(Error::system("opening the file for the JSON lines"))?;
        Ok(Recorder { lines, rounds, failed: 0 })
    }

    /// Makes one measurement and returns its figures. One that fails is told, and has none.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it cannot be written.
    pub fn measure<F: Serialize>(
        &mut self,
        round: u32,
        subject: &str,
        measure: impl FnOnce() -> Result<F, Error>,
    ) -> Result<Value, Error> {
        eprintln!("round {round} of {}: {subject}", self.rounds);
        let figures = measure().and_then(value).unwrap_or_else(|error| {
            self.failed += 1;
            eprintln!("godwit-bench: {}", error.chain());
            json!({ "error": error.chain() })
        });
        let record = Record { round, subject, figures: &figures };
        let line = serde_json::to_string(&record).map_err(Error::system("writing JSON"))?;
        writeln!(self.lines, "{line}").map_err(Error::system("writing the JSON lines"))?;
        Ok(figures)
    }

    /// All are made.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if some failed.
    pub fn finish(self) -> Result<(), Error> {
        match self.failed {
            0 => Ok(()),
            failed => Err(Error::Incomplete { failed }),
        }
    }
}

/// Figures as JSON.
///
/// # Errors
///
/// [`Error::System`] if they are not to be written so.
pub fn value(figures: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(figures).map_err(Error::system("writing JSON"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn each_measurement_is_a_line_and_a_failure_ends_in_an_error() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lines");
        let mut recorder = Recorder::open(&path, 2).unwrap();
        let figures = recorder.measure(1, "one", || Ok(json!({ "total_us": 5 }))).unwrap();
        assert_eq!(figures["total_us"], 5);
        let absent = || Err::<Value, _>(Error::Absent { program: "x".to_owned() });
        recorder.measure(2, "two", absent).unwrap();
        assert!(matches!(recorder.finish(), Err(Error::Incomplete { failed: 1 })));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0], json!({ "round": 1, "subject": "one", "total_us": 5 }));
        assert_eq!(lines[1]["error"], "x is not installed");
    }
}
