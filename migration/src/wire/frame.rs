//! Frames: a header of eight bytes, then a payload whose length the header gives.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{WireError, payload_max};

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = size_of::<Header>();

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

/// Kind and length of the payload, once the header is there.
pub(super) fn header(bytes: &[u8]) -> Result<Option<(Kind, usize)>, WireError> {
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

/// The frame header of a payload of `length` bytes.
pub(crate) fn frame_header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    assert!(length <= payload_max(kind), "{kind:?} of {length} bytes");
    let length = U32::new(u32::try_from(length).expect("below every payload limit"));
    let header = Header { kind: U16::new(kind as u16), reserved: U16::new(0), length };
    header.as_bytes().try_into().expect("the size of the header")
}

const _: () = assert!(HEADER_BYTES == 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        }
    }
}
