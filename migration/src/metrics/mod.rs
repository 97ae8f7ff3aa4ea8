//! What a migration measured: instants, pages, bytes, fault latencies.

mod classes;
mod faults;
mod progress;
mod restore;

pub use classes::{ClassCount, Classes};
pub use faults::{FaultLedger, FaultReport, Quantiles, Stage};
pub use progress::{Change, Pages, Progress, Report, WritesHeld, monotonic_us};
pub use restore::{Mark, RestoreProgress, RestoreReport, RestoreState};
