//! The running kernel and the model do the same things and must show the same: kept cases, and
//! random ones. `OPS` sets how many operations, `SEED` the first case.

mod regressions;

use godwit_uffd_testing::differential::host;
use godwit_uffd_testing::world::NotHere;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
    })
}

#[test]
fn random_operations_show_the_same_on_both() {
    match host::run(number("SEED", 1), number("OPS", 200_000)) {
        Ok(summary) => assert_eq!(summary.disagreements, 0, "see the cases above"),
        Err(NotHere(reason)) => println!("skipped: {reason}"),
    }
}

#[test]
fn cases_that_once_differed_are_the_same_now() {
    match host::repeat(regressions::CASES) {
        Ok(differ) => {
            differ.iter().for_each(|case| println!("{case}\n"));
            assert!(differ.is_empty(), "{} cases differ", differ.len());
        }
        Err(NotHere(reason)) => println!("skipped: {reason}"),
    }
}
