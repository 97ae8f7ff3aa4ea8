//! The messages of a userfaultfd as bytes. Everything here is a pure function of its input, and no
//! input makes it panic.
//!
//! We decode ourselves although the `userfaultfd` crate can. The crate turns a fault whose reason
//! it does not know into a missing page, gives up all messages behind one that it does not know,
//! and tells a thread number also where the kernel has not filled it in.

use thiserror::Error;

use crate::abi::{MESSAGE_BYTES, RawMessage};

/// Bytes that are not a message, or a message without a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The bytes end inside a message.
    #[error("{bytes} bytes at the end of a read, and a message has {MESSAGE_BYTES}")]
    Length {
        /// How many are left.
        bytes: usize,
    },
    /// The kind is not known.
    #[error("a message of unknown kind {kind:#04x}")]
    Kind {
        /// The first byte.
        kind: u8,
    },
    /// The flags of a fault name no reason, or several.
    #[error("a fault with the flags {flags:#x}, which are not one known reason")]
    Flags {
        /// The flag bits.
        flags: u64,
    },
}

const PAGEFAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

/// Where the argument begins: behind the kind and seven reserved bytes, which are not looked at
/// because a kernel that gives them a meaning asks for consent first.
const ARGUMENT: usize = 8;

/// Decodes one message.
///
/// # Errors
///
/// [`MessageError::Kind`] if the kind is not known.
pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Result<RawMessage, MessageError> {
    Ok(match bytes[0] {
        PAGEFAULT => RawMessage::Pagefault {
            flags: word(bytes, 0),
            address: word(bytes, 1),
            ptid: half_word(bytes, 2),
        },
        FORK => RawMessage::Fork { fd: half_word(bytes, 0) },
        REMAP => {
            RawMessage::Remap { from: word(bytes, 0), to: word(bytes, 1), len: word(bytes, 2) }
        }
        REMOVE => RawMessage::Remove { start: word(bytes, 0), end: word(bytes, 1) },
        UNMAP => RawMessage::Unmap { start: word(bytes, 0), end: word(bytes, 1) },
        kind => return Err(MessageError::Kind { kind }),
    })
}

/// Decodes what one read has returned. One message that is not known does not hide the others.
pub fn decode_all(bytes: &[u8]) -> impl Iterator<Item = Result<RawMessage, MessageError>> + '_ {
    let (messages, rest) = bytes.as_chunks::<MESSAGE_BYTES>();
    let rest = (!rest.is_empty()).then_some(Err(MessageError::Length { bytes: rest.len() }));
    messages.iter().map(decode).chain(rest)
}

/// The bytes of a message, as the kernel lays them out.
pub fn encode(message: RawMessage) -> [u8; MESSAGE_BYTES] {
    let (kind, words) = match message {
        RawMessage::Pagefault { flags, address, ptid } => {
            (PAGEFAULT, [flags, address, u64::from(ptid)])
        }
        RawMessage::Fork { fd } => (FORK, [u64::from(fd), 0, 0]),
        RawMessage::Remap { from, to, len } => (REMAP, [from, to, len]),
        RawMessage::Remove { start, end } => (REMOVE, [start, end, 0]),
        RawMessage::Unmap { start, end } => (UNMAP, [start, end, 0]),
    };
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[0] = kind;
    for (place, word) in bytes[ARGUMENT..].chunks_exact_mut(size_of::<u64>()).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The 64-bit word at `index` of the argument.
fn word(bytes: &[u8; MESSAGE_BYTES], index: usize) -> u64 {
    let at = ARGUMENT + index * size_of::<u64>();
    u64::from_ne_bytes(bytes[at..at + size_of::<u64>()].try_into().expect("eight bytes"))
}

/// The 32 bits at the start of that word.
fn half_word(bytes: &[u8; MESSAGE_BYTES], index: usize) -> u32 {
    let at = ARGUMENT + index * size_of::<u64>();
    u32::from_ne_bytes(bytes[at..at + size_of::<u32>()].try_into().expect("four bytes"))
}

const _: () = assert!(ARGUMENT + 3 * size_of::<u64>() == MESSAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: [RawMessage; 5] = [
        RawMessage::Pagefault { flags: 5, address: 0x7fff_0123_4000, ptid: u32::MAX },
        RawMessage::Fork { fd: 7 },
        RawMessage::Remap { from: 1 << 40, to: 2 << 40, len: u64::MAX },
        RawMessage::Remove { start: 0x1000, end: 0x3000 },
        RawMessage::Unmap { start: 0x3000, end: 0x1000 },
    ];

    #[test]
    fn what_is_encoded_is_decoded() {
        for message in EACH {
            assert_eq!(decode(&encode(message)), Ok(message));
        }
        let bytes: Vec<u8> = EACH.into_iter().flat_map(encode).collect();
        let decoded: Result<Vec<_>, _> = decode_all(&bytes).collect();
        assert_eq!(decoded, Ok(EACH.to_vec()));
    }

    #[test]
    fn the_layout_is_the_kernels() {
        let bytes = encode(RawMessage::Pagefault { flags: 3, address: 0x1122_3344, ptid: 0x55 });
        assert_eq!(bytes[..8], [0x12, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], 3_u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 0x1122_3344_u64.to_ne_bytes());
        assert_eq!(bytes[24..28], 0x55_u32.to_ne_bytes());
    }

    #[test]
    fn an_unknown_kind_is_an_error_and_hides_no_other() {
        for kind in (0..=u8::MAX).filter(|kind| !(PAGEFAULT..=UNMAP).contains(kind)) {
            let mut bytes = encode(EACH[1]);
            bytes[0] = kind;
            assert_eq!(decode(&bytes), Err(MessageError::Kind { kind }));
            let all = [bytes, encode(EACH[3])].concat();
            let decoded: Vec<_> = decode_all(&all).collect();
            assert_eq!(decoded, [Err(MessageError::Kind { kind }), Ok(EACH[3])]);
        }
    }

    #[test]
    fn a_cut_message_is_an_error_behind_the_whole_ones() {
        let bytes: Vec<u8> = EACH[..2].iter().flat_map(|&message| encode(message)).collect();
        for length in 33..64 {
            let decoded: Vec<_> = decode_all(&bytes[..length]).collect();
            assert_eq!(decoded, [Ok(EACH[0]), Err(MessageError::Length { bytes: length - 32 })]);
        }
        assert_eq!(decode_all(&[]).count(), 0);
    }
}
