//! The memory of a guest as a page provider.

use std::io;
use std::sync::Arc;

use godwit_uffd::page::{Gpa, PageIndex, PageRun, PageSize};
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

use crate::page::Paging;

/// Guest memory as this process maps it. Each page that the process writes is marked afterwards.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// Guest memory to read from.
pub type GuestSlice<'a> = VolatileSlice<'a, BS<'a, AtomicBitmap>>;

/// Copies guest memory to bytes, which are as many, and survives a page that cannot be read: it
/// stops there. Returns how many bytes it copied.
pub type CopyReadable = fn(&GuestSlice<'_>, &mut [u8]) -> usize;

/// Reads pages of guest memory by index, over the memslots in address order.
///
/// After the switchover the guest stands still and its devices are drained, so no page changes
/// under the reader. During rounds it runs: a page that changes meanwhile is read in some state or
/// other, is noted as written, and comes again.
#[derive(Clone, Debug)]
pub struct GuestPages {
    memory: Arc<GuestRam>,
    page_size: PageSize,
    copy: CopyReadable,
    /// First page index of each region, and the count behind the last.
    starts: Vec<u32>,
}

impl GuestPages {
    /// All regions of `memory`, which are whole pages of `page_size` and at most `u32::MAX` pages
    /// together, read by `copy`.
    pub fn new(memory: Arc<GuestRam>, page_size: PageSize, copy: CopyReadable) -> GuestPages {
        let mut starts = vec![0u32];
        for region in memory.iter() {
            let pages = page_size.pages_in(region.len()).expect("regions are whole pages");
            starts.push(starts[starts.len() - 1].checked_add(pages).expect("indexes are 32 bits"));
        }
        GuestPages { memory, page_size, copy, starts }
    }

    /// The number of pages.
    pub fn page_count(&self) -> u32 {
        self.starts[self.starts.len() - 1]
    }

    /// The size of a page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Both.
    pub fn paging(&self) -> Paging {
        Paging { size: self.page_size, count: self.page_count() }
    }

    /// Where the guest sees a page of its memory.
    pub fn gpa_of(&self, page: PageIndex) -> Option<Gpa> {
        let (slot, offset) = self.place(page)?;
        let region = self.memory.iter().nth(slot)?;
        Some(Gpa(region.start_addr().0 + offset))
    }

    /// The number of the region of `page`, and the bytes before the page in it.
    fn place(&self, page: PageIndex) -> Option<(usize, u64)> {
        let region = self.starts.partition_point(|&start| start <= page.0) - 1;
        let inside = page.0 < self.page_count();
        inside.then(|| (region, self.page_size.bytes_of(page.0 - self.starts[region])))
    }

    /// The memory of the part of `run` that lies in the region of its first page.
    fn slice(&self, run: PageRun) -> io::Result<(GuestSlice<'_>, u32)> {
        let outside = || io::Error::other(format!("{run} is outside guest memory"));
        let (region, offset) = self.place(run.first).ok_or_else(outside)?;
        let count = run.count.min(self.starts[region + 1] - run.first.0);
        let bytes = usize::try_from(self.page_size.bytes_of(count)).map_err(|_| outside())?;
        let region = self.memory.iter().nth(region).ok_or_else(outside)?;
        let slice = region
            .get_slice(vm_memory::MemoryRegionAddress(offset), bytes)
            .map_err(io::Error::other)?;
        Ok((slice, count))
    }

    /// Copies the pages of `run` to `out`, which is as long as they are. Returns those that nobody
    /// can read, in order; their bytes in `out` have no meaning.
    ///
    /// # Errors
    /// A run that reaches outside the guest.
    pub fn read_run(&self, mut run: PageRun, mut out: &mut [u8]) -> io::Result<Vec<PageIndex>> {
        debug_assert_eq!(out.len(), self.page_size.length_of(run.count));
        let mut unreadable = Vec::new();
        while run.count > 0 {
            let (slice, count) = self.slice(run)?;
            let (part, rest) = out.split_at_mut(slice.len());
            self.read_slice(&slice, part, run.first, &mut unreadable);
            out = rest;
            run = PageRun { first: PageIndex(run.first.0 + count), count: run.count - count };
        }
        Ok(unreadable)
    }

    /// Copies `slice`, whose first page is `first`, around what cannot be read of it.
    fn read_slice(
        &self,
        slice: &GuestSlice<'_>,
        out: &mut [u8],
        first: PageIndex,
        unreadable: &mut Vec<PageIndex>,
    ) {
        let mut done = 0;
        while done < out.len() {
            let rest = slice.offset(done).expect("inside the slice");
            let copied = (self.copy)(&rest, &mut out[done..]);
            if done + copied == out.len() {
                return;
            }
            let pages = (done + copied) / self.page_size.bytes();
            let ahead = u32::try_from(pages).expect("less than the run");
            unreadable.push(PageIndex(first.0 + ahead));
            done = (pages + 1) * self.page_size.bytes();
        }
    }

    /// Puts `contents`, which are as long, into the pages of `run`.
    ///
    /// # Errors
    /// A run that reaches outside the guest.
    pub fn write_run(&self, mut run: PageRun, mut contents: &[u8]) -> io::Result<()> {
        debug_assert_eq!(contents.len(), self.page_size.length_of(run.count));
        while run.count > 0 {
            let (slice, count) = self.slice(run)?;
            let (part, rest) = contents.split_at(slice.len());
            slice.copy_from(part);
            contents = rest;
            run = run.without(count);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const PAGE: PageSize = PageSize::BASE;

    /// A page that begins with this cannot be read.
    pub(crate) const LOST: [u8; 8] = *b"lost \0\xff!";

    /// Copies up to a page that begins with [`LOST`].
    pub(crate) fn copy_up_to_lost(from: &GuestSlice<'_>, out: &mut [u8]) -> usize {
        from.copy_to(out);
        let lost = out.chunks(PAGE.bytes()).position(|page| page.starts_with(&LOST));
        let copied = lost.map_or(out.len(), |page| page * PAGE.bytes());
        out[copied..].fill(0xaa);
        copied
    }

    fn two_regions() -> GuestPages {
        let ranges = [(GuestAddress(0), 8192), (GuestAddress(1 << 32), 4096)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(&[7; 4096], GuestAddress(4096)).unwrap();
        memory.write_obj(9u8, GuestAddress((1 << 32) + 4095)).unwrap();
        GuestPages::new(Arc::new(memory), PAGE, copy_up_to_lost)
    }

    #[test]
    fn indexes_count_over_the_regions() {
        let pages = two_regions();
        assert_eq!(pages.page_count(), 3);
        let mut page = [0; 4096];
        pages.read_run(PageRun::one(PageIndex(2)), &mut page).unwrap();
        assert_eq!((page[0], page[4095]), (0, 9));
        assert!(pages.read_run(PageRun::one(PageIndex(3)), &mut page).is_err());
        let places = [0, 1, 2, 3].map(|page| pages.gpa_of(PageIndex(page)).map(|gpa| gpa.0));
        assert_eq!(places, [Some(0), Some(4096), Some(1 << 32), None]);
    }

    #[test]
    fn what_is_written_across_regions_is_read() {
        let (pages, run) = (two_regions(), PageRun { first: PageIndex(0), count: 3 });
        let written: Vec<u8> = [1, 2, 3].into_iter().flat_map(|byte| [byte; 4096]).collect();
        pages.write_run(run, &written).unwrap();
        let mut read = vec![0; written.len()];
        pages.read_run(run, &mut read).unwrap();
        assert!(read == written);
        assert!(pages.write_run(PageRun::one(PageIndex(3)), &[0; 4096]).is_err());
    }

    #[test]
    fn a_run_across_regions_is_read_whole() {
        let run = PageRun { first: PageIndex(1), count: 2 };
        let mut bytes = [0; 8192];
        assert_eq!(two_regions().read_run(run, &mut bytes).unwrap(), []);
        assert_eq!((bytes[0], bytes[4095], bytes[4096], bytes[8191]), (7, 7, 0, 9));
    }

    #[test]
    fn pages_around_unreadable_ones_are_read() {
        let ranges = [(GuestAddress(0), 5 * 4096), (GuestAddress(1 << 32), 3 * 4096)];
        let memory = GuestRam::from_ranges(&ranges).unwrap();
        let at = |page: u64| GuestAddress(if page < 5 { page } else { 0x10_0000 + page - 5 } << 12);
        for page in 0..8 {
            memory.write_slice(&[u8::try_from(page).unwrap(); 4096], at(page)).unwrap();
        }
        for lost in [0, 2, 3, 4, 7] {
            memory.write_slice(&LOST, at(lost)).unwrap();
        }
        let pages = GuestPages::new(Arc::new(memory), PAGE, copy_up_to_lost);
        let mut bytes = [0xee; 8 * 4096];
        let run = PageRun { first: PageIndex(0), count: 8 };
        let lost = pages.read_run(run, &mut bytes).unwrap();
        assert_eq!(lost.iter().map(|page| page.0).collect::<Vec<_>>(), [0, 2, 3, 4, 7]);
        for page in [1, 5, 6] {
            let whole = bytes[page * 4096..][..4096].iter().all(|&byte| usize::from(byte) == page);
            assert!(whole, "page {page}");
        }
    }

    #[test]
    fn a_huge_page_with_an_unreadable_part_is_lost_and_the_next_is_read() {
        let huge = PageSize::HUGE;
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), huge.length_of(2))]).unwrap();
        memory.write_slice(&LOST, GuestAddress(5 * 4096)).unwrap();
        memory.write_obj(9u8, GuestAddress(huge.bytes_of(2) - 1)).unwrap();
        let pages = GuestPages::new(Arc::new(memory), huge, copy_up_to_lost);
        assert_eq!(pages.paging(), Paging { size: huge, count: 2 });
        let mut bytes = vec![0xee; huge.length_of(2)];
        let run = PageRun { first: PageIndex(0), count: 2 };
        assert_eq!(pages.read_run(run, &mut bytes).unwrap(), [PageIndex(0)]);
        let (last, rest) = bytes[huge.bytes()..].split_last().unwrap();
        assert!(*last == 9 && rest.iter().all(|&byte| byte == 0));
    }
}
