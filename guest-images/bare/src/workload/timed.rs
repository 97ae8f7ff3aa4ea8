//! Reads that are timed one by one, for `random` and `chase`.

use core::hint::black_box;
use core::sync::atomic::Ordering::Relaxed;

use godwit_guest::histogram::Windows;

use crate::machine::tsc;
use crate::vcpu::{Pass, Vcpu};

/// The windows of one vCPU.
pub struct Timed {
    windows: Windows,
}

impl Timed {
    /// Empty windows.
    pub fn new(vcpu: &Vcpu) -> Timed {
        let config = &vcpu.guest.config;
        let words = vcpu.guest.windows(vcpu.index);
        Timed { windows: Windows::new(words, config.cycles(config.window_ms), tsc()) }
    }

    /// To be called when a pass has begun: the time it took to print is in no window.
    pub fn begin(&mut self) {
        self.windows.restart(tsc());
    }

    /// Reads one word of a page and records how long that took.
    #[inline]
    pub fn read(&mut self, vcpu: &Vcpu, index: u64, word: usize) -> u64 {
        let page = vcpu.guest.page(index);
        let start = tsc();
        let value = black_box(page[word].load(Relaxed));
        let end = tsc();
        self.windows.record(end, end - start);
        value
    }

    /// Prints the windows that were recorded since the last time, if `pass` is printed and a window
    /// is worth it. Printing takes so long that a guest that always did it would do little else.
    pub fn print(&mut self, vcpu: &mut Vcpu, pass: &Pass) {
        if !pass.printed || !(pass.last || self.windows.is_noteworthy()) {
            return;
        }
        let index = vcpu.index;
        let (lost, windows) = self.windows.take(tsc());
        for window in windows {
            vcpu.line(format_args!("window vcpu={index} {window}"));
        }
        if lost > 0 {
            vcpu.line(format_args!("windows vcpu={index} lost={lost}"));
        }
    }
}
