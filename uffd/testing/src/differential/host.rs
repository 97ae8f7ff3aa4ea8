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
        hugetlb: hugetlb_is_asked_for() && trial.can(Ability::Hugetlb(HUGE_PAGES)).is_ok(),
        transparent: trial.can(Ability::TransparentHuge).is_ok(),
    };
    let profile = profile::of(&mut trial);
    let kernel = || -> Box<dyn World> {
        Box::new(KernelWorld::new().expect("a world was possible a moment ago"))
    };
    let model = || -> Box<dyn World> { Box::new(ModelWorld::new(profile)) };
    let disturbances = &disturbances_of_huge_pages;
    Ok(work(&Pair { first: &kernel, second: &model, kinds, disturbances }))
}

/// Huge pages that khugepaged has made of small ones since the host was started, and faults that
/// got a small page because no huge one was free. Both happen when they like on the host, and not
/// in the model: see `MODEL.md`.
fn disturbances_of_huge_pages() -> u64 {
    let khugepaged = "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed";
    let made = std::fs::read_to_string(khugepaged).unwrap_or_default();
    let counts = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let missed = counts.lines().find_map(|line| line.strip_prefix("thp_fault_fallback "));
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    number(&made) + missed.map_or(0, number)
}

/// Random operations on hugetlb memory make 6.18 lose reserved pages, which stay lost until the
/// host is started again. So they are done only where `HUGETLB=1` says that this does not matter.
fn hugetlb_is_asked_for() -> bool {
    std::env::var_os("HUGETLB").is_some_and(|value| value == "1")
}

/// Runs random cases and prints what was found; the last line is the sum.
///
/// # Errors
/// If the host cannot be a world.
pub fn run(seed: u64, operations: u64) -> Result<Summary, NotHere> {
    let summary = with_pair(|pair| pair.run(seed, operations, |case| println!("{case}\n")))?;
    for (kind, count) in &summary.kinds {
        println!("{count} x {kind}");
    }
    if summary.set_aside > 0 {
        let why = "khugepaged made a huge page meanwhile, or there was no memory for one";
        println!("{} x set aside: {why}", summary.set_aside);
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
