//! The PIT: silent by default, or a periodic interrupt at the first vCPU.

use super::{cpus, out8};

/// Starts the timer with `hz` interrupts per second, 19 to 10000, at the vCPU that calls this.
pub fn start(hz: u64) {
    cpus::accept_pic();
    let [low, high, ..] = (PIT_HZ / hz).to_le_bytes();
    out8(PIT_CONTROL, RATE_GENERATOR);
    out8(PIT_CHANNEL_0, low);
    out8(PIT_CHANNEL_0, high);
    out8(PIC_MASK, !TIMER_LINE);
}

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;
const RATE_GENERATOR: u8 = 0x34;
/// ring0.S has set up the PIC, with all lines masked.
const PIC_MASK: u16 = 0x21;
const TIMER_LINE: u8 = 1;
