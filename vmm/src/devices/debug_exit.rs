//! The port by which a guest ends and leaves an exit code.

use super::bus::Device;
use crate::vm::GuestExit;

/// A write of one byte powers the machine off with that byte as the exit code.
pub(crate) struct DebugExit;

impl Device for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Option<GuestExit> {
        data.first().map(|code| GuestExit::PowerOff { code: *code })
    }
}
