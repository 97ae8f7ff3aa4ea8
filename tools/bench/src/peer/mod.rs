//! Other VMMs moving the same guest.

pub mod qemu;
mod qmp;
