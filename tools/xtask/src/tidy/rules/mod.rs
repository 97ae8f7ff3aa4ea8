//! The rules, by what they look at.

pub mod layer;
pub mod length;
pub mod module_doc;
pub mod placeholder;
pub mod text;
pub mod unsafety;
pub mod versions;
