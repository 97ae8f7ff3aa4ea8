//! A value that the first vCPU sets before the others start.

// UNSAFETY: a value set by one vCPU and then read by others, in a cell.
#![expect(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};

/// Set once, then shared by all vCPUs.
pub struct Once<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by the one caller that moves the state from EMPTY, and is read only
// after the state is SET, which happens after the write.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// An empty cell.
    pub const fn new() -> Once<T> {
        Once { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Sets the value.
    ///
    /// # Panics
    /// If it has been set before.
    pub fn set(&'static self, value: T) -> &'static T {
        let was = self.state.compare_exchange(EMPTY, BEING_SET, AcqRel, Acquire);
        assert!(was.is_ok(), "set twice");
        // SAFETY: only one caller comes past the exchange, and nobody reads before SET.
        let value: &'static T = unsafe { (*self.value.get()).write(value) };
        self.state.store(SET, Release);
        value
    }

    /// The value.
    ///
    /// # Panics
    /// If it has not been set.
    pub fn get(&'static self) -> &'static T {
        assert!(self.state.load(Acquire) == SET, "not set yet");
        // SAFETY: SET is stored after the value was written, and it is not written again.
        unsafe { (*self.value.get()).assume_init_ref() }
    }
}

const EMPTY: u8 = 0;
const BEING_SET: u8 = 1;
const SET: u8 = 2;
