//! What the tests of `godwit-uffd` share: a machine with processes, memory and userfaultfds, as
//! the running kernel has it and as the model has it, behind one trait.

pub mod kernel;
pub mod world;

pub use world::World;
