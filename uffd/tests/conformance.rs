//! Every row of the conformance suite as a test, once for each backend:
//! `kernel::row_043_copy_into_a_hole`, `model::row_043_copy_into_a_hole`, and `newest::` for the
//! model of the newest kernel.

use godwit_uffd::model::Profile;
use godwit_uffd_testing::judge::{Verdict, judge};
use godwit_uffd_testing::kernel::KernelWorld;
use godwit_uffd_testing::model::ModelWorld;
use godwit_uffd_testing::rows::{ROWS, Row, SPECIFIED};
use godwit_uffd_testing::world::{NotHere, World};

const V6_18: Profile = Profile::V6_18;
const NEWEST: Profile = Profile::NEWEST;

/// Fails if the claim of a row does not hold, and says why if it cannot be tried here.
fn check<W: World + 'static>(name: &str, new_world: fn() -> Result<W, NotHere>) {
    let row = ROWS.iter().find(|row| row.name == name).expect("a row of the table");
    match judge(row, new_world) {
        Verdict::Passed => {}
        Verdict::NotRunnable(reason) => println!("skipped: {reason}"),
        Verdict::Failed(reason) => panic!("{reason}"),
    }
}

macro_rules! tests {
    ($($subject:ident::$row:ident [$($need:expr),*];)*) => {
        mod kernel {
            $(
                #[test]
                fn $row() {
                    super::check(stringify!($row), super::KernelWorld::new);
                }
            )*
        }

        mod model {
            $(
                #[test]
                fn $row() {
                    super::check(stringify!($row), || Ok(super::ModelWorld::new(super::V6_18)));
                }
            )*
        }

        mod newest {
            $(
                #[test]
                fn $row() {
                    super::check(stringify!($row), || Ok(super::ModelWorld::new(super::NEWEST)));
                }
            )*
        }
    };
}

godwit_uffd_testing::for_each_row!(tests);

#[test]
fn no_row_of_the_specification_is_missing() {
    let numbers: Vec<u32> = ROWS.iter().map(Row::number).collect();
    let specified: Vec<u32> = numbers.iter().copied().filter(|row| *row <= SPECIFIED).collect();
    assert_eq!(specified, (1..=SPECIFIED).collect::<Vec<_>>());
    assert!(numbers.is_sorted_by(|a, b| a < b), "each number once, in order");
}
