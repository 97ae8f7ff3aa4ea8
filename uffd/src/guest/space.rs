//! Where the pages of a guest are: in its physical address space and in this process.

use thiserror::Error;

use crate::page::{Gpa, Hva, PageIndex, PageRun, PageSize};
use crate::uffd::Range;

/// Guest memory that is contiguous for the guest and in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where this process has it.
    pub hva: Hva,
    /// The index of its first page.
    pub first: PageIndex,
    /// The number of its pages.
    pub count: u32,
}

impl Memslot {
    /// All pages of the memslot.
    pub fn run(&self) -> PageRun {
        PageRun { first: self.first, count: self.count }
    }
}

/// The memslots given do not make a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// An address or a length is not a multiple of the page size, or a length is zero.
    #[error("memory at {gpa}, {bytes:#x} bytes: not made of whole pages of {page_bytes} bytes")]
    NotWholePages {
        /// Where the guest was to see it.
        gpa: Gpa,
        /// Its length in bytes.
        bytes: u64,
        /// The size of a page in bytes.
        page_bytes: usize,
    },
    /// A memslot does not lie behind the one before it.
    #[error("memory at {gpa}: overlaps the memory before it, or comes before it")]
    Order {
        /// Where the guest was to see it.
        gpa: Gpa,
    },
    /// A memslot does not fit an address space, or the pages do not fit an index.
    #[error("memory at {gpa}, {bytes:#x} bytes: too large")]
    TooLarge {
        /// Where the guest was to see it.
        gpa: Gpa,
        /// Its length in bytes.
        bytes: u64,
    },
}

/// All memory of a guest. Pages are numbered over the memslots in the order of guest addresses,
/// without the holes between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpace {
    memslots: Vec<Memslot>,
    page_size: PageSize,
    page_count: u32,
}

impl GuestSpace {
    /// Numbers the pages of `regions`: for each its guest address, its address here and its
    /// length in bytes, in the order of guest addresses.
    ///
    /// # Errors
    ///
    /// [`SpaceError`] if a region is not whole pages, overlaps another, is out of order or too
    /// large.
    pub fn new(
        page_size: PageSize,
        regions: impl IntoIterator<Item = (Gpa, Hva, u64)>,
    ) -> Result<GuestSpace, SpaceError> {
        let mut space = GuestSpace { memslots: Vec::new(), page_size, page_count: 0 };
        for (gpa, hva, bytes) in regions {
            space.push(gpa, hva, bytes)?;
        }
        Ok(space)
    }

    fn push(&mut self, gpa: Gpa, hva: Hva, bytes: u64) -> Result<(), SpaceError> {
        let page_bytes = self.page_size.bytes();
        let too_large = SpaceError::TooLarge { gpa, bytes };
        if bytes == 0 || !self.page_size.divides(gpa.0 | hva.0 | bytes) {
            return Err(SpaceError::NotWholePages { gpa, bytes, page_bytes });
        }
        if gpa.0.checked_add(bytes).is_none() || hva.0.checked_add(bytes).is_none() {
            return Err(too_large);
        }
        let count = self.page_size.pages_in(bytes).ok_or(too_large)?;
        let page_count = self.page_count.checked_add(count).ok_or(too_large)?;
        if let Some(before) = self.memslots.last()
            && gpa.0 < before.gpa.0 + self.page_size.bytes_of(before.count)
        {
            return Err(SpaceError::Order { gpa });
        }
        self.memslots.push(Memslot { gpa, hva, first: PageIndex(self.page_count), count });
        self.page_count = page_count;
        Ok(())
    }

    /// The memslots in the order of guest addresses.
    pub fn memslots(&self) -> &[Memslot] {
        &self.memslots
    }

    /// The size of every page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The number of all pages.
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// All pages.
    pub fn all(&self) -> PageRun {
        PageRun { first: PageIndex(0), count: self.page_count }
    }

    /// The page that holds the byte at `hva` in this process, if it is guest memory.
    pub fn page_at(&self, hva: Hva) -> Option<PageIndex> {
        self.memslots.iter().find_map(|memslot| {
            let offset = hva.0.checked_sub(memslot.hva.0)?;
            let index = self.page_size.index_at(offset)?;
            (index < memslot.count).then(|| PageIndex(memslot.first.0 + index))
        })
    }

    /// Where the guest sees a page, if it has it.
    pub fn gpa_of(&self, page: PageIndex) -> Option<Gpa> {
        let memslot = self.memslot_of(page)?;
        Some(Gpa(memslot.gpa.0 + self.page_size.bytes_of(page.0 - memslot.first.0)))
    }

    /// Where this process has a page, if the guest has it.
    pub fn hva_of(&self, page: PageIndex) -> Option<Hva> {
        let memslot = self.memslot_of(page)?;
        Some(Hva(memslot.hva.0 + self.page_size.bytes_of(page.0 - memslot.first.0)))
    }

    /// The guest has all pages of the run.
    pub fn contains(&self, run: PageRun) -> bool {
        run.end() <= u64::from(self.page_count)
    }

    /// The run cut at the ends of memslots: for each piece where it is in this process and which
    /// pages it is. Pages that the guest does not have are left out.
    pub fn split(&self, run: PageRun) -> impl Iterator<Item = (Range, PageRun)> + '_ {
        let from = self.memslots.partition_point(|m| m.run().end() <= u64::from(run.first.0));
        self.memslots[from..]
            .iter()
            .take_while(move |memslot| u64::from(memslot.first.0) < run.end())
            .filter_map(move |memslot| {
                let part = memslot.run().intersection(run)?;
                let offset = self.page_size.bytes_of(part.first.0 - memslot.first.0);
                let start = Hva(memslot.hva.0 + offset);
                Some((Range { start, bytes: self.page_size.bytes_of(part.count) }, part))
            })
    }

    fn memslot_of(&self, page: PageIndex) -> Option<&Memslot> {
        let at = self.memslots.partition_point(|m| m.run().end() <= u64::from(page.0));
        self.memslots.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    /// Two memslots with a hole between them; the second is lower in this process.
    fn two_memslots() -> GuestSpace {
        let low = (Gpa(0), Hva(0x9000_0000), 4 * PAGE);
        let high = (Gpa(1 << 32), Hva(0x5000_0000), 2 * PAGE);
        GuestSpace::new(PageSize::BASE, [low, high]).unwrap()
    }

    #[test]
    fn pages_are_numbered_over_memslots_without_holes() {
        let space = two_memslots();
        assert_eq!(space.page_count(), 6);
        assert_eq!(space.gpa_of(PageIndex(3)), Some(Gpa(3 * PAGE)));
        assert_eq!(space.gpa_of(PageIndex(4)), Some(Gpa(1 << 32)));
        assert_eq!(space.hva_of(PageIndex(5)), Some(Hva(0x5000_0000 + PAGE)));
        assert_eq!(space.gpa_of(PageIndex(6)), None);
        assert_eq!(space.gpa_of(PageIndex(u32::MAX)), None);
    }

    #[test]
    fn page_at_knows_every_byte_and_no_other() {
        let space = two_memslots();
        assert_eq!(space.page_at(Hva(0x9000_0000)), Some(PageIndex(0)));
        assert_eq!(space.page_at(Hva(0x9000_0000 + 4 * PAGE - 1)), Some(PageIndex(3)));
        assert_eq!(space.page_at(Hva(0x9000_0000 + 4 * PAGE)), None);
        assert_eq!(space.page_at(Hva(0x5000_0000)), Some(PageIndex(4)));
        assert_eq!(space.page_at(Hva(0x5000_0000 - 1)), None);
        assert_eq!(space.page_at(Hva(u64::MAX)), None);
    }

    #[test]
    fn split_cuts_at_memslots_and_leaves_out_what_is_not_there() {
        let space = two_memslots();
        let pieces: Vec<_> = space.split(run(2, 10)).collect();
        let low = Range { start: Hva(0x9000_0000 + 2 * PAGE), bytes: 2 * PAGE };
        let high = Range { start: Hva(0x5000_0000), bytes: 2 * PAGE };
        assert_eq!(pieces, [(low, run(2, 2)), (high, run(4, 2))]);
        assert_eq!(space.split(run(6, 1)).count(), 0);
        assert_eq!(space.split(run(3, 0)).count(), 0);
        assert_eq!(space.split(run(u32::MAX, u32::MAX)).count(), 0);
        assert!(space.contains(run(5, 1)));
        assert!(!space.contains(run(5, 2)));
        assert!(!space.contains(run(u32::MAX, u32::MAX)));
    }

    #[test]
    fn impossible_memslots_are_refused() {
        let new = |regions: &[(Gpa, Hva, u64)]| {
            GuestSpace::new(PageSize::BASE, regions.iter().copied()).unwrap_err()
        };
        let page_bytes = 4096;
        let (gpa, bytes) = (Gpa(0), 100);
        let error = new(&[(gpa, Hva(PAGE), bytes)]);
        assert_eq!(error, SpaceError::NotWholePages { gpa, bytes, page_bytes });
        let error = new(&[(gpa, Hva(PAGE), 0)]);
        assert_eq!(error, SpaceError::NotWholePages { gpa, bytes: 0, page_bytes });
        let error = new(&[(gpa, Hva(PAGE), 2 * PAGE), (Gpa(PAGE), Hva(1 << 30), PAGE)]);
        assert_eq!(error, SpaceError::Order { gpa: Gpa(PAGE) });
        let bytes = 1 << 44;
        assert_eq!(new(&[(gpa, Hva(PAGE), bytes)]), SpaceError::TooLarge { gpa, bytes });
        let top = Hva(u64::MAX - PAGE + 1);
        assert_eq!(new(&[(gpa, top, PAGE)]), SpaceError::TooLarge { gpa, bytes: PAGE });
    }
}
