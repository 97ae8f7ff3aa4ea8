//! The memory of a machine. What a page was made of is kept for the next one, as a machine keeps
//! its memory: asking the system for it again costs more than the rest of a COPY.

use std::ops::{Deref, DerefMut};

use super::folio::{HUGE, PAGE_BYTES};
use super::sync::{Arc, Mutex};

/// Memory for pages that is not in use.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pages: Mutex<Vec<Box<[u8]>>>,
    huge_pages: Mutex<Vec<Box<[u8]>>>,
}

/// The memory of a folio. It goes back to where it came from.
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

    /// Memory with any bytes, to be written to, for a page or a huge page.
    pub(super) fn any(self: &Arc<Self>, length: usize) -> Frame {
        let mut free = self.free(length).lock();
        if free.is_empty() {
            // Many pages are made at once, so that what describes them is close together.
            let count = if length == PAGE_BYTES { MADE_AT_ONCE } else { 1 };
            free.resize_with(count, || vec![0; length].into_boxed_slice());
        }
        let bytes = free.pop().expect("some were made");
        Frame { bytes, home: Some(self.clone()) }
    }

    /// Memory of this length that is not in use.
    fn free(&self, length: usize) -> &Mutex<Vec<Box<[u8]>>> {
        match length {
            PAGE_BYTES => &self.pages,
            HUGE_BYTES => &self.huge_pages,
            _ => panic!("{length} bytes are neither a page nor a huge page"),
        }
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
            let bytes = std::mem::take(&mut self.bytes);
            home.free(bytes.len()).lock().push(bytes);
        }
    }
}

const HUGE_BYTES: usize = PAGE_BYTES * 512;
const _: () = assert!(HUGE_BYTES as u64 == HUGE);
/// Pages that are asked of the system in one go.
const MADE_AT_ONCE: usize = 512;
