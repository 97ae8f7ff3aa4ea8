//! The bare test guest, in this program: `guest-images/bare`, built by the build script.

/// The guest's ELF file. It boots by PVH and by the 64-bit Linux protocol.
pub const BARE: &[u8] = include_bytes!(env!("GODWIT_GUEST_IMAGE"));
