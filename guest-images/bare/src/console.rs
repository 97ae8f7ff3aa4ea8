//! The serial port: one line at a time, one vCPU at a time.

use core::fmt::{self, Write};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use godwit_guest::clock::Clock;

use crate::machine::{in8, out8, tsc};

/// The 16550 at the first serial port. A byte costs an exit, 50 us on a slow machine, so the clock
/// ticks at each: printing is not one large gap, and a stall within it shows.
pub struct Console<'a> {
    clock: &'a mut Clock,
    /// Bytes that the port's queue takes before its status must be read again.
    room: u32,
}

impl Console<'_> {
    /// Sets up the port: 8 bits, no parity, queues on, no interrupts.
    pub fn prepare() {
        for (register, value) in [(INTERRUPTS, 0), (QUEUES, 7), (FORMAT, 3), (MODEM, 3)] {
            out8(PORT + register, value);
        }
    }

    /// Prints `godwit-guest: `, the text and a line feed. Waits for other vCPUs' lines.
    pub fn line(clock: &mut Clock, text: fmt::Arguments<'_>) {
        while BUSY.swap(true, Acquire) {
            while BUSY.load(Relaxed) {
                clock.tick(tsc());
                core::hint::spin_loop();
            }
        }
        let mut console = Console { clock, room: 0 };
        // The port has no errors to report.
        let _ = console.write_str("godwit-guest: ");
        let _ = console.write_fmt(text);
        let _ = console.write_str("\n");
        BUSY.store(false, Release);
    }

    /// Lets a vCPU that panicked while it printed print once more.
    pub fn release() {
        BUSY.store(false, Release);
    }

    fn byte(&mut self, byte: u8) {
        if self.room == 0 {
            self.wait_until_empty();
            self.room = QUEUE_BYTES;
        }
        self.room -= 1;
        out8(PORT, byte);
        self.clock.tick(tsc());
    }

    fn wait_until_empty(&mut self) {
        while in8(PORT + STATUS) & STATUS_EMPTY == 0 {
            self.clock.tick(tsc());
        }
        self.clock.tick(tsc());
    }
}

impl Write for Console<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.byte(byte));
        Ok(())
    }
}

static BUSY: AtomicBool = AtomicBool::new(false);

const PORT: u16 = 0x3f8;
const INTERRUPTS: u16 = 1;
const QUEUES: u16 = 2;
const FORMAT: u16 = 3;
const MODEM: u16 = 4;
const STATUS: u16 = 5;
const STATUS_EMPTY: u8 = 0x20;
const QUEUE_BYTES: u32 = 16;
