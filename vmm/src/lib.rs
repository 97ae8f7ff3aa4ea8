//! The virtual machine monitor: what the `godwit` binary is made of.
//!
//! [`vm::Vm`] is one guest. It knows how to run, stop, save and restore it, and nothing of networks.

pub mod api;
pub mod arch;
pub mod boot;
pub mod devices;
mod error;
pub mod kvm;
pub mod memory;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use error::Error;
