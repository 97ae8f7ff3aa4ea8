//! A driver that does what a test says, in memory that no guest runs on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};

use super::super::interrupt::Interrupt;
use super::super::{Transport, build};
use crate::devices::bus::Device;
use crate::memory::{Backing, GuestMemory};
use crate::vm::DeviceConfig;

pub const MEMORY_BYTES: u64 = 16 << 20;
pub const DESCRIPTORS: u64 = 0x1_0000;
pub const AVAILABLE: u64 = 0x1_2000;
pub const USED: u64 = 0x1_3000;
pub const HEADER: u64 = 0x1_4000;
pub const STATUS: u64 = 0x1_5000;
pub const DATA: u64 = 0x10_0000;
pub const QUEUE_SIZE: u16 = 16;

pub const READ: u16 = 0;
pub const WRITE: u16 = 2;
pub const NEXT: u16 = 1;
pub const INDIRECT: u16 = 4;

/// A device, its memory, and how far the driver has come.
pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub device: Transport,
    pub asked: u16,
}

pub fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::create(MEMORY_BYTES, Backing::Anon).unwrap())
}

impl Driver {
    /// A device that runs, with a driver that has set it up.
    pub fn start(config: &DeviceConfig) -> Driver {
        let mut driver = Driver::create(config, memory());
        driver.device.run();
        driver.set_up(u64::MAX);
        driver
    }

    /// A device in `memory` without a driver, which does not run yet.
    pub fn create(config: &DeviceConfig, memory: Arc<GuestMemory>) -> Driver {
        let interrupt = Interrupt::new(None, 0);
        let device = Transport::create(build(config).unwrap(), Arc::clone(&memory), interrupt);
        Driver { memory, device: device.unwrap(), asked: 0 }
    }

    pub fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.device.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, register: u32, value: u32) {
        assert_eq!(self.device.write(register.into(), &value.to_le_bytes()), None);
    }

    fn set_long(&self, low: u32, value: u64) {
        self.set(low, u32::try_from(value & 0xffff_ffff).unwrap());
        self.set(low + 4, u32::try_from(value >> 32).unwrap());
    }

    /// Resets the device and takes it into use, with those of its features that are wanted.
    pub fn set_up(&mut self, wanted: u64) {
        self.reset_to_features(wanted);
        self.place_queue(DESCRIPTORS, AVAILABLE, USED);
        self.set(register::VIRTIO_MMIO_STATUS, 15);
    }

    pub fn reset_to_features(&mut self, wanted: u64) {
        self.set(register::VIRTIO_MMIO_STATUS, 0);
        self.set(register::VIRTIO_MMIO_STATUS, 3);
        for half in 0..2 {
            self.set(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(register::VIRTIO_MMIO_DEVICE_FEATURES);
            let taken = offered & u32::try_from(wanted >> (32 * half) & 0xffff_ffff).unwrap();
            self.set(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(register::VIRTIO_MMIO_DRIVER_FEATURES, taken);
        }
        self.set(register::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.get(register::VIRTIO_MMIO_STATUS), 11, "the features are refused");
        self.memory.inner().write_slice(&[0; 0x4000], GuestAddress(DESCRIPTORS)).unwrap();
        self.asked = 0;
    }

    pub fn place_queue(&self, descriptors: u64, available: u64, used: u64) {
        self.set(register::VIRTIO_MMIO_QUEUE_SEL, 0);
        self.set(register::VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        self.set_long(register::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors);
        self.set_long(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available);
        self.set_long(register::VIRTIO_MMIO_QUEUE_USED_LOW, used);
        self.set(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn describe(&self, index: u16, gpa: u64, bytes: u32, flags: u16, next: u16) {
        self.describe_at(DESCRIPTORS + 16 * u64::from(index), gpa, bytes, flags, next);
    }

    pub fn describe_at(&self, at: u64, gpa: u64, bytes: u32, flags: u16, next: u16) {
        let mut descriptor = gpa.to_le_bytes().to_vec();
        descriptor.extend_from_slice(&bytes.to_le_bytes());
        descriptor.extend_from_slice(&flags.to_le_bytes());
        descriptor.extend_from_slice(&next.to_le_bytes());
        self.memory.inner().write_slice(&descriptor, GuestAddress(at)).unwrap();
    }

    /// Makes the request that begins at a descriptor available, and tells the device.
    pub fn ask(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.asked % QUEUE_SIZE);
        self.memory.inner().write_obj(head, GuestAddress(entry)).unwrap();
        self.asked = self.asked.wrapping_add(1);
        self.memory.inner().write_obj(self.asked, GuestAddress(AVAILABLE + 2)).unwrap();
        self.set(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    pub fn used(&self) -> u16 {
        self.memory.inner().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    pub fn needs_reset(&self) -> bool {
        self.get(register::VIRTIO_MMIO_STATUS) & 64 != 0
    }

    /// Waits until all that was asked for is done. Returns the length of the last.
    pub fn wait(&self) -> u32 {
        until(|| self.used() == self.asked);
        let slot = u64::from(self.asked.wrapping_sub(1) % QUEUE_SIZE);
        self.memory.inner().read_obj(GuestAddress(USED + 4 + 8 * slot + 4)).unwrap()
    }

    pub fn wait_broken(&self) {
        until(|| self.needs_reset());
        until(|| self.get(register::VIRTIO_MMIO_INTERRUPT_STATUS) & 2 == 2);
    }

    /// Describes a request to a disk: header, data, status.
    pub fn describe_disk(&self, kind: u32, sector: u64, bytes: u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&sector.to_le_bytes());
        self.memory.inner().write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.memory.inner().write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        let to_driver = matches!(kind, blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_GET_ID);
        let direction = if to_driver { WRITE } else { READ };
        self.describe(0, HEADER, 16, NEXT, if bytes == 0 { 2 } else { 1 });
        self.describe(1, DATA, bytes, NEXT | direction, 2);
        self.describe(2, STATUS, 1, WRITE, 0);
    }

    /// Makes a request to a disk and waits for its status.
    pub fn disk(&mut self, kind: u32, sector: u64, bytes: u32) -> u32 {
        self.describe_disk(kind, sector, bytes);
        self.ask(0);
        self.wait();
        self.disk_status()
    }

    pub fn disk_status(&self) -> u32 {
        let status: u8 = self.memory.inner().read_obj(GuestAddress(STATUS)).unwrap();
        status.into()
    }

    pub fn data(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.inner().read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }

    pub fn set_data(&self, data: &[u8]) {
        self.memory.inner().write_slice(data, GuestAddress(DATA)).unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.device.dismiss();
        self.device.join(deadline());
    }
}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) {
    let deadline = deadline();
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::yield_now();
    }
}
