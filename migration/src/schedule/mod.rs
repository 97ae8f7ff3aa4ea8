//! What the source pushes next and how, and when it stands back.

mod compression;
mod gate;
mod pacing;
mod push;
mod rounds;

pub use compression::{Compression, CompressionPolicy};
pub use gate::Gate;
pub use pacing::Pacer;
pub use push::PushOrder;
pub use rounds::{NextRound, OnTimeout, RoundLimits, RoundResult, Rounds};
