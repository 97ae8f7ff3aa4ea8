//! What the tests with real processes, sockets and guests are made of.
//!
//! Every wait has a deadline that can only fail a test, never pass it: it is far longer than what
//! it waits for takes on a busy machine. Nothing sleeps to let something happen; [`until`] looks
//! again and again. What fails, fails with the last lines of the processes that it was about.

pub mod certificates;
mod deadline;
pub mod device;
pub mod disk;
mod godwit;
pub mod guest;
pub mod huge_pages;
pub mod passes;
pub mod peer;
mod process;
pub mod proxy;
pub mod resources;
pub mod speaker;
pub mod stage;
mod text;

pub use deadline::{DEADLINE, until};
pub use godwit::{Godwit, TestDir};
pub use process::{Lines, Process, Stream};
