//! Where the pages of a guest are: in its physical address space and in this process.

use thiserror::Error;

use crate::error::Error;
use crate::memory::MemoryKind;
use crate::page::{Gpa, Hva, PageIndex, PageRun, PageSize};
use crate::uffd::Range;

/// Guest memory that is to be a memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where this process has it.
    pub hva: Hva,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it is made of.
    pub memory: MemoryKind,
}

/// Pages that lie in one memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub gpa: Gpa,
    pub range: Range,
    pub kind: MemoryKind,
}

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
    /// What it is made of.
    pub memory: MemoryKind,
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
/// without the holes between them. They all have one size in this count, also where the memory is
/// made of larger ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpace {
    memslots: Vec<Memslot>,
    page_size: PageSize,
    page_count: u32,
}

impl GuestSpace {
    /// Numbers the pages of `regions`, which are all private anonymous memory of one page size:
    /// for each its guest address, its address here and its length in bytes, in the order of guest
    /// addresses.
    ///
    /// # Errors
    ///
    /// As [`of`](GuestSpace::of).
    pub fn new(
        page_size: PageSize,
        regions: impl IntoIterator<Item = (Gpa, Hva, u64)>,
    ) -> Result<GuestSpace, SpaceError> {
        let huge = page_size == PageSize::HUGE;
        let memory = if huge { MemoryKind::HugetlbAnonymous } else { MemoryKind::Anonymous };
        let mut space = GuestSpace { memslots: Vec::new(), page_size, page_count: 0 };
        for (gpa, hva, bytes) in regions {
            space.push(Region { gpa, hva, bytes, memory })?;
        }
        Ok(space)
    }

    /// Numbers the base pages of `regions`, in the order of guest addresses.
    ///
    /// # Errors
    ///
    /// [`SpaceError`] if a region is not made of whole pages of its kind, overlaps another, is out
    /// of order or too large.
    pub fn of(regions: impl IntoIterator<Item = Region>) -> Result<GuestSpace, SpaceError> {
        GuestSpace::counted_in(PageSize::BASE, regions)
    }

    /// Numbers the pages of `page_size` of `regions`, as [`of`](GuestSpace::of) does base pages.
    /// Each region is made of such pages or larger ones.
    ///
    /// # Errors
    ///
    /// As [`of`](GuestSpace::of).
    pub fn counted_in(
        page_size: PageSize,
        regions: impl IntoIterator<Item = Region>,
    ) -> Result<GuestSpace, SpaceError> {
        let mut space = GuestSpace { memslots: Vec::new(), page_size, page_count: 0 };
        regions.into_iter().try_for_each(|region| space.push(region))?;
        Ok(space)
    }

    fn push(&mut self, region: Region) -> Result<(), SpaceError> {
        let Region { gpa, hva, bytes, memory } = region;
        assert!(self.page_size <= memory.page_size(), "{memory} is installed by smaller pages");
        let page_size = self.page_size.max(memory.page_size());
        let page_bytes = page_size.bytes();
        let too_large = SpaceError::TooLarge { gpa, bytes };
        if bytes == 0 || !page_size.divides(gpa.0 | hva.0 | bytes) {
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
        self.memslots.push(Memslot { gpa, hva, first: PageIndex(self.page_count), count, memory });
        self.page_count = page_count;
        Ok(())
    }

    /// The memslots in the order of guest addresses.
    pub fn memslots(&self) -> &[Memslot] {
        &self.memslots
    }

    /// The size of the pages that are counted.
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
                Some((self.place_in(memslot, part)?.range, part))
            })
    }

    /// The pages of `bytes` bytes from `gpa` on, all of which must be memory.
    ///
    /// # Errors
    ///
    /// [`Error::NotMemory`] with the first address that is not memory, and [`Error::InsidePage`].
    pub fn run_at(&self, gpa: Gpa, bytes: u64) -> Result<PageRun, Error> {
        let mut whole = PageRun { first: PageIndex(0), count: 0 };
        let mut next = gpa;
        for part in self.runs_in(gpa, bytes)? {
            let start = self.gpa_of(part.first).unwrap_or(next);
            if start != next {
                break;
            }
            let first = if whole.count == 0 { part.first } else { whole.first };
            whole = PageRun { first, count: whole.count + part.count };
            next = Gpa(start.0 + self.page_size.bytes_of(part.count));
        }
        if next.0 - gpa.0 < bytes { Err(Error::NotMemory { gpa: next }) } else { Ok(whole) }
    }

    /// The pages that `bytes` bytes from `gpa` on have, a run for each memslot; holes are skipped.
    ///
    /// # Errors
    ///
    /// [`Error::InsidePage`] if the range does not begin and end at pages.
    pub fn runs_in(
        &self,
        gpa: Gpa,
        bytes: u64,
    ) -> Result<impl Iterator<Item = PageRun> + '_, Error> {
        let end = Gpa(gpa.0.saturating_add(bytes));
        if let Some(odd) = [gpa, end].into_iter().find(|at| !self.page_size.divides(at.0)) {
            return Err(Error::InsidePage { gpa: odd, page_size: self.page_size });
        }
        Ok(self.memslots.iter().filter_map(move |memslot| {
            let memslot_end = memslot.gpa.0 + self.page_size.bytes_of(memslot.count);
            let (from, to) = (gpa.0.max(memslot.gpa.0), end.0.min(memslot_end));
            let count = self.page_size.pages_in(to.checked_sub(from)?)?;
            let skipped = self.page_size.pages_in(from - memslot.gpa.0)?;
            let first = PageIndex(memslot.first.0 + skipped);
            (count > 0).then_some(PageRun { first, count })
        }))
    }

    /// The run made wider, so that it has every page of the memory that it has a part of: what must
    /// be installed at once for a fault on a page of it.
    #[must_use]
    pub fn whole_pages(&self, run: PageRun) -> PageRun {
        let Some(last) = run.count.checked_sub(1) else { return run };
        let first = self.whole_page(run.first).first;
        let end = self.whole_page(PageIndex(run.first.0 + last)).end();
        PageRun { first, count: u32::try_from(end).map_or(run.count, |end| end - first.0) }
    }

    /// The page of the memory that `page` is a part of.
    fn whole_page(&self, page: PageIndex) -> PageRun {
        let memslot = self.memslot_of(page);
        let count = memslot.map_or(1, |memslot| self.counted_in_page(memslot.memory));
        let inside = memslot.map_or(0, |memslot| (page.0 - memslot.first.0) % count);
        PageRun { first: PageIndex(page.0 - inside), count }
    }

    /// How many of the pages that are counted make one page of a kind of memory.
    fn counted_in_page(&self, kind: MemoryKind) -> u32 {
        self.page_size.max(kind.page_size()).in_units_of(self.page_size)
    }

    /// All pages of the run are the guest's.
    pub(super) fn check_inside(&self, run: PageRun) -> Result<(), Error> {
        if self.contains(run) {
            return Ok(());
        }
        Err(Error::OutsideGuest { run, pages: self.page_count })
    }

    /// `bytes` bytes are as long as the run.
    pub(super) fn check_length(&self, run: PageRun, bytes: usize) -> Result<(), Error> {
        let (needed, given) = (self.page_size.bytes_of(run.count), bytes as u64);
        if given == needed { Ok(()) } else { Err(Error::WrongLength { run, needed, given }) }
    }

    /// All pages of the run are the guest's, and it neither begins nor ends inside a page of the
    /// memory.
    pub(super) fn check(&self, run: PageRun) -> Result<(), Error> {
        self.check_inside(run)?;
        let whole = self.whole_pages(run);
        let odd = if whole.first != run.first {
            run.first
        } else if whole.end() != run.end() {
            PageIndex(run.first.0 + run.count)
        } else {
            return Ok(());
        };
        let memslot = self.memslot_of(odd).expect("inside a page of a memslot");
        let gpa = self.gpa_of(odd).expect("as above");
        Err(Error::InsidePage { gpa, page_size: memslot.memory.page_size() })
    }

    /// The run is empty or lies in one memslot.
    pub(super) fn is_in_one_memslot(&self, run: PageRun) -> bool {
        self.memslot_of(run.first).is_none_or(|memslot| run.end() <= memslot.run().end())
    }

    /// Where the first pages of the run are: as many as lie in one memslot. `None` if the guest
    /// lacks the first.
    pub(super) fn place_of(&self, run: PageRun) -> Option<Place> {
        let memslot = self.memslot_of(run.first)?;
        self.place_in(memslot, memslot.run().intersection(run)?)
    }

    /// Where the first pages of `bytes` bytes at `gpa` are, as above.
    pub(super) fn place_at(&self, gpa: Gpa, bytes: u64) -> Option<Place> {
        self.memslots.iter().find_map(|memslot| {
            let skipped = self.page_size.index_at(gpa.0.checked_sub(memslot.gpa.0)?)?;
            let count = memslot.count.checked_sub(skipped)?.min(self.page_size.pages_in(bytes)?);
            let first = PageIndex(memslot.first.0 + skipped);
            if count == 0 { None } else { self.place_in(memslot, PageRun { first, count }) }
        })
    }

    /// Where this process has a memslot.
    pub(super) fn range_of(&self, memslot: &Memslot) -> Range {
        Range { start: memslot.hva, bytes: self.page_size.bytes_of(memslot.count) }
    }

    fn place_in(&self, memslot: &Memslot, part: PageRun) -> Option<Place> {
        let offset = self.page_size.bytes_of(part.first.0.checked_sub(memslot.first.0)?);
        let bytes = self.page_size.bytes_of(part.count);
        let range = self.range_of(memslot).behind(offset).first(bytes);
        Some(Place { gpa: Gpa(memslot.gpa.0 + offset), range, kind: memslot.memory })
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
    fn huge_pages_are_numbered_as_such_where_that_is_wanted() {
        let region = |gpa, hva, bytes| Region {
            gpa: Gpa(gpa),
            hva: Hva(hva),
            bytes,
            memory: MemoryKind::HugetlbMemfd,
        };
        let huge = PageSize::HUGE.bytes() as u64;
        let regions = [region(0, 0x4000_0000, 3 * huge), region(1 << 32, 0x8000_0000, huge)];
        let space = GuestSpace::counted_in(PageSize::HUGE, regions).unwrap();
        assert_eq!(space.page_count(), 4);
        assert_eq!(space.page_at(Hva(0x4000_0000 + 2 * huge + 12345)), Some(PageIndex(2)));
        assert_eq!(space.gpa_of(PageIndex(3)), Some(Gpa(1 << 32)));
        assert_eq!(space.whole_pages(run(1, 2)), run(1, 2));
        assert_eq!(GuestSpace::of(regions).unwrap().page_count(), 4 * 512);
        let odd = [region(0, 0x4000_0000, huge + PAGE)];
        assert!(GuestSpace::counted_in(PageSize::HUGE, odd).is_err());
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

    #[test]
    fn guest_addresses_become_runs_without_holes() {
        let space = two_memslots();
        assert_eq!(space.run_at(Gpa(PAGE), 3 * PAGE).unwrap(), run(1, 3));
        assert_eq!(space.run_at(Gpa(1 << 32), 2 * PAGE).unwrap(), run(4, 2));
        assert_eq!(space.run_at(Gpa(PAGE), 0).unwrap().count, 0);
        let hole = Gpa(4 * PAGE);
        for (gpa, bytes, missing) in [
            (Gpa(3 * PAGE), 2 * PAGE, hole),
            (hole, PAGE, hole),
            (Gpa(0), (1 << 32) + PAGE, hole),
            (Gpa(1 << 32), 3 * PAGE, Gpa((1 << 32) + 2 * PAGE)),
            (Gpa(u64::MAX - PAGE + 1), PAGE, Gpa(u64::MAX - PAGE + 1)),
        ] {
            match space.run_at(gpa, bytes) {
                Err(Error::NotMemory { gpa }) => assert_eq!(gpa, missing),
                Err(Error::InsidePage { .. }) => assert_eq!(gpa.0.wrapping_add(bytes), 0),
                other => panic!("{other:?}"),
            }
        }
        let odd = space.run_at(Gpa(PAGE + 1), PAGE).unwrap_err();
        assert!(matches!(odd, Error::InsidePage { gpa, .. } if gpa == Gpa(PAGE + 1)), "{odd}");
    }

    #[test]
    fn guest_addresses_become_a_run_over_memslots_that_touch() {
        let low = (Gpa(0), Hva(1 << 30), PAGE);
        let high = (Gpa(PAGE), Hva(1 << 40), PAGE);
        let space = GuestSpace::new(PageSize::BASE, [low, high]).unwrap();
        assert_eq!(space.run_at(Gpa(0), 2 * PAGE).unwrap(), run(0, 2));
        assert!(!space.is_in_one_memslot(run(0, 2)) && space.is_in_one_memslot(run(1, 1)));
    }

    #[test]
    fn holes_between_guest_addresses_are_skipped_on_request() {
        let space = two_memslots();
        let runs = |gpa, bytes| space.runs_in(Gpa(gpa), bytes).unwrap().collect::<Vec<_>>();
        assert_eq!(runs(2 * PAGE, 1 << 32), [run(2, 2), run(4, 2)]);
        assert_eq!(runs(4 * PAGE, PAGE), []);
    }

    #[test]
    fn pages_of_a_memslot_may_be_huge() {
        let huge = PageSize::HUGE.bytes() as u64;
        let region =
            |gpa, hva, bytes, memory| Region { gpa: Gpa(gpa), hva: Hva(hva), bytes, memory };
        let low = region(0, PAGE, 3 * PAGE, MemoryKind::Anonymous);
        let high = region(huge, huge, 2 * huge, MemoryKind::HugetlbMemfd);
        let space = GuestSpace::of([low, high]).unwrap();
        assert_eq!(space.page_count(), 3 + 1024);
        assert_eq!(space.whole_pages(run(2, 1)), run(2, 1));
        assert_eq!(space.whole_pages(run(2, 2)), run(2, 513));
        assert_eq!(space.whole_pages(run(600, 1)), run(515, 512));
        assert_eq!(space.whole_pages(run(600, 0)), run(600, 0));
        space.check(run(0, 515)).unwrap();
        for (odd, at) in [(run(0, 4), 4), (run(4, 511), 4), (run(3, 513), 516)] {
            let error = space.check(odd).unwrap_err();
            let gpa = space.gpa_of(PageIndex(at)).unwrap();
            assert!(matches!(error, Error::InsidePage { gpa: g, .. } if g == gpa), "{error}");
        }
        let odd = region(huge, PAGE, huge, MemoryKind::HugetlbAnonymous);
        let error = GuestSpace::of([odd]).unwrap_err();
        assert!(matches!(error, SpaceError::NotWholePages { page_bytes: 0x20_0000, .. }));
    }
}
