//! Saved state: what travels, never what runs.
//!
//! A [`Section`] is a number, a version and bytes. The types here give the bytes their meaning;
//! they are not the kernel's types and not our devices', and are converted both ways. A field that
//! must be added later makes a new version, which old builds refuse with a message.
//!
//! The bytes come from a peer or a file: reading them may fail, but it never panics and never
//! allocates more than a small multiple of their length.

mod blob;
pub(crate) mod chips;
mod config;
mod machine;
mod requirements;
mod section;
mod serial;
#[cfg(test)]
mod tests;
mod vcpu;
pub(crate) mod vcpu_convert;
mod virtio;

pub use blob::Blob;
pub use chips::{ChannelState, ChipsState, ClockState, PitState};
pub use config::{BackingState, ConfigState, DeviceState};
pub use machine::MachineState;
pub(crate) use requirements::check_count;
pub use requirements::{Leaf, Requirements, VERSION as REQUIREMENTS_VERSION};
pub use section::{Kind, Section, StateError};
pub(crate) use section::{decode, encode};
pub use serial::SerialState;
pub use vcpu::{
    DebugRegisters, Events, ExtendedControl, Msr, Registers, Segment, SystemRegisters, Table,
    VcpuState,
};
pub use virtio::{VirtioQueueState, VirtioState};
