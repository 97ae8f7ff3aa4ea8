//! What the source pushes next and how, when it stands back, and what the destination asks for.

mod compression;
mod gate;
mod pacing;
mod push;
mod rounds;
mod window;

pub use compression::{Compression, CompressionPolicy};
pub use gate::Gate;
pub use pacing::Pacer;
pub use push::PushOrder;
pub use rounds::{NextRound, OnTimeout, RoundLimits, RoundResult, Rounds};
pub use window::FaultWindows;
