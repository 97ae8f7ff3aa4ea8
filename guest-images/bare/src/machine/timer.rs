//! The PIC and the PIT: silence by default, or a periodic interrupt at the first vCPU.

use super::{cpus, out8};

/// Moves the PIC's vectors out of the way of the exceptions and masks all of its lines; with `hz`
/// starts the timer. To be called once, by the first vCPU.
pub fn start(hz: u64) {
    let mask = if hz == 0 { 0xff } else { 0xfe };
    for (port, value) in [
        (PIC1, 0x11),
        (PIC1 + 1, VECTOR_FIRST),
        (PIC1 + 1, 4),
        (PIC1 + 1, 1),
        (PIC2, 0x11),
        (PIC2 + 1, VECTOR_FIRST + 8),
        (PIC2 + 1, 2),
        (PIC2 + 1, 1),
        (PIC2 + 1, 0xff),
        (PIC1 + 1, mask),
    ] {
        out8(port, value);
    }
    if hz == 0 {
        return;
    }
    cpus::accept_pic();
    let [low, high, ..] = (PIT_HZ / hz).to_le_bytes();
    out8(PIT_CONTROL, 0x34);
    out8(PIT_CHANNEL_0, low);
    out8(PIT_CHANNEL_0, high);
}

const PIC1: u16 = 0x20;
const PIC2: u16 = 0xa0;
const VECTOR_FIRST: u8 = 32;
const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;
