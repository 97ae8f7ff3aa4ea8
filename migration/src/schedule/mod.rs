//! What the source pushes next, and when it stands back.

mod gate;
mod push;

pub use gate::Gate;
pub use push::PushOrder;
