//! The VM object: what can be done with a guest.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_uffd::page::Gpa;
use kvm_ioctls::VmFd;

use super::dirty::Tracker;
use super::{Exits, VmConfig};
use crate::arch::x86_64::msr;
use crate::boot::{KernelImage, Platform};
use crate::devices::Devices;
use crate::kvm::{Capabilities, Tid, Vcpu};
use crate::memory::GuestMemory;
use crate::state::Requirements;
use crate::vcpu::{Control, CpuShared};
use crate::{Error, boot};

/// One guest.
///
/// Every method can be called from any thread. None of them waits for guest memory but
/// [`Vm::restore`], and [`Vm::boot`] if pages are missing.
pub struct Vm {
    pub(super) config: VmConfig,
    pub(super) capabilities: Capabilities,
    pub(super) fd: Arc<VmFd>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) devices: Arc<Devices>,
    pub(super) control: Arc<Control>,
    pub(super) exits: Arc<Exits>,
    pub(super) cpus: Vec<Arc<CpuShared>>,
    /// What the guest sees of the processor, and so needs from a host.
    pub(super) profile: Mutex<Requirements>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) started: AtomicBool,
    /// On while somebody follows the guest's writes.
    pub(super) tracker: Mutex<Option<Tracker>>,
}

impl Vm {
    /// What the guest is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Where the registers of its virtio devices are, in the order of the configuration.
    pub fn device_places(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.devices.virtio().places().iter().map(|place| place.gpa)
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Loads a kernel and puts the vCPUs where it begins.
    ///
    /// # Errors
    /// [`Error::Boot`] naming the file, or [`Error::AlreadyStarted`].
    pub fn boot(
        &self,
        kernel: &KernelImage,
        initramfs: Option<&Path>,
        command_line: &str,
    ) -> Result<(), Error> {
        if self.started.load(Ordering::Acquire) {
            return Err(Error::AlreadyStarted);
        }
        let platform = Platform { cpus: self.config.cpus, devices: self.devices.virtio().places() };
        let entry = boot::load(&self.memory, kernel, initramfs, command_line, &platform)?;
        for cpu in &self.cpus {
            let vcpu = lock(&cpu.vcpu);
            crate::arch::x86_64::set_up_for_boot(&vcpu, cpu.index, &entry)?;
        }
        Ok(())
    }

    /// Takes what only one process may have: locks on the files of disks. Without this they are
    /// taken when the guest runs, and its requests wait until they are to be had.
    ///
    /// # Errors
    /// [`Error::Device`] if somebody else has one, or it is not there.
    pub fn take_disks(&self) -> Result<(), Error> {
        Ok(self.devices.virtio().open()?)
    }

    /// Gives that back, because the guest belongs to another process now. If it runs here
    /// nevertheless, its requests wait until the disks are to be had again. The guest must be
    /// paused.
    ///
    /// # Errors
    /// [`Error::NotPaused`].
    pub fn release_disks(&self) -> Result<(), Error> {
        self.require_paused()?;
        self.devices.virtio().close();
        Ok(())
    }

    /// Lets the vCPUs run guest code: the first time after a boot or a restore.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
        if self.control.run() {
            self.devices.virtio().run();
        }
    }

    /// Brings every vCPU out of the guest, between two instructions, and lets the devices finish
    /// the requests under way. What they have not begun stays in their queues. A pause of a paused
    /// or ended guest does nothing.
    ///
    /// A vCPU that waits for a missing page comes out, too, but for one case (see [`crate::vcpu`]):
    /// KVM itself waits, in the middle of an instruction. The guest is paused nevertheless - the
    /// vCPU gets no further than that - but cannot be saved before the page is there. The same
    /// goes for a device that waits for one in the middle of a request.
    ///
    /// # Errors
    /// [`Error::PauseTimeout`] or [`Error::DeviceBusy`], and then the guest runs on;
    /// [`Error::PauseCalledOff`] if another thread resumes it meanwhile.
    pub fn pause(&self) -> Result<(), Error> {
        let late_is_fine = self.memory.is_incomplete();
        let within_ms = if late_is_fine { LATE_AFTER_MS } else { PAUSE_WITHIN_MS };
        let deadline = Instant::now() + Duration::from_millis(within_ms);
        let result = self.control.park_all(deadline, late_is_fine);
        result.map_err(|why| why.into_error(within_ms))?;
        match self.devices.virtio().park(deadline.max(Instant::now() + DEVICES_AFTER_VCPUS)) {
            Err(device) if !late_is_fine => {
                self.start();
                return Err(Error::DeviceBusy { device, waited_ms: within_ms });
            }
            _ => {}
        }
        self.devices.flush_console();
        Ok(())
    }

    /// Lets a paused guest go on. Does nothing to one that runs.
    ///
    /// # Errors
    /// [`Error::Ended`] if the guest has ended, [`Error::ShutDown`] after [`Vm::shutdown`].
    pub fn resume(&self) -> Result<(), Error> {
        self.started.store(true, Ordering::Release);
        if !self.control.run() {
            return Err(self.ended());
        }
        self.devices.virtio().run();
        Ok(())
    }

    /// Whether no vCPU is in the guest, nor will be without a resume.
    pub fn is_paused(&self) -> bool {
        self.control.is_parked()
    }

    /// The kernel's ids of the vCPU threads, by vCPU; none for one that is not there.
    pub fn vcpu_threads(&self) -> Vec<Option<u32>> {
        let id = |tid: Tid| u32::try_from(tid.0).ok();
        self.control.threads().into_iter().map(|tid| tid.and_then(id)).collect()
    }

    /// How the guest ended, and a descriptor to wait for that.
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// Gives the guest bytes to read from its serial port. Returns how many were taken; the rest
    /// has to be offered again.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.devices.console_input(bytes)
    }

    /// Waits until what the guest has written so far is with the console's writer, at most for
    /// `limit`. Returns whether it is.
    pub fn drain_console(&self, limit: Duration) -> bool {
        self.devices.console().drain(limit)
    }

    /// The guest's time stamp counter on each vCPU. The guest must be paused.
    ///
    /// # Errors
    /// [`Error::NotPaused`], [`Error::Kvm`].
    pub fn guest_tsc(&self) -> Result<Vec<u64>, Error> {
        self.require_paused()?;
        self.cpus.iter().map(|cpu| Ok(msr::read_tsc(&lock(&cpu.vcpu))?)).collect()
    }

    /// The frequency of the guest's time stamp counter in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).tsc_khz
    }

    /// Ends the vCPU threads, wherever they are, and the console's. After this the guest never runs
    /// again, and its memory may be out of reach if pages were missing. Safe to call twice.
    ///
    /// On kernels before 6.2 a vCPU that waits for a missing page can be reached only by dropping
    /// the userfaultfd.
    pub fn shutdown(&self) {
        // Before memory is taken away, which makes it read as zeros: those must not reach a disk.
        self.devices.virtio().dismiss();
        let mut dismissed = Ok(());
        if self.memory.may_wait() {
            let soon = Instant::now() + Duration::from_millis(LATE_AFTER_MS);
            dismissed = self.control.dismiss(soon);
            if dismissed.is_err() {
                self.memory.revoke();
            }
        }
        if dismissed.is_err() || !self.memory.may_wait() {
            dismissed = self.control.dismiss(Instant::now() + SHUTDOWN_WITHIN);
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if dismissed.is_err() {
                // It holds its own references to all that it uses; leave it behind.
                tracing::error!("a vcpu thread did not end and is left behind");
                continue;
            }
            let _ = thread.join();
        }
        let may_wait = self.memory.may_wait();
        let limit = if may_wait { Duration::from_millis(LATE_AFTER_MS) } else { SHUTDOWN_WITHIN };
        self.devices.virtio().join(Instant::now() + limit);
        self.devices.console().drain(CONSOLE_WITHIN);
        self.devices.console().close();
    }

    pub(super) fn require_paused(&self) -> Result<(), Error> {
        if self.control.is_parked() { Ok(()) } else { Err(Error::NotPaused) }
    }

    /// The error for a guest that cannot run any more.
    pub(super) fn ended(&self) -> Error {
        self.exits.peek().map_or(Error::ShutDown, Error::Ended)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.shutdown();
    }
}

pub(super) fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a pause may take.
const PAUSE_WITHIN_MS: u64 = 10_000;

/// How long a pause or shutdown waits for a vCPU before it counts as one that waits for a page in
/// the middle of an instruction: a multiple of what a kick takes.
const LATE_AFTER_MS: u64 = 50;

/// What is left at least for the devices when the vCPUs have taken all the time of a pause.
const DEVICES_AFTER_VCPUS: Duration = Duration::from_millis(10);

const SHUTDOWN_WITHIN: Duration = Duration::from_secs(10);

/// How long a shutdown waits for whoever reads the console.
const CONSOLE_WITHIN: Duration = Duration::from_secs(1);
