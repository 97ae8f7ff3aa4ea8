//! The registers of a device, mapped where they are.

// UNSAFETY: reads and writes of registers are volatile.
#![expect(unsafe_code)]

use core::arch::asm;

use super::paging;

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct Registers {
    start: u64,
}

impl Registers {
    /// Maps the registers at `start`, which lie in the hole below 4 GiB; `None` if they do not.
    pub fn map(start: u64) -> Option<Registers> {
        let in_hole = (HOLE_START..HOLE_END).contains(&start) && start.is_multiple_of(BYTES);
        in_hole.then(|| {
            paging::map_device(start);
            Registers { start }
        })
    }

    /// Reads a register.
    ///
    /// # Panics
    /// If it is not one of the device.
    pub fn read(self, offset: u64) -> u32 {
        assert!(offset < BYTES && offset.is_multiple_of(4));
        let value;
        // SAFETY: the address is mapped, and no memory. A plain `mov`, because not every host
        // interprets more. Not `nomem`: what was written for the device is written before.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) value, in(reg) self.start + offset, options(nostack));
        }
        value
    }

    /// Writes a register.
    ///
    /// # Panics
    /// If it is not one of the device.
    pub fn write(self, offset: u64, value: u32) {
        assert!(offset < BYTES && offset.is_multiple_of(4));
        // SAFETY: as in `read`; what the device does to memory in answer is done to atomics.
        unsafe {
            asm!("mov [{}], {:e}", in(reg) self.start + offset, in(reg) value, options(nostack));
        }
    }
}

const BYTES: u64 = 4096;
const HOLE_START: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;
