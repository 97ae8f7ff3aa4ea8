//! The memory of a machine. What a page was made of is kept for the next one, as a machine keeps
//! its memory: asking the system for it again costs more than the rest of a COPY.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::folio::{HUGE, PAGE_BYTES};
use super::sync::{Arc, Mutex};

/// A line of a processor's cache. Pages begin with one: a copy between pages that are aligned
/// unlike each other takes up to four times as long.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Memory for pages that is not in use.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pages: Mutex<Vec<Box<[Line]>>>,
    huge_pages: Mutex<Vec<Box<[Line]>>>,
}

/// The memory of a folio, of whole lines.
#[derive(Debug)]
pub(super) struct Frame {
    lines: Box<[Line]>,
    /// Where it goes back to; otherwise it goes back to the system.
    home: Option<Arc<Frames>>,
}

impl Frames {
    /// Memory with given bytes, of a page or of a huge page.
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
            free.resize_with(count, || zeros(length));
        }
        let lines = free.pop().expect("some were made");
        Frame { lines, home: Some(self.clone()) }
    }

    /// Memory of this length that is not in use.
    fn free(&self, length: usize) -> &Mutex<Vec<Box<[Line]>>> {
        match length {
            PAGE_BYTES => &self.pages,
            HUGE_BYTES => &self.huge_pages,
            _ => panic!("{length} bytes are neither a page nor a huge page"),
        }
    }
}

impl Frame {
    /// Memory of its own with zeros.
    pub(super) fn zeroed(length: usize) -> Frame {
        Frame { lines: zeros(length), home: None }
    }

    /// Memory of its own with given bytes.
    pub(super) fn copy_of(bytes: &[u8]) -> Frame {
        let mut frame = Frame::zeroed(bytes.len());
        frame.copy_from_slice(bytes);
        frame
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.lines.as_bytes()
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.lines.as_mut_bytes()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let lines = std::mem::take(&mut self.lines);
            home.free(lines.len() * LINE_BYTES).lock().push(lines);
        }
    }
}

fn zeros(length: usize) -> Box<[Line]> {
    vec![Line([0; LINE_BYTES]); length.div_ceil(LINE_BYTES)].into_boxed_slice()
}

const LINE_BYTES: usize = 64;
const HUGE_BYTES: usize = PAGE_BYTES * 512;
const _: () = assert!(HUGE_BYTES as u64 == HUGE);
/// Pages that are asked of the system in one go.
const MADE_AT_ONCE: usize = 512;
