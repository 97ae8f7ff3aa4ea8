//! The error of the VM: what went wrong, one variant per part.

use crate::boot::BootError;
use crate::devices::DeviceError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::state::StateError;

/// Why an operation on a [`Vm`](crate::vm::Vm) failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM is not there, is too old, or refused a call.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory could not be had or prepared.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Saved state or requirements do not fit this machine or this build.
    #[error(transparent)]
    State(#[from] StateError),
    /// A device cannot be had, or not now.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device did not stop in time.
    #[error("the {device} did not stop within {waited_ms} ms; the guest goes on")]
    DeviceBusy {
        /// The device.
        device: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A device waits for a page in the middle of a request.
    #[error(
        "the {device} waits for a page of guest memory that has not arrived; \
         resume the guest, and save it later"
    )]
    DeviceUnfinished {
        /// The device that waits.
        device: String,
    },
    /// The number of vCPUs is not possible.
    #[error("a guest with {wanted} vCPUs is not possible here; choose 1 to {limit}")]
    CpuCount {
        /// What was asked for.
        wanted: u8,
        /// The largest number possible.
        limit: u8,
    },
    /// The operation needs a guest at rest.
    #[error("the guest runs; pause it first")]
    NotPaused,
    /// The guest has ended, and cannot be run, saved or restored.
    #[error("the guest has ended: {0}")]
    Ended(crate::vm::GuestExit),
    /// The guest was shut down from outside.
    #[error("the guest was shut down")]
    ShutDown,
    /// A vCPU did not stop in time.
    #[error("vcpu {cpu} did not stop within {waited_ms} ms; the guest goes on")]
    PauseTimeout {
        /// The first vCPU that still runs.
        cpu: usize,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// Another thread resumed or stopped the guest during a pause.
    #[error("the pause was called off by another request")]
    PauseCalledOff,
    /// Somebody follows the guest's writes already.
    #[error("the writes of this guest are being tracked already")]
    TrackingAlready,
    /// Nobody follows the guest's writes.
    #[error("the writes of this guest are not being tracked")]
    NotTracking,
    /// The guest has run already, so nothing can be loaded into it.
    #[error("the guest has run already; state and kernels can be loaded only before that")]
    AlreadyStarted,
    /// A vCPU waits for a page in the middle of an instruction.
    #[error(
        "vcpu {cpu} waits for a page of guest memory that has not arrived; \
         resume the guest, and save it later"
    )]
    AccessUnfinished {
        /// The vCPU that waits.
        cpu: usize,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// What the thread was to do.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// An event descriptor could not be made.
    #[error("cannot create an event descriptor")]
    Event(#[source] std::io::Error),
}
