//! What the bare guest says about itself: its lines, and the figures that are made of them.

pub mod latency;
pub mod line;
pub mod report;
pub mod transcript;

pub use latency::Latencies;
pub use line::Line;
pub use report::{GuestFigures, Moments};
pub use transcript::Transcript;
