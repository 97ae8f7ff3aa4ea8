//! The virtual machine monitor: what the `godwit` binary is made of.
//!
//! [`vm::Vm`] is one guest. It knows how to run, stop, save and restore it, and nothing of
//! networks.

pub mod api;
pub mod arch;
pub mod boot;
pub mod cli;
pub mod demo;
pub mod devices;
pub mod doctor;
mod error;
pub mod guest_image;
pub mod kvm;
pub mod memory;
pub mod migrate;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use error::Error;
