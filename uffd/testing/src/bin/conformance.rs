//! Runs every row of the conformance suite on every backend and prints a table.
//!
//! Words on the command line are numbers of rows; without any, all rows run.

use std::process::ExitCode;

use godwit_uffd::model::Profile;
use godwit_uffd_testing::judge::{Verdict, judge, keep_places};
use godwit_uffd_testing::kernel::KernelWorld;
use godwit_uffd_testing::model::ModelWorld;
use godwit_uffd_testing::rows::{ROWS, Row};

/// How many rows a backend can run, and how many hold.
#[derive(Default)]
struct Count {
    passed: u32,
    runnable: u32,
}

impl Count {
    fn add(&mut self, verdict: &Verdict) {
        self.passed += u32::from(*verdict == Verdict::Passed);
        self.runnable += u32::from(!matches!(verdict, Verdict::NotRunnable(_)));
    }
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |row: &&Row| wanted.is_empty() || wanted.contains(&row.number().to_string());
    keep_places();
    let mut kernel = Count::default();
    let mut model = Count::default();
    let mut rows = 0;
    line("row", "claim", ["kernel", "model"]);
    for row in ROWS.iter().filter(is_wanted) {
        let verdicts = [judge(row, KernelWorld::new), on_the_model(row)];
        line(&row.number().to_string(), &row.claim(), verdicts.each_ref().map(word));
        for (backend, verdict) in ["kernel", "model"].into_iter().zip(&verdicts) {
            if let Verdict::Failed(reason) | Verdict::NotRunnable(reason) = verdict {
                println!("     {backend}: {}", reason.replace('\n', "\n     "));
            }
        }
        rows += 1;
        kernel.add(&verdicts[0]);
        model.add(&verdicts[1]);
    }
    println!(
        "conformance: rows {rows}, kernel {}/{}, model {}/{}",
        kernel.passed, kernel.runnable, model.passed, model.runnable
    );
    let all = kernel.passed == kernel.runnable && model.passed == model.runnable;
    // Threads of rows that hang are left behind, and end with the program.
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The model has two profiles; a claim holds if it holds in each that can run it.
fn on_the_model(row: &'static Row) -> Verdict {
    let mut verdicts = [Profile::V6_18, Profile::NEWEST]
        .map(|profile| judge(row, move || Ok(ModelWorld::new(profile))));
    verdicts.sort_by_key(|verdict| match verdict {
        Verdict::Failed(_) => 0,
        Verdict::Passed => 1,
        Verdict::NotRunnable(_) => 2,
    });
    let [worst, _] = verdicts;
    worst
}

fn line(row: &str, claim: &str, [kernel, model]: [&str; 2]) {
    println!("{row:>3}  {claim:<72} {kernel:<12} {model}");
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "pass",
        Verdict::Failed(_) => "FAIL",
        Verdict::NotRunnable(_) => "not runnable",
    }
}
