//! What a saved guest is made of, so that a machine like it can be made before its state is loaded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::memory::Backing;
use crate::vm::{DeviceConfig, DiskConfig, VmConfig};

/// What a guest is made of, version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The size of guest memory in bytes.
    pub memory_bytes: u64,
    /// What guest memory was made of.
    pub backing: BackingState,
    /// Its virtio devices, in the order of their places.
    pub devices: Vec<DeviceState>,
}

/// A virtio device. New kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A block device, and the file behind it.
    Disk {
        /// The file.
        path: PathBuf,
        /// Whether the guest could only read it.
        readonly: bool,
    },
    /// A source of random numbers.
    Rng,
}

/// What guest memory was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackingState {
    /// Private anonymous memory.
    Anon,
    /// A memfd.
    Memfd,
}

impl From<&VmConfig> for ConfigState {
    fn from(config: &VmConfig) -> ConfigState {
        let backing = match config.backing.kind().is_file() {
            false => BackingState::Anon,
            true => BackingState::Memfd,
        };
        let devices = config.devices.iter().map(|device| match device.clone() {
            DeviceConfig::Disk(DiskConfig { path, readonly }) => {
                DeviceState::Disk { path, readonly }
            }
            DeviceConfig::Rng => DeviceState::Rng,
        });
        let (cpus, memory_bytes) = (config.cpus, config.memory_bytes);
        ConfigState { cpus, memory_bytes, backing, devices: devices.collect() }
    }
}

impl From<&ConfigState> for VmConfig {
    fn from(state: &ConfigState) -> VmConfig {
        let backing = match state.backing {
            BackingState::Anon => Backing::Anon,
            BackingState::Memfd => Backing::Memfd,
        };
        let devices = state.devices.iter().map(|device| match device.clone() {
            DeviceState::Disk { path, readonly } => {
                DeviceConfig::Disk(DiskConfig { path, readonly })
            }
            DeviceState::Rng => DeviceConfig::Rng,
        });
        let (cpus, memory_bytes) = (state.cpus, state.memory_bytes);
        VmConfig { cpus, memory_bytes, backing, devices: devices.collect() }
    }
}
