//! Everything that needs unsafe code around KVM: ioctls that `kvm-ioctls` lacks or marks unsafe,
//! the shared page of a vCPU, memslots, and the signal that kicks a vCPU out of the guest.

mod dirty_log;
mod exit;
mod kick;
mod latency;
mod machine_check;
mod memslot;
mod open;
mod survey;
mod vcpu;

pub use dirty_log::{KvmLog, Reading};
pub use exit::{Exit, IoDirection};
pub use kick::{ImmediateExit, Tid, install_kick_handler, kick, prepare_vcpu_thread};
pub use latency::prefer_short_delays;
pub use machine_check::NotRaised;
pub use memslot::add_memory;
pub use open::{Capabilities, KvmError, Machine};
pub use survey::{Survey, survey};
pub use vcpu::{VCPU_EVENTS_FLAGS_KNOWN, Vcpu};

/// Gives a failed KVM call its name.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> KvmError {
    move |errno| KvmError::Call { call, source: errno.into() }
}
