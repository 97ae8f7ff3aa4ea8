//! userfaultfd for guest memory: pages, faults, events, and the operations that resolve them,
//! behind one trait, [`Uffd`], which the running kernel implements as [`kernel::KernelUffd`].

pub mod page;
