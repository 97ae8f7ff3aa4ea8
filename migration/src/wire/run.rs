//! Runs of pages: which pages, how they travel, and a checksum over both.

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{HEADER_BYTES, Kind, frame_header, header};
use super::{WORD_BYTES, WireError};
use crate::limits;
use crate::page::Paging;

/// Bytes of the header of a page frame with the head of its run.
pub const RUN_HEAD_BYTES: usize = HEADER_BYTES + size_of::<Run>();

/// The head of a run as it travels.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Run {
    first: U32,
    count: U32,
    encoding: U32,
    service_us: U32,
    crc: U32,
    reserved: U32,
}

/// How the pages of a run travel. A number is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// All bytes of all pages are zero; no contents follow.
    Zero = 1,
    /// Every eight bytes of all pages are the same; they follow once.
    Word = 2,
    /// One lz4 block of all pages together, which is shorter than they are.
    Lz4 = 3,
    /// The source cannot read these pages; no contents follow.
    Poison = 4,
    /// They are those of the base that both sides have; no contents follow, but the checksum is
    /// that of the pages. Only on bulk channels, from version 3 on.
    Same = 5,
}

impl Encoding {
    /// All of them, in the order of their numbers.
    pub const ALL: [Encoding; 6] = [
        Encoding::Raw,
        Encoding::Zero,
        Encoding::Word,
        Encoding::Lz4,
        Encoding::Poison,
        Encoding::Same,
    ];

    fn of(number: u32) -> Result<Encoding, WireError> {
        let known = Encoding::ALL.into_iter().find(|&encoding| encoding as u32 == number);
        known.ok_or(WireError::Encoding { number })
    }

    /// Whoever receives contents has room for so many pages; others only need a place each.
    fn pages_max(self, size: PageSize) -> u32 {
        match self {
            Encoding::Raw | Encoding::Word | Encoding::Lz4 | Encoding::Same => {
                limits::data_pages_per_run_max(size)
            }
            Encoding::Zero | Encoding::Poison => limits::ZERO_PAGES_PER_RUN_MAX,
        }
    }

    /// Whether `bytes` of contents can be those of pages that are `raw` bytes long.
    fn takes(self, bytes: usize, raw: usize) -> bool {
        match self {
            Encoding::Raw => bytes == raw,
            Encoding::Zero | Encoding::Poison | Encoding::Same => bytes == 0,
            Encoding::Word => bytes == WORD_BYTES,
            Encoding::Lz4 => 0 < bytes && bytes < raw,
        }
    }
}

/// The head of a page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHead {
    /// The pages.
    pub run: PageRun,
    /// How they travel.
    pub encoding: Encoding,
    /// Microseconds from reading the request to queueing this answer; 0 for what nobody asked for.
    pub service_us: u32,
    page_size: PageSize,
    content_bytes: usize,
    crc: u32,
}

impl RunHead {
    /// The head of `run`, pages of `page_size` whose contents on the wire are `contents`.
    ///
    /// # Panics
    /// If these cannot be the contents of such a run.
    pub fn new(page_size: PageSize, run: PageRun, encoding: Encoding, contents: &[u8]) -> RunHead {
        let (content_bytes, raw) = (contents.len(), page_size.length_of(run.count));
        assert!(encoding.takes(content_bytes, raw), "{run}: {content_bytes} {encoding:?}");
        let crc = checksum(run, encoding as u32, contents);
        RunHead { run, encoding, service_us: 0, page_size, content_bytes, crc }
    }

    /// The head of `run`, whose `pages` of `page_size` the destination has in its base.
    ///
    /// # Panics
    /// If these are not as many bytes as the pages.
    pub fn same(page_size: PageSize, run: PageRun, pages: &[u8]) -> RunHead {
        assert_eq!(pages.len(), page_size.length_of(run.count), "{run}");
        let (encoding, crc) = (Encoding::Same, checksum(run, Encoding::Same as u32, pages));
        RunHead { run, encoding, service_us: 0, page_size, content_bytes: 0, crc }
    }

    /// Bytes of contents that follow the head.
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }

    /// Bytes of the pages themselves.
    pub fn page_bytes(&self) -> usize {
        self.page_size.length_of(self.run.count)
    }

    /// Bytes of the whole frame.
    pub fn wire_bytes(&self) -> usize {
        RUN_HEAD_BYTES + self.content_bytes
    }

    /// Checks the run and `contents`, all that followed the head or the pages of the base, against
    /// the checksum in it.
    ///
    /// # Errors
    /// A bit of them is not what the source sent, or has in its base.
    pub fn verify(&self, contents: &[u8]) -> Result<(), WireError> {
        let expected = checksum(self.run, self.encoding as u32, contents);
        if self.crc != expected {
            let (first, end) = (self.run.first.0, self.run.end());
            return Err(WireError::Checksum { first, end, got: self.crc, expected });
        }
        Ok(())
    }

    /// Reads a run, behind which `content_bytes` follow, for a guest of these pages.
    fn read(run: Run, content_bytes: usize, paging: Paging) -> Result<RunHead, WireError> {
        let Paging { size: page_size, count: pages } = paging;
        let encoding = Encoding::of(run.encoding.get())?;
        let (service_us, crc) = (run.service_us.get(), run.crc.get());
        let run = PageRun { first: PageIndex(run.first.get()), count: run.count.get() };
        let (limit, end) = (encoding.pages_max(page_size), run.end());
        if run.count == 0 || run.count > limit || end > u64::from(pages) {
            return Err(WireError::Run { first: run.first.0, end, pages, limit });
        }
        if !encoding.takes(content_bytes, page_size.length_of(run.count)) {
            return Err(not_as_long(Kind::Pages));
        }
        Ok(RunHead { run, encoding, service_us, page_size, content_bytes, crc })
    }

    fn write(&self) -> Run {
        Run {
            first: U32::new(self.run.first.0),
            count: U32::new(self.run.count),
            encoding: U32::new(self.encoding as u32),
            service_us: U32::new(self.service_us),
            crc: U32::new(self.crc),
            reserved: U32::new(0),
        }
    }
}

fn not_as_long(kind: Kind) -> WireError {
    WireError::Damaged { kind, what: "not as long as its run" }
}

/// CRC-32C over what says which pages these are, and then over their contents: a page that would be
/// put in another's place is found like a byte that changed. The time of service is left out; it is
/// known only after the contents are.
fn checksum(run: PageRun, encoding: u32, contents: &[u8]) -> u32 {
    let fields = [run.first.0, run.count, encoding].map(U32::new);
    crc32c::crc32c_append(crc32c::crc32c(fields.as_bytes()), contents)
}

/// Reads the head of a run from the payload of a page frame, and gives what follows it. The
/// checksum is that of both.
///
/// # Errors
/// A payload that is shorter or longer than its run, a run that is not in a guest of these pages, a
/// wrong checksum, or pages of a base, which nobody asks for.
pub fn run_head(payload: &[u8], paging: Paging) -> Result<(RunHead, &[u8]), WireError> {
    let Ok((run, contents)) = Run::read_from_prefix(payload) else {
        return Err(WireError::Damaged { kind: Kind::Pages, what: "shorter than its head" });
    };
    let head = RunHead::read(run, contents.len(), paging)?;
    if head.encoding == Encoding::Same {
        let what = "pages of a base on the urgent channel";
        return Err(WireError::Damaged { kind: Kind::Pages, what });
    }
    head.verify(contents)?;
    Ok((head, contents))
}

/// What comes on a bulk channel. Each frame there begins with a head of the same size, so that a
/// receiver reads head and contents by exactly one call each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushFrame {
    /// Pages; their contents follow, and are still to be verified.
    Pages(RunHead),
    /// The end.
    End,
}

impl PushFrame {
    /// The head to send; the contents follow it.
    pub fn encode(self) -> [u8; RUN_HEAD_BYTES] {
        let (kind, run, contents) = match self {
            PushFrame::Pages(head) => (Kind::Pages, head.write(), head.content_bytes),
            PushFrame::End => (Kind::PushEnd, Run { crc: end_checksum(), ..Run::new_zeroed() }, 0),
        };
        let mut bytes = [0; RUN_HEAD_BYTES];
        let length = size_of::<Run>() + contents;
        bytes[..HEADER_BYTES].copy_from_slice(&frame_header(kind, length));
        bytes[HEADER_BYTES..].copy_from_slice(run.as_bytes());
        bytes
    }

    /// Reads the head of a frame of a bulk channel of a guest of these pages.
    ///
    /// # Errors
    /// A frame that has no place on a bulk channel, or whose length does not fit its run.
    pub fn decode(bytes: &[u8; RUN_HEAD_BYTES], paging: Paging) -> Result<PushFrame, WireError> {
        let (kind, length) = header(bytes)?.expect("longer than a header");
        let (run, _) = Run::read_from_prefix(&bytes[HEADER_BYTES..]).expect("the size of a run");
        let contents = length.checked_sub(size_of::<Run>());
        let contents = contents.ok_or_else(|| not_as_long(kind))?;
        match kind {
            Kind::Pages => Ok(PushFrame::Pages(RunHead::read(run, contents, paging)?)),
            Kind::PushEnd => decode_end(run, contents),
            kind => Err(WireError::Damaged { kind, what: "not for a bulk channel" }),
        }
    }
}

fn end_checksum() -> U32 {
    U32::new(checksum(PageRun { first: PageIndex(0), count: 0 }, 0, &[]))
}

fn decode_end(run: Run, contents: usize) -> Result<PushFrame, WireError> {
    let kind = Kind::PushEnd;
    if contents > 0 {
        return Err(not_as_long(kind));
    }
    let end = Run { crc: end_checksum(), ..Run::new_zeroed() };
    if run.as_bytes() != end.as_bytes() {
        return Err(WireError::Damaged { kind, what: "its checksum is wrong" });
    }
    Ok(PushFrame::End)
}

const _: () = assert!(RUN_HEAD_BYTES == 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    /// All of a large guest.
    const BASE: Paging = Paging::base(1 << 20);
    const HUGE: Paging = Paging { size: PageSize::HUGE, count: 1 << 20 };

    /// A run of each encoding with contents that it can have, and one of a huge page.
    fn samples() -> [(RunHead, Vec<u8>); 7] {
        let huge = [
            (run(3, 1), Encoding::Raw, vec![5; 2 << 20]),
            (run(4, 1), Encoding::Lz4, vec![5; (2 << 20) - 1]),
        ]
        .map(|(run, encoding, contents)| (PageSize::HUGE, run, encoding, contents));
        let base = [
            (run(3, 64), Encoding::Raw, vec![5; 64 * 4096]),
            (run(0, 1 << 20), Encoding::Zero, vec![]),
            (run(9, 2), Encoding::Word, vec![1, 2, 3, 4, 5, 6, 7, 8]),
            (run(70, 1), Encoding::Lz4, vec![7; 4095]),
            (run(8, 1000), Encoding::Poison, vec![]),
        ]
        .map(|(run, encoding, contents)| (PageSize::BASE, run, encoding, contents));
        let mut samples = base.into_iter().chain(huge).map(|(size, run, encoding, contents)| {
            (RunHead::new(size, run, encoding, &contents), contents)
        });
        std::array::from_fn(|_| samples.next().expect("seven"))
    }

    /// The pages of a guest that has the run.
    fn paging(head: &RunHead) -> Paging {
        if head.page_size == PageSize::HUGE { HUGE } else { BASE }
    }

    #[test]
    fn a_push_head_survives_the_wire_and_verifies_its_contents() {
        for (head, contents) in samples() {
            let frame = PushFrame::Pages(RunHead { service_us: 17, ..head });
            let read = PushFrame::decode(&frame.encode(), paging(&head));
            let Ok(PushFrame::Pages(read)) = read else { panic!("{frame:?}: {read:?}") };
            assert_eq!(PushFrame::Pages(read), frame);
            assert_eq!(read.verify(&contents), Ok(()));
        }
        assert_eq!(PushFrame::decode(&PushFrame::End.encode(), BASE), Ok(PushFrame::End));
    }

    #[test]
    fn a_checksum_is_the_known_one() {
        // "123456789" is the customary check; twelve zero bytes stand before it here.
        let end = PushFrame::End.encode();
        assert_eq!(end[24..28], crc32c::crc32c(&[0; 12]).to_le_bytes());
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let head = RunHead::new(PageSize::BASE, run(0x0403_0201, 1), Encoding::Word, b"abcdefgh");
        let bytes = b"\x01\x02\x03\x04\x01\0\0\0\x02\0\0\0abcdefgh";
        assert_eq!(head.crc, crc32c::crc32c(bytes));
    }

    #[test]
    fn runs_outside_the_guest_or_its_limits_are_refused() {
        let refused = |paging: Paging, run: PageRun, encoding: Encoding| {
            let crc = U32::new(checksum(run, encoding as u32, &[]));
            let zero = U32::new(0);
            let run = Run {
                first: U32::new(run.first.0),
                count: U32::new(run.count),
                encoding: U32::new(encoding as u32),
                service_us: zero,
                crc,
                reserved: zero,
            };
            let read = RunHead::read(run, 0, paging);
            assert!(matches!(read, Err(WireError::Run { .. })), "{read:?}");
        };
        for (paging, data_max) in [(BASE, 64), (HUGE, 1)] {
            refused(paging, run(paging.count - 1, 2), Encoding::Zero);
            refused(paging, run(u32::MAX, u32::MAX), Encoding::Zero);
            refused(paging, run(5, 0), Encoding::Zero);
            for encoding in [Encoding::Raw, Encoding::Word, Encoding::Lz4, Encoding::Same] {
                refused(paging, run(0, data_max + 1), encoding);
            }
            for encoding in [Encoding::Zero, Encoding::Poison] {
                let paging = Paging { count: u32::MAX, ..paging };
                refused(paging, run(0, limits::ZERO_PAGES_PER_RUN_MAX + 1), encoding);
            }
        }
    }

    #[test]
    fn contents_of_a_length_that_the_encoding_cannot_have_are_refused() {
        for (encoding, lengths) in [
            (Encoding::Raw, vec![0, 4096, 8191, 8193]),
            (Encoding::Zero, vec![1, 8192]),
            (Encoding::Word, vec![0, 7, 9, 8192]),
            (Encoding::Lz4, vec![0, 8192, 8193]),
            (Encoding::Poison, vec![1, 8192]),
            (Encoding::Same, vec![1, 8192]),
        ] {
            let run = Run {
                count: U32::new(2),
                encoding: U32::new(encoding as u32),
                ..Run::new_zeroed()
            };
            for length in lengths {
                let read = RunHead::read(run, length, Paging::base(1000));
                assert!(matches!(read, Err(WireError::Damaged { .. })), "{encoding:?} {length}");
            }
        }
    }

    #[test]
    fn an_unknown_encoding_is_named() {
        let mut bytes = PushFrame::Pages(samples()[1].0).encode();
        bytes[16] = 6;
        assert_eq!(PushFrame::decode(&bytes, BASE), Err(WireError::Encoding { number: 6 }));
    }

    #[test]
    fn pages_of_a_base_have_no_contents_and_the_checksum_of_the_pages() {
        let pages = vec![8; 2 * 4096];
        let head = RunHead::same(PageSize::BASE, run(7, 2), &pages);
        assert_eq!((head.content_bytes(), head.page_bytes()), (0, 8192));
        let bytes = PushFrame::Pages(head).encode();
        assert_eq!(PushFrame::decode(&bytes, Paging::base(9)), Ok(PushFrame::Pages(head)));
        assert_eq!(head.verify(&pages), Ok(()));
        let mut changed = pages.clone();
        changed[8191] ^= 1;
        assert!(matches!(head.verify(&changed), Err(WireError::Checksum { .. })));
        assert_ne!(RunHead::same(PageSize::BASE, run(8, 2), &pages).crc, head.crc);
        // Whoever asks for a page has nothing to compare with, and is sent the page.
        assert!(matches!(
            run_head(&bytes[HEADER_BYTES..], Paging::base(9)),
            Err(WireError::Damaged { .. })
        ));
    }

    #[test]
    fn an_end_with_a_flipped_bit_is_none() {
        let end = PushFrame::End.encode();
        for bit in 64..RUN_HEAD_BYTES * 8 {
            let mut bytes = end;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(PushFrame::decode(&bytes, Paging::base(1000)).is_err(), "bit {bit}");
        }
    }

    proptest! {
        /// Wherever a bit flips that says which pages these are or what is in them, it is found.
        #[test]
        fn a_flipped_bit_is_found(sample in 0usize..7, at: prop::sample::Index, bit in 0u8..8) {
            let (head, contents) = samples()[sample].clone();
            let paging = paging(&head);
            let mut frame = PushFrame::Pages(head).encode().to_vec();
            frame.extend(&contents);
            // The header and the fields of the run, but not its time of service and what is
            // reserved, and the contents.
            let mut covered: Vec<usize> = (0..20).chain(24..28).collect();
            covered.extend(RUN_HEAD_BYTES..frame.len());
            let at = covered[at.index(covered.len())];
            // Two bytes of the header mean nothing yet.
            prop_assume!(!(2..4).contains(&at));
            frame[at] ^= 1 << bit;
            let (head, contents) = frame.split_at(RUN_HEAD_BYTES);
            let found = match PushFrame::decode(head.try_into().unwrap(), paging) {
                Ok(PushFrame::Pages(head)) => head.verify(contents).is_err(),
                Ok(PushFrame::End) => false,
                Err(_) => true,
            };
            prop_assert!(found, "byte {at}");
        }

        #[test]
        fn any_head_decodes_to_something_or_an_error(bytes: [u8; RUN_HEAD_BYTES], rest: Vec<u8>) {
            let _ = run_head(&rest, Paging::base(1000));
            let mut page_frame = bytes;
            page_frame[..HEADER_BYTES].copy_from_slice(&frame_header(Kind::Pages, 24));
            for (bytes, paging) in [(bytes, BASE), (page_frame, BASE), (page_frame, HUGE)] {
                if let Ok(PushFrame::Pages(head)) = PushFrame::decode(&bytes, paging) {
                    prop_assert!(head.content_bytes() <= limits::run_bytes_max(paging.size));
                    let _ = head.verify(&[]);
                }
            }
        }
    }
}
