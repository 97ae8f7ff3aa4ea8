//! Cases on which the running kernel and the model once differed, as the random test printed them.

use godwit_uffd_testing::differential::act::Act;

/// All of them.
pub const CASES: &[&[Act]] = &[];
