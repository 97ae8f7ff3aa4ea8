//! The CMOS clock, as far as a guest must not wait for it.

use super::bus::Device;
use crate::vm::GuestExit;

/// Reads as zero: no update is in progress, and the date is none. (A guest that reads all bits set
/// from port 0x71 waits for an update to end, for seconds.) Guests take the time from kvm-clock.
pub(crate) struct Cmos;

impl Device for Cmos {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Option<GuestExit> {
        None
    }
}
