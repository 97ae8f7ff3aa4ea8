//! What the source pushes next, and when it stands back.

mod gate;
mod push;
mod rounds;

pub use gate::Gate;
pub use push::PushOrder;
pub use rounds::{NextRound, OnTimeout, RoundLimits, RoundResult, Rounds};
