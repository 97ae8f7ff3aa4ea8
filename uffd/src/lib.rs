//! userfaultfd for guest memory: pages, faults, events, and the operations that resolve them,
//! behind one trait, [`Uffd`], which the running kernel implements as [`kernel::KernelUffd`] and
//! a kernel of our own as [`model::ModelUffd`].
//! [`guest`] gives the same operations on pages of a guest.

pub mod abi;
pub mod error;
pub mod event;
pub mod features;
pub mod guest;
pub mod kernel;
pub mod model;
pub mod page;
pub mod uffd;

pub use crate::error::Error;
pub use crate::event::{Event, Fault, FaultKind};
pub use crate::features::{Features, Ioctls, RegisterMode};
pub use crate::uffd::{Installed, Range, Uffd, Wake};
