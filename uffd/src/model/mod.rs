//! A userfaultfd of our own: the semantics of the kernel's `mm/userfaultfd.c` in safe Rust, with
//! address spaces, page tables, page caches, swap, wait queues and locks of its own.
//!
//! A [`Machine`] has processes, their memory, files and userfaultfds. Its core never blocks: what
//! may sleep returns a [`Progress`], which is the outcome or a [`Parked`] thread; once woken the
//! parked one is resumed, and does again what the kernel would do again. So one thread can step a
//! whole machine, in any order it likes, and get the same from the same order. Real threads may
//! use a machine at once as well: all is behind its own locks (see `sync`), and
//! [`ModelUffd`](threads::ModelUffd) makes real threads sleep where the core parks.
//!
//! What differs between kernels is in the [`Profile`]. `MODEL.md` says where each part of the
//! kernel's file lives here, and which tests pin it.

mod access;
mod address_space;
mod advise;
mod calls;
mod collapse;
mod contents;
mod context;
mod errno;
mod events;
mod faults;
mod file_faults;
mod file_ops;
mod fill_hugetlb;
mod fill_page;
mod folio;
mod fork;
mod frames;
mod handshake;
mod hugetlb;
mod hugetlb_faults;
mod machine;
mod memory;
mod memory_map;
mod merge;
mod mfill;
mod migration;
mod move_entry;
mod move_pages;
mod observe;
mod page_cache;
mod page_table;
mod populate;
mod profile;
mod protect;
mod read;
mod read_write_protect;
mod register;
mod remap;
mod retry_state;
mod scan;
mod split;
mod swap;
mod sync;
mod task;
pub mod threads;
mod vma;
mod wait_queue;
mod zap;

#[cfg(test)]
mod tests;

pub use access::Touch;
pub use advise::Advice;
pub use calls::Placement;
pub use folio::{HUGE, PAGE, PAGES_PER_HUGE};
pub use handshake::Door;
pub use machine::{Machine, Setup};
pub use memory::{MapRequest, Material};
pub use migration::Migration;
pub use observe::Observed;
pub use page_cache::FileKind;
pub use profile::Profile;
pub use read::{FdInfo, Polled};
pub use remap::Remap;
pub use scan::{Categories, Region, Scan};
pub use task::{Outcome, Parked, Progress, Signal};
pub use threads::ModelUffd;
pub use vma::Access;

use crate::abi::Errno;

/// A process of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

/// A thread of a machine. The number is the thread's id, as messages show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thread(pub u32);

/// A userfaultfd of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub u32);

/// A memory file of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);
