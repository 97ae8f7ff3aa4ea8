//! Page providers: who has the bytes of a page.

mod guest_memory;

#[cfg(test)]
pub(crate) use guest_memory::tests::{LOST, copy_up_to_lost};
pub use guest_memory::{CopyReadable, GuestPages, GuestRam, GuestSlice};
