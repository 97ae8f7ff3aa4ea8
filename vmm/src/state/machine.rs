//! What the guest is made of: the destination's guest must be of the same shape.

use serde::{Deserialize, Serialize};

use super::StateError;

/// The shape of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The size of guest memory in bytes.
    pub memory_bytes: u64,
    /// The frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
}

impl MachineState {
    /// Refuses state of a guest that has another shape than `here`. The frequency of the time stamp
    /// counter may differ; it is set.
    ///
    /// # Errors
    /// [`StateError::Shape`].
    pub(crate) fn check_fits(&self, here: &MachineState) -> Result<(), StateError> {
        let pairs = [
            ("a number of vcpus of", self.cpus.into(), here.cpus.into()),
            ("memory bytes", self.memory_bytes, here.memory_bytes),
        ];
        for (what, saved, here) in pairs {
            if saved != here {
                return Err(StateError::Shape { what, saved, here });
            }
        }
        Ok(())
    }
}
