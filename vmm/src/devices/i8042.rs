//! The keyboard controller, as far as a guest uses it to reset the machine.

use super::bus::Device;
use crate::vm::GuestExit;

/// Ports 0x60 to 0x64 with no keyboard: only the status register and the reset command.
pub(crate) struct I8042;

impl Device for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // "Output buffer full": a stock kernel that probes for a keyboard waits for no answer.
        data.fill(u8::from(offset == STATUS));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<GuestExit> {
        let reset = offset == STATUS && data.first() == Some(&RESET);
        reset.then_some(GuestExit::Reset)
    }
}

/// The status and command register, port 0x64.
const STATUS: u64 = 4;
const RESET: u8 = 0xfe;
