//! Virtio devices behind memory-mapped registers, each with a thread of its own.
//!
//! A device is four parts. Its `Transport` are the registers that vCPUs read and write. Its
//! `Engine` are the queues that the driver gave it and what the device does with a request
//! ([`VirtioDevice`]). Its `Worker` is the thread that takes requests from the queues, one after
//! the other, woken by the driver's notifications (an ioeventfd: the vCPU does not leave the
//! guest). Its `Gate` stops that thread between two requests.
//!
//! Everything in guest memory - rings, descriptors, buffers - is a stranger's word: it is copied
//! once, checked, and used. A queue that makes no sense stops the device until its driver resets
//! it. What a request may take is bounded ([`DESCRIPTORS_MAX`], and limits of each device).
//!
//! Guest memory may be missing. The thread then waits in the kernel like a vCPU, with its engine
//! locked and nothing that anybody needs to resolve the fault. When the guest is shut down
//! meanwhile, the wait ends with bytes that mean nothing: `Chain::read` refuses to give them out.

mod all;
mod block;
mod buffers;
mod engine;
mod gate;
mod interrupt;
mod rng;
mod transport;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use godwit_uffd::page::Gpa;

pub(crate) use all::VirtioDevices;
pub(crate) use transport::Transport;

use crate::vm::DeviceConfig;
use buffers::Chain;

/// The most descriptors of one request.
pub(super) const DESCRIPTORS_MAX: u32 = 128;

/// The most devices of a machine: as many as there are interrupt lines for them.
pub(crate) const DEVICE_COUNT_MAX: usize = 19;

/// Where a device's registers are, and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmioPlace {
    /// The first register.
    pub(crate) gpa: Gpa,
    /// The size of the range.
    pub(crate) bytes: u64,
    /// The pin of the I/O APIC.
    pub(crate) interrupt: u32,
}

impl MmioPlace {
    /// The place of device `number`. A guest keeps its places when it moves, so they are the same
    /// in every version.
    pub(crate) fn of(number: usize) -> MmioPlace {
        assert!(number < DEVICE_COUNT_MAX);
        let number = number as u64;
        let interrupt = FIRST_INTERRUPT + u32::try_from(number).expect("few devices");
        MmioPlace { gpa: Gpa(FIRST_GPA + number * PLACE_BYTES), bytes: PLACE_BYTES, interrupt }
    }
}

/// In the hole below 4 GiB, where no memory is.
const FIRST_GPA: u64 = 0xd000_0000;
/// A page for each, so that a guest may map one without the others.
const PLACE_BYTES: u64 = 0x1000;
/// Behind the lines of the timer and the serial port.
const FIRST_INTERRUPT: u32 = 5;
const IO_APIC_PINS: u32 = 24;

const _: () = assert!(FIRST_INTERRUPT as usize + DEVICE_COUNT_MAX == IO_APIC_PINS as usize);
const _: () = assert!(
    FIRST_GPA >= crate::memory::HOLE_START
        && FIRST_GPA + DEVICE_COUNT_MAX as u64 * PLACE_BYTES < 0xfec0_0000
);

/// The request, or the queue that it came by, makes no sense: the driver must reset the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) &'static str);

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are too many.
    #[error("a guest with {wanted} devices is not possible; at most {DEVICE_COUNT_MAX} are")]
    Count {
        /// How many were asked for.
        wanted: usize,
    },
    /// The file of a disk cannot be opened.
    #[error("cannot open the disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file is not one that a disk can be.
    #[error("{} cannot be a disk: {why}", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Somebody else has the disk.
    #[error(
        "the disk {} is in use by another process of this host or of another; a disk that is \
         written has one user", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The size of a disk has changed while nobody held it.
    #[error("the disk {} had {expected} bytes and has {found} now", path.display())]
    SizeChanged {
        /// The file.
        path: PathBuf,
        /// What the guest was told.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// What the guest wrote is not safe on the disk.
    #[error("cannot write {} out", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The host has no source of random numbers.
    #[error("cannot open /dev/urandom")]
    Random(#[source] io::Error),
}

/// What a device does; the rest is the same for all of them. It is called by one thread at a time.
pub(crate) trait VirtioDevice: Send {
    /// The number of its kind in the standard.
    fn id(&self) -> u32;

    /// Its name for messages.
    fn name(&self) -> String;

    /// What it can do, beyond what each device can.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// What its driver reads from the configuration space. It stays as it is, also on the next
    /// host.
    fn config(&self) -> &[u8];

    /// Takes what the device needs and what only one process may have. Called before the first
    /// request, again after [`VirtioDevice::close`], and again and again if it fails.
    ///
    /// # Errors
    /// Why it cannot be had now.
    fn open(&mut self) -> Result<(), DeviceError>;

    /// Gives back what [`VirtioDevice::open`] took. No request comes until it is opened again.
    fn close(&mut self);

    /// Sees to it that all that the guest was told is done is there for the next host.
    ///
    /// # Errors
    /// It is not.
    fn settle(&mut self) -> Result<(), DeviceError>;

    /// Does what a request of a queue asks for, whatever it asks. `features` are those that the
    /// driver uses.
    ///
    /// # Errors
    /// [`Broken`] if there is no place to answer in.
    fn handle(&mut self, queue: usize, features: u64, chain: &mut Chain<'_>) -> Result<(), Broken>;
}

/// Makes a device. Nothing outside of the process changes.
///
/// # Errors
/// [`DeviceError`] if it can be seen already that it will not work.
pub(super) fn build(config: &DeviceConfig) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    Ok(match config {
        DeviceConfig::Disk(disk) => Box::new(block::Block::new(disk)?),
        DeviceConfig::Rng => Box::new(rng::Rng::new()?),
    })
}
