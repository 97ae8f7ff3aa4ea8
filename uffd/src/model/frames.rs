//! The memory of a machine. What a page was made of is kept for the next one, as a machine keeps
//! its memory: asking the system for it again costs more than the rest of a COPY.

use std::ops::{Deref, DerefMut};

use super::folio::PAGE_BYTES;
use super::sync::{Arc, Mutex};

/// Memory for pages that is not in use.
#[derive(Debug, Default)]
pub(super) struct Frames {
    free: Mutex<Vec<Box<[u8]>>>,
}

/// The memory of a folio. That of a single page goes back to where it came from.
#[derive(Debug)]
pub(super) struct Frame {
    bytes: Box<[u8]>,
    home: Option<Arc<Frames>>,
}

impl Frames {
    /// Memory with given bytes.
    pub(super) fn copy_of(self: &Arc<Self>, bytes: &[u8]) -> Frame {
        let mut frame = self.any(bytes.len());
        frame.copy_from_slice(bytes);
        frame
    }

    /// Memory with any bytes, to be written to.
    pub(super) fn any(self: &Arc<Self>, length: usize) -> Frame {
        if length != PAGE_BYTES {
            return Frame::from(vec![0; length].into_boxed_slice());
        }
        Frame { bytes: self.page(), home: Some(self.clone()) }
    }

    /// One page. Many are made at once, so that what describes them is close together in memory.
    fn page(&self) -> Box<[u8]> {
        let mut free = self.free.lock();
        if free.is_empty() {
            free.resize_with(MADE_AT_ONCE, || vec![0; PAGE_BYTES].into_boxed_slice());
        }
        free.pop().expect("some were made")
    }
}

impl From<Box<[u8]>> for Frame {
    /// Memory that goes back to the system.
    fn from(bytes: Box<[u8]>) -> Frame {
        Frame { bytes, home: None }
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.free.lock().push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Pages that are asked of the system in one go.
const MADE_AT_ONCE: usize = 512;
