//! The virtual machine monitor: KVM, memory, vCPUs, devices, boot and saved state.
//!
//! [`vm::Vm`] is one guest. It knows how to run, stop, save and restore it, and nothing of networks.

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
