//! The time-stamp counter: what the guest's lines are dated with.

// UNSAFETY: the instruction has no safe name in the standard library.
#![expect(unsafe_code)]

use std::arch::x86_64::_rdtsc;

use kvm_ioctls::Kvm;
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;

/// The counter now, in cycles.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets user space execute it.
    unsafe { _rdtsc() }
}

/// The TSC beside the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Timebase {
    tsc: u64,
    monotonic_us: u64,
    khz: u64,
}

impl Timebase {
    /// Looks at both clocks.
    ///
    /// # Errors
    ///
    /// [`Error::Kvm`] if there is no KVM.
    pub fn now() -> Result<Timebase, Error> {
        let khz = khz()?;
        let before = now();
        let clock = clock_gettime(ClockId::Monotonic);
        let tsc = before.midpoint(now());
        let monotonic_us =
            clock.tv_sec.cast_unsigned() * 1_000_000 + clock.tv_nsec.cast_unsigned() / 1000;
        Ok(Timebase::new(tsc, monotonic_us, khz))
    }

    /// The counter stood at `tsc` at that time of the monotonic clock.
    pub const fn new(tsc: u64, monotonic_us: u64, khz: u64) -> Timebase {
        Timebase { tsc, monotonic_us, khz }
    }

    /// The TSC at a time of the monotonic clock in microseconds, not before this timebase.
    pub fn tsc_at(&self, monotonic_us: u64) -> u64 {
        self.tsc + monotonic_us.saturating_sub(self.monotonic_us) * self.khz / 1000
    }

    /// Cycles in a millisecond.
    pub fn khz(&self) -> u64 {
        self.khz
    }
}

/// Cycles in a millisecond, as KVM gives them.
///
/// # Errors
///
/// [`Error::Kvm`] if there is no KVM.
pub fn khz() -> Result<u64, Error> {
    let kvm = Kvm::new().map_err(Error::kvm("opening /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(Error::kvm("creating a VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(Error::kvm("creating a vCPU"))?;
    let khz = vcpu.get_tsc_khz().map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
    Ok(u64::from(khz))
}
