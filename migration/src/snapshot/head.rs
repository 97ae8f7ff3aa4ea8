//! The head of a file that belongs to a snapshot and is about its pages.

use std::path::Path;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SnapshotError;
use super::state::{check_id, check_version};

/// A kind of such files.
pub(super) struct Kind {
    /// How one begins.
    pub magic: [u8; 8],
    /// The newest version.
    pub version: u16,
    /// What one is called.
    pub name: &'static str,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    magic: [u8; 8],
    version: U16,
    zero: U16,
    pub pages: U32,
    id: [u8; 16],
    pub page_bytes: U32,
    /// Of what the kind of file has behind its head.
    pub body_crc: U32,
    /// Of all fields above.
    crc: U32,
}

pub(super) const HEAD_BYTES: usize = size_of::<Head>();

impl Head {
    /// The head of a file of snapshot `id`, about so many pages, with `body` behind it.
    pub fn new(kind: &Kind, id: Uuid, pages: u32, body: &[u8]) -> Head {
        let mut head = Head {
            magic: kind.magic,
            version: kind.version.into(),
            zero: 0.into(),
            pages: pages.into(),
            id: *id.as_bytes(),
            page_bytes: 4096.into(),
            body_crc: crc32c::crc32c(body).into(),
            crc: 0.into(),
        };
        head.crc = head.right_crc().into();
        head
    }

    fn right_crc(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..HEAD_BYTES - size_of::<U32>()])
    }

    /// Refuses a head that is damaged, of another kind, newer than this build, or of another
    /// snapshot than `id`.
    pub fn check(&self, kind: &Kind, path: &Path, id: Uuid) -> Result<(), SnapshotError> {
        if self.magic != kind.magic {
            let what = format!("it does not begin as {} does", kind.name);
            return Err(SnapshotError::damaged(path, &what));
        }
        if self.crc.get() != self.right_crc() {
            return Err(SnapshotError::damaged(path, "the checksum of its head is wrong"));
        }
        check_version(path, self.version.get(), kind.version)?;
        check_id(path, self.id, id)
    }
}
