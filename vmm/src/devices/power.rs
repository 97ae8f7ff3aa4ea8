//! The registers by which an operating system that reads ACPI tables switches the machine off, and
//! resets it.

use super::bus::Device;
use crate::vm::GuestExit;

/// The first port.
pub(crate) const PORTS_START: u16 = 0x600;
/// The number of ports.
pub(crate) const PORT_COUNT: u64 = 3;
/// ACPI's sleep control register.
pub(crate) const SLEEP_CONTROL: u16 = PORTS_START;
/// ACPI's sleep status register. Nothing ever wakes up here, so it reads as zero.
pub(crate) const SLEEP_STATUS: u16 = PORTS_START + 1;
/// ACPI's reset register.
pub(crate) const RESET: u16 = PORTS_START + 2;
/// What is written to [`RESET`].
pub(crate) const RESET_VALUE: u8 = 1;
/// What stands for "off" among the sleep types; the tables say it.
pub(crate) const TYPE_OFF: u8 = 5;

/// The three registers.
pub(crate) struct Power;

impl Device for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<GuestExit> {
        let value = *data.first()?;
        match PORTS_START + u16::try_from(offset).ok()? {
            SLEEP_CONTROL if value & ENABLE != 0 && value >> TYPE_SHIFT & 7 == TYPE_OFF => {
                Some(GuestExit::PowerOff { code: 0 })
            }
            RESET if value == RESET_VALUE => Some(GuestExit::Reset),
            _ => None,
        }
    }
}

const TYPE_SHIFT: u32 = 2;
const ENABLE: u8 = 1 << 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_tables_say_ends_the_guest() {
        let off = TYPE_OFF << TYPE_SHIFT;
        assert_eq!(Power.write(0, &[off | ENABLE]), Some(GuestExit::PowerOff { code: 0 }));
        assert_eq!(Power.write(0, &[off]), None);
        assert_eq!(Power.write(0, &[ENABLE]), None);
        assert_eq!(Power.write(2, &[RESET_VALUE]), Some(GuestExit::Reset));
        assert_eq!(Power.write(2, &[0]), None);
        assert_eq!(Power.write(1, &[off | ENABLE]), None);
    }
}
