//! The ranges of physical memory that the guest may use, and the pages in them.

use crate::page::PAGE_BYTES;

/// Ranges kept at most; more in the machine's map are left out.
pub const RANGES_MAX: usize = 8;
/// The arena starts here at the earliest: the image lies below.
pub const ARENA_START: u64 = 16 << 20;
/// Memory above is left out: the guest's page tables end there.
pub const ARENA_END: u64 = 64 << 30;

/// Whole pages from `start` to `end`, physical addresses in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
}

impl Range {
    /// Pages in the range.
    pub const fn pages(self) -> u64 {
        (self.end - self.start) / PAGE_BYTES
    }
}

/// Ranges in the order of the machine's map, each of at least one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    ranges: [Range; RANGES_MAX],
    count: usize,
}

impl Ram {
    /// Adds the whole pages between `ARENA_START` and `ARENA_END` of an entry of the map.
    pub fn add(&mut self, entry: Range) {
        let start = entry.start.max(ARENA_START).next_multiple_of(PAGE_BYTES);
        let end = entry.end.min(ARENA_END) / PAGE_BYTES * PAGE_BYTES;
        if start < end && self.count < RANGES_MAX {
            self.ranges[self.count] = Range { start, end };
            self.count += 1;
        }
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// Pages in all ranges.
    pub fn pages(&self) -> u64 {
        self.ranges().iter().map(|range| range.pages()).sum()
    }

    /// Cuts `pages` off the front of the first range and gives their address; `None` if it has not
    /// that many and one more.
    pub fn take(&mut self, pages: u64) -> Option<u64> {
        let first = self.ranges[..self.count].first_mut()?;
        if first.pages() <= pages {
            return None;
        }
        let start = first.start;
        first.start += pages * PAGE_BYTES;
        Some(start)
    }

    /// The physical address of the page that has `index` when all ranges are counted through.
    pub fn address_of(&self, index: u64) -> Option<u64> {
        let mut before = 0;
        for range in self.ranges() {
            if index - before < range.pages() {
                return Some(range.start + (index - before) * PAGE_BYTES);
            }
            before += range.pages();
        }
        None
    }

    /// Whether `bytes` from `address` lie inside one range.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        self.ranges().iter().any(|range| {
            range.start <= address && address <= range.end && bytes <= range.end - address
        })
    }
}

/// The part of `count` things that vCPU `vcpu` of `vcpus` owns: contiguous, in order of vCPU.
pub fn share(count: u64, vcpu: usize, vcpus: usize) -> core::ops::Range<u64> {
    let (vcpu, vcpus) = (vcpu as u64, vcpus as u64);
    count * vcpu / vcpus..count * (vcpu + 1) / vcpus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Ram {
        let mut ram = Ram::default();
        ram.add(Range { start: 0, end: 0x9fc00 });
        ram.add(Range { start: 1 << 20, end: 3 << 30 });
        ram.add(Range { start: 4 << 30, end: 6 << 30 });
        ram
    }

    #[test]
    fn low_memory_and_image_are_left_out() {
        let low = Range { start: 16 << 20, end: 3 << 30 };
        assert_eq!(machine().ranges(), [low, Range { start: 4 << 30, end: 6 << 30 }]);
    }

    #[test]
    fn indices_skip_the_hole() {
        let ram = machine();
        let below = (3 << 18) - (16 << 8);
        assert_eq!(ram.address_of(0), Some(16 << 20));
        assert_eq!(ram.address_of(below - 1), Some((3 << 30) - 4096));
        assert_eq!(ram.address_of(below), Some(4 << 30));
        assert_eq!(ram.address_of(ram.pages()), None);
    }

    #[test]
    fn taken_pages_are_gone() {
        let mut ram = machine();
        let pages = ram.pages();
        assert_eq!(ram.take(3), Some(16 << 20));
        assert_eq!(ram.address_of(0), Some((16 << 20) + 3 * 4096));
        assert_eq!(ram.pages(), pages - 3);
        assert_eq!(ram.take(1 << 30), None);
    }

    #[test]
    fn contains_knows_the_ends() {
        let ram = machine();
        assert!(ram.contains(16 << 20, 4096));
        assert!(ram.contains((3 << 30) - 4096, 4096));
        assert!(!ram.contains((3 << 30) - 4096, 4097));
        assert!(!ram.contains(3 << 30, 8));
        assert!(!ram.contains(u64::MAX, 8));
    }

    #[test]
    fn shares_cover_everything_once() {
        for vcpus in 1..=16 {
            let mut next = 0;
            for vcpu in 0..vcpus {
                let own = share(1001, vcpu, vcpus);
                assert_eq!(own.start, next);
                next = own.end;
            }
            assert_eq!(next, 1001);
        }
    }
}
