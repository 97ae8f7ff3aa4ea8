//! What a saved guest is made of, so that a machine like it can be made before its state is loaded.

use serde::{Deserialize, Serialize};

use crate::memory::Backing;
use crate::vm::VmConfig;

/// What a guest is made of, version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The size of guest memory in bytes.
    pub memory_bytes: u64,
    /// What guest memory was made of.
    pub backing: BackingState,
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
        let backing = match config.backing {
            Backing::Anon => BackingState::Anon,
            Backing::Memfd => BackingState::Memfd,
        };
        ConfigState { cpus: config.cpus, memory_bytes: config.memory_bytes, backing }
    }
}

impl From<&ConfigState> for VmConfig {
    fn from(state: &ConfigState) -> VmConfig {
        let backing = match state.backing {
            BackingState::Anon => Backing::Anon,
            BackingState::Memfd => Backing::Memfd,
        };
        VmConfig { cpus: state.cpus, memory_bytes: state.memory_bytes, backing }
    }
}
