//! The protocol on the wire: preamble, frames, messages. `PROTOCOL.md` gives them byte by byte.

mod contents;
mod frame;
mod hello;
mod message;
mod preamble;
mod run;

pub use contents::{PageKind, RunBuffer, WORD_BYTES, unpack};
pub use frame::{Frame, HEADER_BYTES, Kind, decode};
pub use hello::{BULK_HELLO_BYTES, BulkHello, RESUME_HELLO_BYTES, ResumeHello};
pub use message::{
    Abort, Accept, BitmapPart, Complete, MemslotLayout, Message, Mode, Offer, Section, encode,
    paging_of,
};
pub use preamble::{Channel, PREAMBLE_BYTES, Preamble, VERSION, VERSION_MIN, VERSION_WITH_BASE};
pub use run::{Encoding, PushFrame, RUN_HEAD_BYTES, RunHead, run_head};

use crate::limits;

/// What is wrong with bytes that a peer sent. None of these can be our own mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes are not those of this protocol.
    #[error("the peer is not godwit: it began with {first:02x?}")]
    NotGodwit {
        /// What came instead of the magic.
        first: [u8; 8],
    },
    /// No common version.
    #[error(
        "the peer speaks protocol versions {min} to {max}, this godwit {} to {}: \
         update the older one",
        preamble::VERSION_MIN,
        preamble::VERSION
    )]
    Version {
        /// The oldest that the peer accepts.
        min: u16,
        /// The newest that the peer speaks.
        max: u16,
    },
    /// A frame of a kind that does not exist.
    #[error("a frame of unknown kind {kind}")]
    Kind {
        /// The kind.
        kind: u16,
    },
    /// A frame longer than its kind allows.
    #[error("a {kind:?} frame of {length} bytes: the limit is {limit}")]
    Length {
        /// The kind of the frame.
        kind: Kind,
        /// Its length, in bytes.
        length: u64,
        /// The most (or for fixed frames, the only) length allowed.
        limit: u64,
    },
    /// A frame whose contents cannot be read.
    #[error("a damaged {kind:?} frame: {what}")]
    Damaged {
        /// The kind of the frame.
        kind: Kind,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Pages that travel in a way that does not exist.
    #[error("pages of unknown encoding {number}")]
    Encoding {
        /// The number of the encoding.
        number: u32,
    },
    /// Pages that are not those that were sent.
    #[error(
        "the checksum of pages {first}..{end} is wrong: {got:#010x} came, {expected:#010x} fits"
    )]
    Checksum {
        /// The first page of the run.
        first: u32,
        /// The page behind the last.
        end: u64,
        /// The checksum that came.
        got: u32,
        /// That of what came with it.
        expected: u32,
    },
    /// A run of pages that is empty, too long, or outside the guest.
    #[error("pages {first}..{end} of a guest of {pages} pages, at most {limit} at once")]
    Run {
        /// The first page of the run.
        first: u32,
        /// The page behind the last.
        end: u64,
        /// The number of pages of the guest.
        pages: u32,
        /// The most pages that such a run may have.
        limit: u32,
    },
}

/// The most bytes that the payload of a frame may have.
pub(crate) const fn payload_max(kind: Kind) -> usize {
    match kind {
        Kind::Pages => RUN_HEAD_BYTES - HEADER_BYTES + limits::RUN_BYTES_MAX,
        Kind::Package => limits::PACKAGE_BYTES_MAX,
        Kind::Offer | Kind::Accept => limits::CONTROL_BYTES_MAX,
        Kind::Discard | Kind::Received => 4 + limits::BITMAP_PART_BYTES_MAX,
        Kind::Refused | Kind::Abort => limits::REASON_BYTES_MAX + 64,
        Kind::Loaded
        | Kind::Grant
        | Kind::Owned
        | Kind::Request
        | Kind::PushEnd
        | Kind::Complete
        | Kind::Released
        | Kind::Alive
        | Kind::Round
        | Kind::RoundReady
        | Kind::RoundDone
        | Kind::Resumed
        | Kind::Gone => 64,
    }
}
