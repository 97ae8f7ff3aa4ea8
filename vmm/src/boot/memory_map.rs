//! What a kernel is told about memory: which addresses are free to use, and which are not.

use godwit_uffd::page::Gpa;

use super::layout;
use crate::memory::GuestMemory;

/// What a range of addresses is, with the numbers that PVH and the zero page share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Use {
    Ram = 1,
    Reserved = 2,
}

/// One line of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) gpa: Gpa,
    pub(super) bytes: u64,
    pub(super) kind: Use,
}

/// The most lines that a map can have; the places for it have room for so many.
pub(super) const ENTRY_COUNT_MAX: usize = 8;

/// The map of a guest: low memory, the area that PCs reserve for firmware, and everything else.
pub(super) fn build(memory: &GuestMemory) -> Vec<Entry> {
    let low = layout::LOW_MEMORY_END.0;
    let high = layout::HIGH_MEMORY.0;
    let mut map = vec![
        Entry { gpa: Gpa(0), bytes: low, kind: Use::Ram },
        Entry { gpa: Gpa(low), bytes: high - low, kind: Use::Reserved },
    ];
    for region in memory.regions() {
        let start = region.gpa.0.max(high);
        let bytes = region.gpa.0 + region.bytes - start;
        map.push(Entry { gpa: Gpa(start), bytes, kind: Use::Ram });
    }
    assert!(map.len() <= ENTRY_COUNT_MAX);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Backing;

    #[test]
    fn map_covers_all_memory_but_the_firmware_area() {
        let memory = GuestMemory::create(16 << 20, Backing::Anon).unwrap();
        let map = build(&memory);
        let ram: u64 = map.iter().filter(|e| e.kind == Use::Ram).map(|e| e.bytes).sum();
        assert_eq!(ram, (16 << 20) - (0x10_0000 - 0x9_fc00));
        assert!(map.windows(2).all(|two| two[0].gpa.0 + two[0].bytes == two[1].gpa.0));
    }
}
