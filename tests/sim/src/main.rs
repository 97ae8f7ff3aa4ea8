//! Runs the simulator: `SEEDS=1000 SEED=1 VERBOSE=1 godwit-sim`.

use std::process::ExitCode;
use std::str::FromStr;

/// Violations that are shown with all that led to them.
const SHOWN_MAX: usize = 3;
/// Lines of a trace that are shown, unless all are wanted.
const LINES_MAX: usize = 120;

fn main() -> ExitCode {
    let (seeds, first) = (variable("SEEDS", 1000), variable("SEED", 1));
    let verbose = variable("VERBOSE", 0) != 0;
    // What a run says when it panics is in its violation.
    std::panic::set_hook(Box::new(|_| {}));
    let violations = godwit_sim::run_all(first, seeds, None);
    if verbose && violations.is_empty() {
        show(first, usize::MAX);
    }
    for (n, violation) in violations.iter().enumerate() {
        println!("seed {}: {}", violation.seed, violation.what);
        if n < SHOWN_MAX {
            show(violation.seed, if verbose { usize::MAX } else { LINES_MAX });
            println!("again: make sim SEED={} SEEDS=1 VERBOSE=1", violation.seed);
        }
    }
    println!("sim: {seeds} seeds, {} violations", violations.len());
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(seed: u64, lines: usize) {
    let mut trace = Vec::new();
    let _ = godwit_sim::run(seed, None, Some(&mut trace));
    for line in &trace[trace.len().saturating_sub(lines)..] {
        println!("  {line}");
    }
}

fn variable<T: FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => otherwise,
    }
}
