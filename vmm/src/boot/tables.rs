//! The descriptor table and the page tables with which a kernel begins.

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, layout};
use crate::memory::GuestMemory;

/// Writes both to guest memory.
pub(super) fn write(memory: &GuestMemory) -> Result<(), BootError> {
    write_words(memory, layout::GDT.0, &DESCRIPTORS, "the descriptor table")?;
    write_words(memory, layout::PML4.0, &page_tables(), "the page tables")
}

fn write_words(
    memory: &GuestMemory,
    at: u64,
    words: &[u64],
    what: &'static str,
) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory
        .inner()
        .write_slice(&bytes, GuestAddress(at))
        .map_err(|source| BootError::Write { what, source })
}

/// The first 4 GiB, mapped to themselves in pages of 2 MiB.
fn page_tables() -> Vec<u64> {
    let table = |index: u64| (layout::PML4.0 + index * TABLE_BYTES) | PRESENT_WRITABLE;
    let mut words = vec![0; ENTRIES * 2];
    words[0] = table(1);
    for gib in 0..GIB_MAPPED {
        words[ENTRIES + gib] = table(2 + gib as u64);
    }
    let pages =
        (0..(ENTRIES * GIB_MAPPED) as u64).map(|page| page << 21 | PRESENT_WRITABLE | LARGE);
    words.extend(pages);
    words
}

/// The null descriptor twice, then the segments at the selectors of [`layout`].
const DESCRIPTORS: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 64-bit code
    0x00cf_9300_0000_ffff, // data
    0x00cf_9b00_0000_ffff, // 32-bit code
    0x0000_8b00_0000_0067, // 32-bit task state, busy
];

const ENTRIES: usize = 512;
const GIB_MAPPED: usize = 4;
const TABLE_BYTES: u64 = 4096;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

const _: () = assert!(DESCRIPTORS.len() * 8 == layout::GDT_BYTES as usize);
const _: () =
    assert!(layout::PML4.0 + (2 + GIB_MAPPED as u64) * TABLE_BYTES <= layout::COMMAND_LINE.0);
