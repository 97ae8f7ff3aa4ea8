//! The contents of runs: what pages are, how they are packed for the wire and unpacked again.

use godwit_uffd::page::{PageRun, PageSize};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::run::{Encoding, PushFrame, RUN_HEAD_BYTES, RunHead};
use super::{Kind, WireError};
use crate::limits::{data_pages_per_run_max, run_bytes_max};

/// Bytes of the word of a run of [`Encoding::Word`].
pub const WORD_BYTES: usize = 8;

/// Pages of one repeated word that are fewer bytes than this go as data with those around them:
/// frames of their own would cost both sides more than their bytes do.
const WORD_STRETCH_BYTES_MIN: usize = 16 << 10;

/// What the bytes of a page are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Zero.
    Zero,
    /// This word, over and over.
    Word([u8; WORD_BYTES]),
    /// Something else.
    Data,
    /// Nothing that anybody can read.
    Lost,
}

impl PageKind {
    /// Of `page`, one page of bytes. Looks no further than the first word that differs.
    pub fn of(page: &[u8]) -> PageKind {
        // All words are the same if each is the one before it.
        if page[WORD_BYTES..] != page[..page.len() - WORD_BYTES] {
            return PageKind::Data;
        }
        let word: [u8; WORD_BYTES] = page[..WORD_BYTES].try_into().expect("a page is longer");
        if word == [0; WORD_BYTES] { PageKind::Zero } else { PageKind::Word(word) }
    }
}

/// The pages of one run between guest memory and the wire: read once, looked at, packed and sent
/// while the core still has them in its cache.
pub struct RunBuffer {
    page_size: PageSize,
    /// Room for a head, then the pages. The head of a run that begins at a later page is written
    /// over the end of the page before it, which has been sent by then: head and contents are one
    /// piece without a copy.
    bytes: Vec<u8>,
    kinds: Vec<PageKind>,
    /// Room for a head, then an lz4 block.
    packed: Vec<u8>,
    table: CompressTable,
}

impl RunBuffer {
    /// Room for as many pages of `page_size` as one run may have.
    pub fn new(page_size: PageSize) -> RunBuffer {
        RunBuffer {
            page_size,
            bytes: vec![0; RUN_HEAD_BYTES + run_bytes_max(page_size)],
            kinds: Vec::with_capacity(data_pages_per_run_max(page_size) as usize),
            packed: Vec::new(),
            table: CompressTable::large(),
        }
    }

    /// Where the bytes of the next `count` pages go, at most as many as one run may have.
    pub fn pages_mut(&mut self, count: u32) -> &mut [u8] {
        &mut self.bytes[RUN_HEAD_BYTES..][..self.page_size.length_of(count)]
    }

    /// The bytes of `count` pages from page `at` of the buffer on, before the pages before them are
    /// framed or right after.
    pub fn pages(&self, at: u32, count: u32) -> &[u8] {
        let size = self.page_size;
        &self.bytes[RUN_HEAD_BYTES + size.length_of(at)..][..size.length_of(count)]
    }

    /// What the first `count` pages are, as stretches of the same kind: kind and length. Those at
    /// `lost` could not be read.
    pub fn stretches(
        &mut self,
        count: u32,
        lost: impl IntoIterator<Item = u32>,
    ) -> Vec<(PageKind, u32)> {
        let page_bytes = self.page_size.bytes();
        let pages = self.bytes[RUN_HEAD_BYTES..].chunks_exact(page_bytes).take(count as usize);
        self.kinds.clear();
        self.kinds.extend(pages.map(PageKind::of));
        for page in lost {
            self.kinds[page as usize] = PageKind::Lost;
        }
        for stretch in self.kinds.chunk_by_mut(PageKind::eq) {
            let short = stretch.len() * page_bytes < WORD_STRETCH_BYTES_MIN;
            if short && matches!(stretch[0], PageKind::Word(_)) {
                stretch.fill(PageKind::Data);
            }
        }
        let lengths = |stretch: &[PageKind]| {
            (stretch[0], u32::try_from(stretch.len()).expect("at most the run"))
        };
        self.kinds.chunk_by(PageKind::eq).map(lengths).collect()
    }

    /// The frame that carries `run`, whose first page is page `at` of the buffer: packed if it
    /// shall be and gets shorter by that. The pages before it must have been sent.
    pub fn frame(&mut self, run: PageRun, at: u32, pack: bool) -> (RunHead, &[u8]) {
        let (size, start) = (self.page_size, self.page_size.length_of(at));
        let end = RUN_HEAD_BYTES + start + size.length_of(run.count);
        if pack && let Some(bytes) = self.pack(RUN_HEAD_BYTES + start..end) {
            return seal(&mut self.packed[..bytes], size, run, Encoding::Lz4);
        }
        seal(&mut self.bytes[start..end], size, run, Encoding::Raw)
    }

    /// Packs a part of the buffer behind the room for a head; the bytes of both, if the part got
    /// shorter.
    fn pack(&mut self, part: std::ops::Range<usize>) -> Option<usize> {
        let pages = &self.bytes[part];
        let longest = get_maximum_output_size(run_bytes_max(self.page_size));
        self.packed.resize(RUN_HEAD_BYTES + longest, 0);
        let room = &mut self.packed[RUN_HEAD_BYTES..];
        let packed = compress_into_with_table(pages, room, &mut self.table);
        let packed = packed.expect("room for the longest block");
        (packed < pages.len()).then_some(RUN_HEAD_BYTES + packed)
    }
}

impl std::fmt::Debug for RunBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunBuffer").finish_non_exhaustive()
    }
}

/// Writes the head of `run` before its contents in `frame`.
fn seal(
    frame: &mut [u8],
    page_size: PageSize,
    run: PageRun,
    encoding: Encoding,
) -> (RunHead, &[u8]) {
    let (room, contents) = frame.split_at_mut(RUN_HEAD_BYTES);
    let head = RunHead::new(page_size, run, encoding, contents);
    room.copy_from_slice(&PushFrame::Pages(head).encode());
    (head, frame)
}

/// Unpacks the verified `contents` of a run to `out`, which is as long as its pages.
///
/// # Errors
/// A block that is none, or whose bytes are not as many as those of the pages.
///
/// # Panics
/// If the run is one whose pages need no unpacking.
pub fn unpack(head: &RunHead, contents: &[u8], out: &mut [u8]) -> Result<(), WireError> {
    assert_eq!(out.len(), head.page_bytes());
    let damaged = |what| WireError::Damaged { kind: Kind::Pages, what };
    match head.encoding {
        Encoding::Lz4 => match decompress_into(contents, out) {
            Ok(bytes) if bytes == out.len() => Ok(()),
            Ok(_) => Err(damaged("an lz4 block that is shorter than its run")),
            Err(_) => Err(damaged("not an lz4 block of its run")),
        },
        Encoding::Word => {
            out.chunks_exact_mut(WORD_BYTES).for_each(|word| word.copy_from_slice(contents));
            Ok(())
        }
        Encoding::Raw | Encoding::Zero | Encoding::Poison | Encoding::Same => {
            unreachable!("{:?} is not packed", head.encoding)
        }
    }
}

#[cfg(test)]
mod tests {
    use godwit_uffd::page::PageIndex;
    use proptest::prelude::*;

    use super::*;
    use crate::page::Paging;

    const PAGE: usize = PageSize::BASE.bytes();

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    /// What a receiver makes of a frame of base pages.
    fn received(frame: &[u8]) -> Result<(RunHead, Vec<u8>), WireError> {
        received_of(PageSize::BASE, frame)
    }

    /// What a receiver makes of a frame of pages of this size.
    fn received_of(size: PageSize, frame: &[u8]) -> Result<(RunHead, Vec<u8>), WireError> {
        let (head, contents) = frame.split_at(RUN_HEAD_BYTES);
        let paging = Paging { size, count: 1 << 20 };
        let frame = PushFrame::decode(head.try_into().expect("a head"), paging)?;
        let PushFrame::Pages(head) = frame else { panic!("the end") };
        head.verify(contents)?;
        let mut pages = vec![0xee; head.page_bytes()];
        match head.encoding {
            Encoding::Raw => pages.copy_from_slice(contents),
            _ => unpack(&head, contents, &mut pages)?,
        }
        Ok((head, pages))
    }

    #[test]
    fn pages_are_told_apart_to_the_last_byte() {
        assert_eq!(PageKind::of(&[0; PAGE]), PageKind::Zero);
        assert_eq!(PageKind::of(&[9; PAGE]), PageKind::Word([9; 8]));
        for at in [0, 7, 8, 2048, PAGE - 1] {
            for fill in [0, 9] {
                let mut page = [fill; PAGE];
                page[at] ^= 1;
                assert_eq!(PageKind::of(&page), PageKind::Data, "{at}");
            }
        }
    }

    #[test]
    fn short_stretches_of_words_are_data() {
        let mut buffer = RunBuffer::new(PageSize::BASE);
        let fills = [1, 0, 0, 2, 2, 2, 2, 3, 3, 3];
        for (page, fill) in buffer.pages_mut(10).chunks_exact_mut(PAGE).zip(fills) {
            page.fill(fill);
        }
        buffer.pages_mut(10)[PAGE - 1] = 7;
        let (data, zero, word) = (PageKind::Data, PageKind::Zero, PageKind::Word([2; 8]));
        assert_eq!(buffer.stretches(10, []), [(data, 1), (zero, 2), (word, 4), (data, 3)]);
        // What cannot be read is that, whatever the buffer has in its place.
        let lost = PageKind::Lost;
        let stretches = buffer.stretches(10, [0, 1, 4]);
        assert_eq!(stretches, [(lost, 2), (zero, 1), (data, 1), (lost, 1), (data, 5)]);
    }

    #[test]
    fn frames_follow_each_other_out_of_one_buffer() {
        let mut buffer = RunBuffer::new(PageSize::BASE);
        for (number, page) in buffer.pages_mut(4).chunks_exact_mut(PAGE).enumerate() {
            page.fill(u8::try_from(number).unwrap());
            page[5] = 99;
        }
        for (at, count, pack) in [(0, 1, false), (1, 2, true), (3, 1, false)] {
            let (sealed, frame) = buffer.frame(run(70 + at, count), at, pack);
            let (head, pages) = received(frame).unwrap();
            assert_eq!((head, head.run), (sealed, run(70 + at, count)));
            assert_eq!(head.encoding == Encoding::Lz4, pack);
            for (number, page) in pages.chunks_exact(PAGE).enumerate() {
                let fill = u8::try_from(at as usize + number).unwrap();
                assert_eq!((page[0], page[5], page[PAGE - 1]), (fill, 99, fill));
            }
        }
    }

    #[test]
    fn a_huge_page_travels_whole_in_each_way() {
        let size = PageSize::HUGE;
        let mut buffer = RunBuffer::new(size);
        assert_eq!(buffer.stretches(1, []), [(PageKind::Zero, 1)]);
        buffer.pages_mut(1).fill(7);
        assert_eq!(buffer.stretches(1, []), [(PageKind::Word([7; 8]), 1)]);
        for (at, pack) in [(0, false), (size.bytes() / 2, true), (size.bytes() - 1, true)] {
            buffer.pages_mut(1)[at] ^= 1;
            assert_eq!(buffer.stretches(1, []), [(PageKind::Data, 1)], "{at}");
            let page = buffer.pages_mut(1).to_vec();
            assert!(buffer.pages(0, 1) == page, "{at}");
            let (sealed, frame) = buffer.frame(run(9, 1), 0, pack);
            let wanted = if pack { Encoding::Lz4 } else { Encoding::Raw };
            assert_eq!((sealed.encoding, sealed.page_bytes()), (wanted, size.bytes()));
            let (head, received) = received_of(size, frame).unwrap();
            assert_eq!(head, sealed);
            assert!(received == page, "{at}");
        }
        // The same frame is none of a guest with base pages.
        let (_, frame) = buffer.frame(run(9, 1), 0, false);
        assert!(matches!(received(frame), Err(WireError::Damaged { .. })));
    }

    #[test]
    fn what_would_not_get_shorter_goes_as_it_is() {
        let mut buffer = RunBuffer::new(PageSize::BASE);
        let mut seed = 1u64;
        for byte in buffer.pages_mut(2) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8;
        }
        assert_eq!(buffer.frame(run(0, 2), 0, true).0.encoding, Encoding::Raw);
    }

    #[test]
    fn a_word_run_has_its_word_everywhere() {
        let word = [1, 2, 3, 4, 5, 6, 7, 8];
        let frame =
            PushFrame::Pages(RunHead::new(PageSize::BASE, run(4, 3), Encoding::Word, &word));
        let frame = [&frame.encode()[..], &word].concat();
        let (head, pages) = received(&frame).unwrap();
        assert_eq!((head.run, head.encoding), (run(4, 3), Encoding::Word));
        assert!(pages.chunks_exact(8).all(|found| found == word));
    }

    #[test]
    fn a_block_of_another_size_is_refused_whatever_it_holds() {
        for (packed, claimed) in [(3, 2), (1, 2), (64, 1)] {
            let pages = vec![3; packed * PAGE];
            let block = lz4_flex::block::compress(&pages);
            let mut frame = vec![0; RUN_HEAD_BYTES];
            frame.extend(&block);
            seal(&mut frame, PageSize::BASE, run(0, claimed), Encoding::Lz4);
            assert!(matches!(received(&frame), Err(WireError::Damaged { .. })), "{packed}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            words in prop::collection::vec(0u8..4, 1..40),
            count in 1u32..5,
            pack: bool,
        ) {
            let mut buffer = RunBuffer::new(PageSize::BASE);
            let bytes = words.iter().copied().cycle();
            let pages = buffer.pages_mut(count);
            pages.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
            let sent = pages.to_vec();
            let (sealed, frame) = buffer.frame(run(7, count), 0, pack);
            let (head, pages) = received(frame).unwrap();
            prop_assert_eq!(head, sealed);
            prop_assert!(pages == sent);
        }

        #[test]
        fn any_block_is_unpacked_or_refused(block in prop::collection::vec(any::<u8>(), 1..200)) {
            let mut frame = vec![0; RUN_HEAD_BYTES];
            frame.extend(&block);
            seal(&mut frame, PageSize::BASE, run(0, 1), Encoding::Lz4);
            let _ = received(&frame);
        }
    }
}
