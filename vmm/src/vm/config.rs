//! What a guest is made of.

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
}
