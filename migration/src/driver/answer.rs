//! The answer to a request for one page.

use std::io;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun};

use crate::provider::GuestPages;
use crate::wire::{Encoding, PageKind, PushFrame, RUN_HEAD_BYTES, RunHead};

/// Appends the frame with `page`, which a request that was read at `asked` wants, to `out`. It is
/// never packed: somebody waits for it.
///
/// # Errors
/// A page outside the guest.
pub(super) fn answer(
    pages: &GuestPages,
    page: PageIndex,
    asked: Instant,
    out: &mut Vec<u8>,
) -> io::Result<RunHead> {
    let (run, start) = (PageRun::one(page), out.len());
    let contents = start + RUN_HEAD_BYTES;
    out.resize(contents + pages.page_size().bytes(), 0);
    let readable = pages.read_run(run, &mut out[contents..])?.is_empty();
    let encoding = match PageKind::of(&out[contents..]) {
        _ if !readable => Encoding::Poison,
        PageKind::Zero => Encoding::Zero,
        PageKind::Word(_) | PageKind::Data | PageKind::Lost => Encoding::Raw,
    };
    if encoding != Encoding::Raw {
        out.truncate(contents);
    }
    let mut head = RunHead::new(pages.page_size(), run, encoding, &out[contents..]);
    head.service_us = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
    out[start..contents].copy_from_slice(&PushFrame::Pages(head).encode());
    Ok(head)
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
    fn an_answer_is_the_page_or_that_it_is_zero_or_lost_with_the_time_it_took() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 3 * 4096)]).unwrap();
        memory.write_slice(&[6; 4096], GuestAddress(4096)).unwrap();
        memory.write_slice(&LOST, GuestAddress(2 * 4096)).unwrap();
        let pages = GuestPages::new(Arc::new(memory), PageSize::BASE, copy_up_to_lost);
        let mut out = b"before".to_vec();
        let asked = Instant::now() - Duration::from_millis(3);
        for page in [0, 1, 2] {
            let head = answer(&pages, PageIndex(page), asked, &mut out).unwrap();
            assert!(head.service_us >= 3000, "{head:?}");
        }
        let mut rest = &out[6..];
        let answers = [(0, Encoding::Zero, 0), (1, Encoding::Raw, 4096), (2, Encoding::Poison, 0)];
        for (page, encoding, contents) in answers {
            let frame = decode(rest).unwrap().unwrap();
            rest = &rest[frame.wire_bytes()..];
            let Message::Pages(head, bytes) = Message::read(&frame, pages.paging()).unwrap() else {
                panic!("{frame:?}");
            };
            assert_eq!((head.run, head.encoding), (PageRun::one(PageIndex(page)), encoding));
            assert_eq!(bytes, vec![6; contents]);
        }
        assert!(rest.is_empty());
        assert!(answer(&pages, PageIndex(3), asked, &mut out).is_err());
    }
}
