//! The state file: sections of vCPUs and devices, opaque here.

use std::path::Path;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SnapshotError;
use crate::limits::PACKAGE_BYTES_MAX;
use crate::wire::Section;

const MAGIC: [u8; 8] = *b"\x89GWSTAT\n";
const VERSION: u16 = 1;
/// Most sections.
const SECTIONS_MAX: u32 = 4096;
/// Most bytes of the file.
pub(super) const STATE_BYTES_MAX: u64 = PACKAGE_BYTES_MAX as u64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    zero: U16,
    sections: U32,
    id: [u8; 16],
    /// Of the whole file.
    bytes: U64,
    /// Of all fields above.
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SectionHead {
    id: U16,
    version: U16,
    bytes: U32,
    /// Of all fields above and of what follows.
    crc: U32,
}

const CRC_BYTES: usize = size_of::<U32>();

fn section_crc(head: &SectionHead, contents: &[u8]) -> u32 {
    let above = &head.as_bytes()[..size_of::<SectionHead>() - CRC_BYTES];
    crc32c::crc32c_append(crc32c::crc32c(above), contents)
}

/// The file of snapshot `id` with `sections`.
pub(super) fn encode(id: Uuid, sections: &[Section]) -> Vec<u8> {
    let contents: usize = sections.iter().map(|section| section.bytes.len()).sum();
    let bytes = size_of::<Header>() + sections.len() * size_of::<SectionHead>() + contents;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        zero: 0.into(),
        sections: u32::try_from(sections.len()).expect("a handful").into(),
        id: *id.as_bytes(),
        bytes: (bytes as u64).into(),
        crc: 0.into(),
    };
    header.crc = crc32c::crc32c(&header.as_bytes()[..size_of::<Header>() - CRC_BYTES]).into();
    let mut out = header.as_bytes().to_vec();
    for section in sections {
        let mut head = SectionHead {
            id: section.id.into(),
            version: section.version.into(),
            bytes: u32::try_from(section.bytes.len()).expect("a section is small").into(),
            crc: 0.into(),
        };
        head.crc = section_crc(&head, &section.bytes).into();
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&section.bytes);
    }
    out
}

/// The sections in `bytes`, which are all of the file at `path` of snapshot `id`.
pub(super) fn decode(path: &Path, id: Uuid, bytes: &[u8]) -> Result<Vec<Section>, SnapshotError> {
    let damaged = |what: &str| SnapshotError::damaged(path, what);
    let (header, mut rest) =
        Header::read_from_prefix(bytes).map_err(|_| damaged("it is too short"))?;
    if header.magic != MAGIC {
        return Err(damaged("it does not begin as a state file does"));
    }
    if header.crc.get() != crc32c::crc32c(&bytes[..size_of::<Header>() - CRC_BYTES]) {
        return Err(damaged("the checksum of its head is wrong"));
    }
    check_version(path, header.version.get(), VERSION)?;
    check_id(path, header.id, id)?;
    if header.bytes.get() != bytes.len() as u64 || header.sections.get() > SECTIONS_MAX {
        return Err(damaged("it does not have the length that it gives"));
    }
    let mut sections = Vec::new();
    for _ in 0..header.sections.get() {
        let (head, behind) =
            SectionHead::read_from_prefix(rest).map_err(|_| damaged("it ends in a section"))?;
        let length = usize::try_from(head.bytes.get()).unwrap_or(usize::MAX);
        let (contents, behind) =
            behind.split_at_checked(length).ok_or_else(|| damaged("it ends in a section"))?;
        if head.crc.get() != section_crc(&head, contents) {
            return Err(damaged(&format!("the checksum of section {} is wrong", head.id)));
        }
        let (id, version) = (head.id.get(), head.version.get());
        sections.push(Section { id, version, bytes: contents.to_vec() });
        rest = behind;
    }
    if !rest.is_empty() {
        return Err(damaged("something follows its last section"));
    }
    Ok(sections)
}

/// Refuses a file that a newer build wrote, or nobody.
pub(super) fn check_version(path: &Path, found: u16, known: u16) -> Result<(), SnapshotError> {
    let (version, known) = (found.into(), known.into());
    match version {
        0 => Err(SnapshotError::damaged(path, "it has no version")),
        _ if version > known => Err(SnapshotError::Newer { path: path.to_owned(), version, known }),
        _ => Ok(()),
    }
}

/// Refuses a file of another snapshot.
pub(super) fn check_id(path: &Path, found: [u8; 16], wanted: Uuid) -> Result<(), SnapshotError> {
    let found = Uuid::from_bytes(found);
    if found == wanted {
        return Ok(());
    }
    Err(SnapshotError::Foreign { path: path.to_owned(), found, wanted })
}
