//! What a guest is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::memory::Backing;

/// The largest number of vCPUs of a guest.
pub const CPU_COUNT_MAX: u8 = 64;

/// What a guest is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The number of vCPUs, from 1 to [`CPU_COUNT_MAX`].
    pub cpus: u8,
    /// The size of guest memory in bytes, whole pages of its backing.
    pub memory_bytes: u64,
    /// What guest memory is made of.
    pub backing: Backing,
    /// Its virtio devices, in the order of their places.
    pub devices: Vec<DeviceConfig>,
}

/// A virtio device. New kinds are added at the end: the order is how they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceConfig {
    /// A block device.
    Disk(DiskConfig),
    /// A source of random numbers.
    Rng,
}

/// A block device and the file behind it. A guest finds the file under the same path at its next
/// host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The file, or block device.
    pub path: PathBuf,
    /// The guest cannot write it; others may read it at the same time.
    pub readonly: bool,
}
