//! What the tests of `godwit-uffd` share: a machine with processes, memory and userfaultfds, as
//! the running kernel has it and as the model has it, behind one trait; and the conformance
//! suite that both must pass.

pub mod costs;
pub mod differential;
pub mod fuzz;
pub mod judge;
pub mod kernel;
pub mod model;
pub mod rows;
pub mod world;

pub use world::World;
