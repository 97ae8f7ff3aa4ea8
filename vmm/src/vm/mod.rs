//! One guest: memory, vCPUs and devices, from creation to the end.

mod config;
mod create;
mod dirty;
mod ending;
mod machine;
mod save;
mod save_vcpu;

pub use config::{CPU_COUNT_MAX, DeviceConfig, DiskConfig, VmConfig};
pub use ending::{Exits, GuestExit};
pub use machine::Vm;
