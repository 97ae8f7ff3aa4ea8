//! The virtual machine monitor: what the `godwit` binary is made of.

pub mod api;
