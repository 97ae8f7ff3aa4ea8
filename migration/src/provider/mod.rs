//! Page providers: who has the bytes of a page.

mod guest_memory;

pub use guest_memory::{GuestPages, GuestRam};
