//! What the targets make of a few bytes.

use godwit_migration::wire::{HEADER_BYTES, Kind};
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd_testing::fuzz::Bytes;

/// Two bytes as a number.
pub fn number(bytes: &mut Bytes<'_>) -> Option<u32> {
    Some(u32::from(bytes.byte()?) << 8 | u32::from(bytes.byte()?))
}

/// A page of a guest of `pages` pages.
pub fn page(bytes: &mut Bytes<'_>, pages: u32) -> Option<PageIndex> {
    Some(PageIndex(number(bytes)? % pages))
}

/// A run, perhaps an empty one, inside a guest of `pages` pages.
pub fn run(bytes: &mut Bytes<'_>, pages: u32) -> Option<PageRun> {
    let first = page(bytes, pages)?;
    let count = number(bytes)? % (pages - first.0 + 1);
    Some(PageRun { first, count })
}

/// A frame of any payload.
pub fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..2].copy_from_slice(&(kind as u16).to_le_bytes());
    let length = u32::try_from(payload.len()).expect("it is short");
    bytes[4..].copy_from_slice(&length.to_le_bytes());
    bytes.extend(payload);
    bytes
}
