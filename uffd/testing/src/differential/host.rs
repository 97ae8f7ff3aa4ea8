//! The running kernel against the model: what the test and the program of that name run.

use super::generate::Kinds;
use super::{Disagreement, Pair, Summary, profile};
use crate::kernel::KernelWorld;
use crate::model::ModelWorld;
use crate::world::{Ability, NotHere, World};

/// Free huge pages that two worlds of a thread need at one time.
const HUGE_PAGES: u32 = 16;

/// Does something with a pair of the running kernel and the model in its profile.
///
/// # Errors
/// If the host cannot be a world.
pub fn with_pair<T>(work: impl FnOnce(&Pair<'_>) -> T) -> Result<T, NotHere> {
    // It also holds the huge pages for all worlds that follow.
    let mut trial = KernelWorld::new()?;
    let kinds = Kinds {
        hugetlb: trial.can(Ability::Hugetlb(HUGE_PAGES)).is_ok(),
        transparent: trial.can(Ability::TransparentHuge).is_ok(),
    };
    let profile = profile::of(&mut trial);
    let kernel = || -> Box<dyn World> {
        Box::new(KernelWorld::new().expect("a world was possible a moment ago"))
    };
    let model = || -> Box<dyn World> { Box::new(ModelWorld::new(profile)) };
    Ok(work(&Pair { first: &kernel, second: &model, kinds }))
}

/// Runs random cases and prints what was found; the last line is the sum.
///
/// # Errors
/// If the host cannot be a world.
pub fn run(seed: u64, operations: u64) -> Result<Summary, NotHere> {
    let summary = with_pair(|pair| pair.run(seed, operations))?;
    for (count, case) in summary.cases.values() {
        println!("{count} x {case}\n");
    }
    let Summary { operations, disagreements, .. } = summary;
    println!("differential: {operations} operations, {disagreements} disagreements");
    Ok(summary)
}

/// Repeats kept cases; those that the worlds do not agree on.
///
/// # Errors
/// If the host cannot be a world.
pub fn repeat(cases: &[&[super::act::Act]]) -> Result<Vec<Disagreement>, NotHere> {
    with_pair(|pair| cases.iter().filter_map(|acts| pair.replay(acts).err()).collect())
}
