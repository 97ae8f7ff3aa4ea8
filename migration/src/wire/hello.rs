//! What follows the preamble on a channel that belongs to a session.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes behind the preamble of a bulk channel.
pub const BULK_HELLO_BYTES: usize = size_of::<RawBulk>();
/// Bytes behind the preamble of a channel that resumes a session.
pub const RESUME_HELLO_BYTES: usize = size_of::<RawResume>();

/// Which session a bulk channel belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkHello {
    /// From `Accept`.
    pub session: [u8; 16],
    /// How often the session has been resumed; a channel of an earlier epoch comes too late.
    pub epoch: u32,
}

/// A source that was granted away a guest and lost its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeHello {
    /// Which guest.
    pub guest: Uuid,
    /// The transfer that was granted.
    pub transfer: u64,
    /// From `Accept`.
    pub session: [u8; 16],
    /// Larger than that of every attempt before.
    pub epoch: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBulk {
    session: [u8; 16],
    epoch: U32,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawResume {
    guest: [u8; 16],
    transfer: U64,
    session: [u8; 16],
    epoch: U32,
    reserved: U32,
}

impl BulkHello {
    /// The bytes to send.
    pub fn encode(self) -> [u8; BULK_HELLO_BYTES] {
        let (epoch, reserved) = (U32::new(self.epoch), U32::new(0));
        let raw = RawBulk { session: self.session, epoch, reserved };
        raw.as_bytes().try_into().expect("its own size")
    }

    /// Reads what a peer sent.
    pub fn decode(bytes: &[u8; BULK_HELLO_BYTES]) -> BulkHello {
        let raw = RawBulk::read_from_bytes(bytes).expect("its own size");
        BulkHello { session: raw.session, epoch: raw.epoch.get() }
    }
}

impl ResumeHello {
    /// The bytes to send.
    pub fn encode(self) -> [u8; RESUME_HELLO_BYTES] {
        let raw = RawResume {
            guest: *self.guest.as_bytes(),
            transfer: U64::new(self.transfer),
            session: self.session,
            epoch: U32::new(self.epoch),
            reserved: U32::new(0),
        };
        raw.as_bytes().try_into().expect("its own size")
    }

    /// Reads what a peer sent.
    pub fn decode(bytes: &[u8; RESUME_HELLO_BYTES]) -> ResumeHello {
        let raw = RawResume::read_from_bytes(bytes).expect("its own size");
        ResumeHello {
            guest: Uuid::from_bytes(raw.guest),
            transfer: raw.transfer.get(),
            session: raw.session,
            epoch: raw.epoch.get(),
        }
    }
}

const _: () = assert!(BULK_HELLO_BYTES == 24);
const _: () = assert!(RESUME_HELLO_BYTES == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_survive_the_wire() {
        let bulk = BulkHello { session: [7; 16], epoch: 3 };
        assert_eq!(BulkHello::decode(&bulk.encode()), bulk);
        let guest = Uuid::from_u128(9);
        let resume = ResumeHello { guest, transfer: 1 << 40, session: [8; 16], epoch: u32::MAX };
        assert_eq!(ResumeHello::decode(&resume.encode()), resume);
    }
}
