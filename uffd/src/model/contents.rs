//! What the pages of a folio hold. Copies of a page share its memory until one of them is written
//! to: copying a huge page then costs as little as copying a small one, and what is only read is
//! there once.

use super::folio::{HUGE, PAGE_BYTES};
use super::frames::{Frame, Frames};
use super::sync::Arc;

/// What a page holds; `None` while all its bytes are zero.
pub(super) type PageBytes = Option<Arc<Frame>>;

/// What the pages of a folio hold.
#[derive(Clone, Debug)]
pub(super) enum Contents {
    /// One page.
    Page(PageBytes),
    /// The 512 pages of a huge page.
    Huge(Box<[PageBytes]>),
}

impl Contents {
    /// Zeros, of a page or of a huge page.
    pub(super) fn zeros(bytes: usize) -> Contents {
        match bytes {
            PAGE_BYTES => Contents::Page(None),
            HUGE_BYTES => Contents::Huge(vec![None; HUGE_BYTES / PAGE_BYTES].into()),
            _ => panic!("{bytes} bytes are neither a page nor a huge page"),
        }
    }

    /// Given bytes, of a page or of a huge page, in memory of `frames`.
    pub(super) fn copy_of(bytes: &[u8], frames: &Arc<Frames>) -> Contents {
        let mut contents = Contents::zeros(bytes.len());
        for (page, bytes) in contents.pages_mut().iter_mut().zip(bytes.chunks_exact(PAGE_BYTES)) {
            *page = Some(Arc::new(frames.copy_of(bytes)));
        }
        contents
    }

    /// Its pages.
    pub(super) fn pages(&self) -> &[PageBytes] {
        match self {
            Contents::Page(page) => std::slice::from_ref(page),
            Contents::Huge(pages) => pages,
        }
    }

    fn pages_mut(&mut self) -> &mut [PageBytes] {
        match self {
            Contents::Page(page) => std::slice::from_mut(page),
            Contents::Huge(pages) => pages,
        }
    }

    /// How many bytes it holds.
    pub(super) fn length(&self) -> usize {
        self.pages().len() * PAGE_BYTES
    }

    /// Copies bytes out.
    pub(super) fn read(&self, mut at: usize, mut into: &mut [u8]) {
        while !into.is_empty() {
            let (page, offset) = (&self.pages()[at / PAGE_BYTES], at % PAGE_BYTES);
            let (part, rest) = into.split_at_mut(into.len().min(PAGE_BYTES - offset));
            match page {
                Some(frame) => part.copy_from_slice(&frame[offset..offset + part.len()]),
                None => part.fill(0),
            }
            (at, into) = (at + part.len(), rest);
        }
    }

    /// Stores bytes.
    pub(super) fn write(&mut self, mut at: usize, mut from: &[u8]) {
        while !from.is_empty() {
            let (page, offset) = (&mut self.pages_mut()[at / PAGE_BYTES], at % PAGE_BYTES);
            let (part, rest) = from.split_at(from.len().min(PAGE_BYTES - offset));
            own(page)[offset..offset + part.len()].copy_from_slice(part);
            (at, from) = (at + part.len(), rest);
        }
    }

    /// Takes what one page of `other` holds: `length` bytes from `from` on, which go to `at`. A
    /// whole page is shared; `None` are zeros.
    pub(super) fn take(&mut self, at: usize, length: usize, other: Option<&Contents>, from: usize) {
        let (page, offset) = (&mut self.pages_mut()[at / PAGE_BYTES], at % PAGE_BYTES);
        if length == PAGE_BYTES {
            *page = other.and_then(|other| other.pages()[from / PAGE_BYTES].clone());
            return;
        }
        let part = &mut own(page)[offset..offset + length];
        match other {
            Some(other) => other.read(from, part),
            None => part.fill(0),
        }
    }
}

/// Memory of the page's own.
fn own(page: &mut PageBytes) -> &mut [u8] {
    let frame: &mut Frame = Arc::make_mut(page.get_or_insert_with(|| Arc::new(Frame::zeroed())));
    frame
}

const HUGE_BYTES: usize = PAGE_BYTES * 512;
const _: () = assert!(HUGE_BYTES as u64 == HUGE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_memory_until_it_or_its_source_is_written_to() {
        let bytes: Vec<u8> = (0_u8..=250).cycle().take(HUGE_BYTES).collect();
        let source = Contents::copy_of(&bytes, &Arc::default());
        let mut copy = Contents::zeros(HUGE_BYTES);
        for at in (0..HUGE_BYTES).step_by(PAGE_BYTES) {
            copy.take(at, PAGE_BYTES, Some(&source), at);
        }
        let shared = |one: &Contents, two: &Contents, page: usize| match (one, two) {
            (Contents::Huge(one), Contents::Huge(two)) => {
                Arc::ptr_eq(one[page].as_ref().unwrap(), two[page].as_ref().unwrap())
            }
            other => panic!("{other:?}"),
        };
        assert!((0..512).all(|page| shared(&source, &copy, page)));
        copy.write(3 * PAGE_BYTES - 1, &[1, 2]);
        assert!((0..512).all(|page| shared(&source, &copy, page) == (page != 2 && page != 3)));
        let read = |contents: &Contents, at: usize| {
            let mut two = [0; 2];
            contents.read(at, &mut two);
            two
        };
        assert_eq!(read(&copy, 3 * PAGE_BYTES - 1), [1, 2]);
        assert_eq!(read(&source, 3 * PAGE_BYTES - 1)[..], bytes[3 * PAGE_BYTES - 1..][..2]);
        assert_eq!(copy.length(), HUGE_BYTES);
    }

    #[test]
    fn parts_of_pages_are_taken_as_they_are_and_zeros_too() {
        let source = Contents::copy_of(&[7; PAGE_BYTES], &Arc::default());
        let mut copy = Contents::zeros(PAGE_BYTES);
        copy.take(100, 10, Some(&source), 5);
        copy.take(104, 2, None, 0);
        let mut bytes = [1; 12];
        copy.read(99, &mut bytes);
        assert_eq!(bytes, [0, 7, 7, 7, 7, 0, 0, 7, 7, 7, 7, 0]);
        copy.take(0, PAGE_BYTES, None, 0);
        assert!(copy.pages()[0].is_none());
    }
}
