//! The memory of a machine. What a page was made of is kept for the next one, as a machine keeps
//! its memory: asking the system for it again costs more than the rest of a COPY.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::folio::PAGE_BYTES;
use super::sync::{Arc, Mutex};

/// A line of a processor's cache. Pages begin with one: a copy between pages that are aligned
/// unlike each other takes up to four times as long.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Memory for pages that is not in use.
#[derive(Debug, Default)]
pub(super) struct Frames(Mutex<Vec<Box<[Line]>>>);

/// The memory of a page.
#[derive(Debug)]
pub(super) struct Frame {
    lines: Box<[Line]>,
    /// Where it goes back to; otherwise it goes back to the system.
    home: Option<Arc<Frames>>,
}

impl Frames {
    /// Memory with the bytes of a page.
    pub(super) fn copy_of(self: &Arc<Self>, bytes: &[u8]) -> Frame {
        let mut free = self.0.lock();
        if free.is_empty() {
            // Many pages are made at once, so that what describes them is close together.
            free.resize_with(MADE_AT_ONCE, zeros);
        }
        let lines = free.pop().expect("some were made");
        drop(free);
        let mut frame = Frame { lines, home: Some(self.clone()) };
        frame.copy_from_slice(bytes);
        frame
    }
}

impl Frame {
    /// Memory of its own with zeros.
    pub(super) fn zeroed() -> Frame {
        Frame { lines: zeros(), home: None }
    }
}

impl Clone for Frame {
    fn clone(&self) -> Frame {
        match &self.home {
            Some(home) => home.copy_of(self),
            None => Frame { lines: self.lines.clone(), home: None },
        }
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
            home.0.lock().push(std::mem::take(&mut self.lines));
        }
    }
}

fn zeros() -> Box<[Line]> {
    vec![Line([0; LINE_BYTES]); PAGE_BYTES / LINE_BYTES].into_boxed_slice()
}

const LINE_BYTES: usize = 64;
/// Pages that are asked of the system in one go.
const MADE_AT_ONCE: usize = 512;
