//! userfaultfd for guest memory: pages, faults, events, and the operations that resolve them,
//! behind one trait, [`Uffd`].
//!
//! A [`backend::Backend`] answers calls with numbers - the running kernel does as
//! [`kernel::KernelUffd`], a kernel of our own as [`model::ModelUffd`] - and [`meaning`] turns the
//! numbers into what is to be done. [`guest`] gives the same operations on pages of a guest.

pub mod abi;
pub mod backend;
pub mod error;
pub mod event;
pub mod features;
pub mod guest;
pub mod kernel;
pub mod meaning;
pub mod memory;
pub mod message;
pub mod model;
pub mod page;
pub mod trial;
pub mod uffd;

pub use crate::backend::Backend;
pub use crate::error::Error;
pub use crate::event::{Event, Fault, FaultKind};
pub use crate::features::{Features, Ioctls, RegisterMode};
pub use crate::memory::MemoryKind;
pub use crate::uffd::{Changed, Holes, Installed, Mode, Range, Uffd, Wake};
