//! What the source pushes next and how, and when it stands back.

mod compression;
mod gate;
mod pacing;
mod push;

pub use compression::{Compression, CompressionPolicy};
pub use gate::Gate;
pub use pacing::Pacer;
pub use push::PushOrder;
