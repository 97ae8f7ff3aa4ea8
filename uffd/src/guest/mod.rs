//! The operations of a [`Uffd`](crate::Uffd) on the pages of a guest.

pub mod mfill;
pub mod space;

pub use mfill::{Filled, GuestUffd};
pub use space::{GuestSpace, Memslot, SpaceError};
