//! The operations of a [`Uffd`](crate::Uffd) on the pages of a guest.
//!
//! Pages are numbered over all memslots, so a run of them may span memslots, the holes between
//! them, and memory of different page sizes. A run is checked as the kernel checks a destination:
//! whole pages, all of them memory, registered for what is asked. Results count pages of the run.

pub mod change;
pub mod fallback;
mod memory;
pub mod mfill;
pub mod move_pages;
pub mod protect;
pub mod space;
#[cfg(test)]
mod tests;
mod written;

pub use change::Change;
pub use fallback::Methods;
pub use memory::GuestUffd;
pub use mfill::Filled;
pub use protect::Protected;
pub use space::{GuestSpace, Memslot, Region, SpaceError};
