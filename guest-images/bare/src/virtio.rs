//! A driver for a virtio device with one queue, which asks for one thing at a time and looks into
//! memory until it is done.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use godwit_guest::page::Page;

use crate::machine::device::Registers;
use crate::vcpu::Vcpu;

/// A part of memory that a device reads or writes.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// The physical address.
    pub address: u64,
    /// Its length.
    pub bytes: u32,
    /// The device writes it.
    pub for_device: bool,
}

/// A device, its queue and how far that has come. The queue's page has the descriptors at 0, the
/// ring of requests at 1024, and the ring of answers at 2048.
pub struct Device {
    registers: Registers,
    queue: &'static Page,
    asked: u16,
}

impl Device {
    /// Takes a device of the kind `id` into use; an error says in which step it failed.
    pub fn start(
        start: u64,
        id: u32,
        queue: &'static Page,
        queue_address: u64,
    ) -> Result<Device, &'static str> {
        let registers = Registers::map(start).ok_or("its address is none of a device")?;
        if (registers.read(MAGIC), registers.read(VERSION)) != (u32::from_le_bytes(*b"virt"), 2) {
            return Err("there is none");
        }
        if registers.read(DEVICE_ID) != id {
            return Err("it is of another kind");
        }
        registers.write(STATUS, 0);
        registers.write(STATUS, ACKNOWLEDGED);
        // The second half has the bit for drivers of the standard; of the first none is needed.
        registers.write(DRIVER_FEATURES_SELECT, 0);
        registers.write(DRIVER_FEATURES, 0);
        registers.write(DRIVER_FEATURES_SELECT, 1);
        registers.write(DRIVER_FEATURES, 1);
        registers.write(STATUS, ACKNOWLEDGED | FEATURES_CHOSEN);
        if registers.read(STATUS) & FEATURES_CHOSEN == 0 {
            return Err("it refuses its driver");
        }
        queue.iter().for_each(|word| word.store(0, Relaxed));
        registers.write(QUEUE_SELECT, 0);
        registers.write(QUEUE_SIZE, SIZE.into());
        for (register, offset) in [(QUEUE_DESCRIPTORS, 0), (QUEUE_ASKED, ASKED), (QUEUE_DONE, DONE)]
        {
            let address = queue_address + offset;
            registers.write(register, address as u32);
            registers.write(register + 4, (address >> 32) as u32);
        }
        registers.write(QUEUE_READY, 1);
        registers.write(STATUS, ACKNOWLEDGED | FEATURES_CHOSEN | DRIVER_READY);
        Ok(Device { registers, queue, asked: 0 })
    }

    /// The first two words of the device's configuration.
    pub fn configuration(&self) -> u64 {
        let word = |at| u64::from(self.registers.read(CONFIGURATION + at));
        word(0) | word(4) << 32
    }

    /// Asks for something and waits until it is done, at most four buffers. Returns the number of
    /// bytes that the device says it wrote; none if the device has given up.
    pub fn ask(&mut self, vcpu: &mut Vcpu, buffers: &[Buffer]) -> Option<u32> {
        let count = buffers.len().min(4);
        for (at, buffer) in buffers[..count].iter().enumerate() {
            let next = if at + 1 < count { NEXT } else { 0 };
            let write = if buffer.for_device { WRITE } else { 0 };
            self.queue[2 * at].store(buffer.address, Relaxed);
            let rest = u64::from(buffer.bytes) | (next | write) << 32 | (at as u64 + 1) << 48;
            self.queue[2 * at + 1].store(rest, Relaxed);
        }
        // Every place of the ring holds descriptor 0: they stay as they are, zero.
        self.asked = self.asked.wrapping_add(1);
        fence(SeqCst);
        self.queue[ASKED as usize / 8].store(u64::from(self.asked) << 16, SeqCst);
        fence(SeqCst);
        self.registers.write(QUEUE_NOTIFY, 0);
        let mut looks = 0_u64;
        while (self.queue[DONE as usize / 8].load(SeqCst) >> 16) as u16 != self.asked {
            vcpu.step();
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_STATUS) && self.registers.read(STATUS) & BROKEN != 0 {
                return None;
            }
        }
        self.registers.write(INTERRUPT_ACKNOWLEDGE, 3);
        // An answer is four bytes behind the ring's first four and then eight for each.
        let slot = u64::from(self.asked.wrapping_sub(1) % SIZE);
        let length = DONE + 8 + 8 * slot;
        Some(self.queue[length as usize / 8].load(SeqCst) as u32)
    }
}

const SIZE: u16 = 16;
const ASKED: u64 = 1024;
const DONE: u64 = 2048;
const NEXT: u64 = 1;
const WRITE: u64 = 2;
/// A look at the status costs an exit.
const LOOKS_PER_STATUS: u64 = 1 << 22;

const ACKNOWLEDGED: u32 = 3;
const DRIVER_READY: u32 = 4;
const FEATURES_CHOSEN: u32 = 8;
const BROKEN: u32 = 64;

const MAGIC: u64 = 0;
const VERSION: u64 = 0x4;
const DEVICE_ID: u64 = 0x8;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESCRIPTORS: u64 = 0x80;
const QUEUE_ASKED: u64 = 0x90;
const QUEUE_DONE: u64 = 0xa0;
const CONFIGURATION: u64 = 0x100;
