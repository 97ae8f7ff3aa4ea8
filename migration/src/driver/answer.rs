//! The answer to a request for pages.

use std::io;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun};

use crate::provider::GuestPages;
use crate::wire::{Encoding, PageKind, PushFrame, RUN_HEAD_BYTES, RunBuffer, RunHead};

/// Appends the frames with the pages of `run`, which a request that was read at `asked` wants, to
/// `out`, and returns their heads. They are never packed: somebody waits for them. `buffer` is room
/// for the pages.
///
/// # Errors
/// Pages outside the guest.
pub(super) fn answer(
    pages: &GuestPages,
    run: PageRun,
    asked: Instant,
    buffer: &mut RunBuffer,
    out: &mut Vec<u8>,
) -> io::Result<Vec<RunHead>> {
    let lost = pages.read_run(run, buffer.pages_mut(run.count))?;
    let lost = lost.iter().map(|page| page.0 - run.first.0);
    let (mut heads, mut at) = (Vec::new(), 0);
    for (kind, count) in buffer.stretches(run.count, lost) {
        let piece = PageRun { first: PageIndex(run.first.0 + at), count };
        let start = out.len();
        let mut head = match kind {
            PageKind::Zero => RunHead::new(pages.page_size(), piece, Encoding::Zero, &[]),
            PageKind::Lost => RunHead::new(pages.page_size(), piece, Encoding::Poison, &[]),
            PageKind::Word(_) | PageKind::Data => {
                let (head, frame) = buffer.frame(piece, at, false);
                out.extend_from_slice(frame);
                head
            }
        };
        head.service_us = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
        out.resize(out.len().max(start + RUN_HEAD_BYTES), 0);
        out[start..start + RUN_HEAD_BYTES].copy_from_slice(&PushFrame::Pages(head).encode());
        heads.push(head);
        at += count;
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use godwit_uffd::page::PageSize;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::provider::{LOST, copy_up_to_lost};
    use crate::wire::{Message, decode};

    #[test]
    fn an_answer_is_the_pages_or_that_they_are_zero_or_lost_with_the_time_it_took() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 6 * 4096)]).unwrap();
        for (page, fill) in [(1, 6), (3, 7), (4, 8)] {
            memory.write_slice(&[fill; 4096], GuestAddress(page * 4096)).unwrap();
        }
        memory.write_slice(&LOST, GuestAddress(2 * 4096)).unwrap();
        let pages = GuestPages::new(Arc::new(memory), PageSize::BASE, copy_up_to_lost);
        let (mut buffer, mut out) = (RunBuffer::new(PageSize::BASE), b"before".to_vec());
        let asked = Instant::now() - Duration::from_millis(3);
        for (first, count) in [(0, 1), (1, 5)] {
            let run = PageRun { first: PageIndex(first), count };
            for head in answer(&pages, run, asked, &mut buffer, &mut out).unwrap() {
                assert!(head.service_us >= 3000, "{head:?}");
            }
        }
        let mut rest = &out[6..];
        let both = [[7; 4096], [8; 4096]].concat();
        for (first, count, encoding, contents) in [
            (0, 1, Encoding::Zero, &[][..]),
            (1, 1, Encoding::Raw, &[6; 4096]),
            (2, 1, Encoding::Poison, &[]),
            (3, 2, Encoding::Raw, &both),
            (5, 1, Encoding::Zero, &[]),
        ] {
            let frame = decode(rest).unwrap().unwrap();
            rest = &rest[frame.wire_bytes()..];
            let Message::Pages(head, bytes) = Message::read(&frame, pages.paging()).unwrap() else {
                panic!("{frame:?}");
            };
            head.verify(bytes).unwrap();
            assert_eq!((head.run.first.0, head.run.count, head.encoding), (first, count, encoding));
            assert!(bytes == contents && head.service_us >= 3000, "{head:?}");
        }
        assert!(rest.is_empty());
        let outside = PageRun { first: PageIndex(5), count: 2 };
        assert!(answer(&pages, outside, asked, &mut buffer, &mut out).is_err());
    }
}
