//! Frames: a header of eight bytes, then a payload whose length the header gives.

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{WireError, payload_max};
use crate::limits;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = size_of::<Header>();
/// Bytes of the header of a page frame with the head of its run.
pub const RUN_HEAD_BYTES: usize = HEADER_BYTES + size_of::<Run>();

/// The kinds of frames. A number is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Source: the guest that wants to come.
    Offer = 1,
    /// Destination: the guest is welcome; the session of its channels.
    Accept = 2,
    /// Source: the state of vCPUs and devices.
    Package = 3,
    /// Destination: everything is loaded and nothing has run.
    Loaded = 4,
    /// Source: the guest is yours.
    Grant = 5,
    /// Destination: I own the guest, it runs here.
    Owned = 6,
    /// Destination, after a grant: I have barred myself from ever running it.
    Refused = 7,
    /// Either, before the grant: no migration; why.
    Abort = 8,
    /// Destination: send these pages at once.
    Request = 9,
    /// Source: pages.
    Pages = 10,
    /// Source, on a bulk channel: nothing more comes on it.
    PushEnd = 11,
    /// Destination: all pages are here.
    Complete = 12,
    /// Source, in answer to Complete: the source keeps nothing.
    Released = 13,
    /// Either: nothing to say, still here.
    Alive = 14,
    /// Source, before the switchover: what you have of these pages is old.
    Discard = 15,
    /// Source: all is discarded that this round of the push will bring.
    Round = 16,
    /// Destination: the round may begin.
    RoundReady = 17,
    /// Destination: all bulk channels have ended the round.
    RoundDone = 18,
    /// Destination, of a session that goes on: these pages are here.
    Received = 19,
    /// Destination: all that is here was named, the session goes on.
    Resumed = 20,
    /// Destination, asked for a session that it had: the guest ran here and is gone.
    Gone = 21,
}

impl Kind {
    fn of(number: u16) -> Result<Kind, WireError> {
        const KINDS: [Kind; 21] = [
            Kind::Offer,
            Kind::Accept,
            Kind::Package,
            Kind::Loaded,
            Kind::Grant,
            Kind::Owned,
            Kind::Refused,
            Kind::Abort,
            Kind::Request,
            Kind::Pages,
            Kind::PushEnd,
            Kind::Complete,
            Kind::Released,
            Kind::Alive,
            Kind::Discard,
            Kind::Round,
            Kind::RoundReady,
            Kind::RoundDone,
            Kind::Received,
            Kind::Resumed,
            Kind::Gone,
        ];
        KINDS.into_iter().find(|&k| k as u16 == number).ok_or(WireError::Kind { kind: number })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U16,
    reserved: U16,
    length: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Run {
    first: U32,
    count: U32,
    encoding: U32,
    reserved: U32,
}

/// How the pages of a run travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// All bytes of all pages are zero; no contents follow.
    Zero,
}

impl Encoding {
    fn number(self) -> u32 {
        match self {
            Encoding::Raw => 0,
            Encoding::Zero => 1,
        }
    }

    fn pages_max(self) -> u32 {
        match self {
            Encoding::Raw => limits::DATA_PAGES_PER_RUN_MAX,
            Encoding::Zero => limits::ZERO_PAGES_PER_RUN_MAX,
        }
    }
}

/// The head of a page frame: which pages, and how they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHead {
    /// The pages.
    pub run: PageRun,
    /// How they travel.
    pub encoding: Encoding,
}

impl RunHead {
    /// Bytes of page contents that follow the head.
    pub fn content_bytes(self) -> usize {
        match self.encoding {
            Encoding::Raw => self.run.count as usize * PageSize::BASE.bytes(),
            Encoding::Zero => 0,
        }
    }

    /// Checks the run against a guest of `pages` pages.
    ///
    /// # Errors
    /// A run that is empty, too long for its encoding, or reaches outside the guest.
    pub fn check(self, pages: u32) -> Result<RunHead, WireError> {
        let limit = self.encoding.pages_max();
        let fits = self.run.end() <= u64::from(pages);
        if self.run.count == 0 || self.run.count > limit || !fits {
            let (first, end) = (self.run.first.0, self.run.end());
            return Err(WireError::Run { first, end, pages, limit });
        }
        Ok(self)
    }
}

/// One frame, in a buffer that holds all of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// What is in it.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of the whole frame on the wire.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }
}

/// The first frame in `bytes`, or `None` if more bytes are needed.
///
/// # Errors
/// An unknown kind, or a length beyond the limit of its kind: found before the payload is there.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, WireError> {
    let Some((kind, length)) = header(bytes)? else {
        return Ok(None);
    };
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + length);
    Ok(payload.map(|payload| Frame { kind, payload }))
}

fn header(bytes: &[u8]) -> Result<Option<(Kind, usize)>, WireError> {
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        return Ok(None);
    };
    let kind = Kind::of(header.kind.get())?;
    let (length, limit) = (header.length.get() as usize, payload_max(kind));
    if length > limit {
        let (length, limit) = (length as u64, limit as u64);
        return Err(WireError::Length { kind, length, limit });
    }
    Ok(Some((kind, length)))
}

/// Reads the head of a run from the payload of a page frame, and gives what follows it.
///
/// # Errors
/// A payload that is shorter or longer than its run, or a run that is not in a guest of `pages`.
pub fn run_head(payload: &[u8], pages: u32) -> Result<(RunHead, &[u8]), WireError> {
    let Ok((run, contents)) = Run::read_from_prefix(payload) else {
        return Err(WireError::Damaged { kind: Kind::Pages, what: "shorter than its head" });
    };
    let head = parse_run(run)?.check(pages)?;
    if contents.len() != head.content_bytes() {
        return Err(WireError::Damaged { kind: Kind::Pages, what: "not as long as its run" });
    }
    Ok((head, contents))
}

fn parse_run(run: Run) -> Result<RunHead, WireError> {
    let encoding = match run.encoding.get() {
        0 => Encoding::Raw,
        1 => Encoding::Zero,
        _ => {
            return Err(WireError::Damaged { kind: Kind::Pages, what: "unknown encoding" });
        }
    };
    let run = PageRun { first: PageIndex(run.first.get()), count: run.count.get() };
    Ok(RunHead { run, encoding })
}

/// The frame header of a payload of `length` bytes.
pub(crate) fn frame_header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    assert!(length <= payload_max(kind), "{kind:?} of {length} bytes");
    let length = U32::new(u32::try_from(length).expect("below every payload limit"));
    let header = Header { kind: U16::new(kind as u16), reserved: U16::new(0), length };
    header.as_bytes().try_into().expect("the size of the header")
}

/// What comes on a bulk channel. Each frame there begins with a head of the same size, so that a
/// receiver reads head and contents by exactly one call each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushFrame {
    /// Pages; their contents follow.
    Pages(RunHead),
    /// The end.
    End,
}

impl PushFrame {
    /// The head to send; the contents follow it.
    pub fn encode(self) -> [u8; RUN_HEAD_BYTES] {
        let (kind, run, contents) = match self {
            PushFrame::Pages(head) => {
                let run = Run {
                    first: U32::new(head.run.first.0),
                    count: U32::new(head.run.count),
                    encoding: U32::new(head.encoding.number()),
                    reserved: U32::new(0),
                };
                (Kind::Pages, run, head.content_bytes())
            }
            PushFrame::End => (Kind::PushEnd, Run::new_zeroed(), 0),
        };
        let mut bytes = [0; RUN_HEAD_BYTES];
        let length = size_of::<Run>() + contents;
        bytes[..HEADER_BYTES].copy_from_slice(&frame_header(kind, length));
        bytes[HEADER_BYTES..].copy_from_slice(run.as_bytes());
        bytes
    }

    /// Reads the head of a frame of a bulk channel of a guest of `pages` pages.
    ///
    /// # Errors
    /// A frame that has no place on a bulk channel, or whose length does not fit its run.
    pub fn decode(bytes: &[u8; RUN_HEAD_BYTES], pages: u32) -> Result<PushFrame, WireError> {
        let (kind, length) = header(bytes)?.expect("longer than a header");
        let (run, _) = Run::read_from_prefix(&bytes[HEADER_BYTES..]).expect("the size of a run");
        let (frame, contents) = match kind {
            Kind::Pages => {
                let head = parse_run(run)?.check(pages)?;
                (PushFrame::Pages(head), head.content_bytes())
            }
            Kind::PushEnd => (PushFrame::End, 0),
            kind => {
                return Err(WireError::Damaged { kind, what: "not for a bulk channel" });
            }
        };
        if length != size_of::<Run>() + contents {
            return Err(WireError::Damaged { kind, what: "not as long as its run" });
        }
        Ok(frame)
    }
}

const _: () = assert!(HEADER_BYTES == 8);
const _: () = assert!(RUN_HEAD_BYTES == 24);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(first: u32, count: u32, encoding: Encoding) -> RunHead {
        RunHead { run: PageRun { first: PageIndex(first), count }, encoding }
    }

    #[test]
    fn a_push_head_survives_the_wire() {
        for frame in [
            PushFrame::Pages(pages(3, 64, Encoding::Raw)),
            PushFrame::Pages(pages(0, 1 << 20, Encoding::Zero)),
            PushFrame::End,
        ] {
            assert_eq!(PushFrame::decode(&frame.encode(), 1 << 20), Ok(frame));
        }
    }

    #[test]
    fn runs_outside_the_guest_or_its_limits_are_refused() {
        let refused = |head: RunHead| {
            assert!(matches!(head.check(100), Err(WireError::Run { .. })), "{head:?}");
        };
        refused(pages(99, 2, Encoding::Raw));
        refused(pages(u32::MAX, u32::MAX, Encoding::Zero));
        refused(pages(5, 0, Encoding::Zero));
        refused(pages(0, limits::DATA_PAGES_PER_RUN_MAX + 1, Encoding::Raw));
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_there() {
        let mut bytes = frame_header(Kind::Abort, 0);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(WireError::Length { kind: Kind::Abort, .. })));
        let huge = (1u64 << 63).to_le_bytes();
        assert!(matches!(decode(&huge), Err(WireError::Kind { kind: 0 })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_or_an_error(bytes: Vec<u8>) {
            if let Ok(Some(frame)) = decode(&bytes) {
                prop_assert!(frame.wire_bytes() <= bytes.len());
            }
            let _ = run_head(&bytes, 1000);
            if let Ok(head) = <[u8; RUN_HEAD_BYTES]>::try_from(bytes.get(..24).unwrap_or(&[])) {
                let _ = PushFrame::decode(&head, 1000);
            }
        }
    }
}
