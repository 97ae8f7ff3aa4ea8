//! Random operations on the running kernel and on the model: `differential [OPERATIONS [SEED]]`.

use std::process::ExitCode;

use godwit_uffd_testing::differential::host;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).map(|word| word.parse());
    let mut number = |otherwise| words.next().unwrap_or(Ok(otherwise));
    let (Ok(operations), Ok(seed)) = (number(200_000), number(1)) else {
        eprintln!("usage: differential [OPERATIONS [SEED]]");
        return ExitCode::from(2);
    };
    match host::run(seed, operations) {
        Ok(summary) if summary.disagreements == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            println!("skipped: {}", reason.0);
            ExitCode::SUCCESS
        }
    }
}
