//! The memory of a guest as a page provider.

use std::io;
use std::sync::Arc;

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

const PAGE: PageSize = PageSize::BASE;

/// Guest memory as this process maps it. Each page that the process writes is marked afterwards.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// Reads pages of guest memory by index, over the memslots in address order.
///
/// After the switchover the guest stands still and its devices are drained, so no page changes
/// under the reader. During rounds it runs: a page that changes meanwhile is read in some state or
/// other, is noted as written, and comes again.
#[derive(Clone, Debug)]
pub struct GuestPages {
    memory: Arc<GuestRam>,
    /// First page index of each region, and the count behind the last.
    starts: Vec<u32>,
}

impl GuestPages {
    /// All regions of `memory`, which are whole pages and at most `u32::MAX` pages together.
    pub fn new(memory: Arc<GuestRam>) -> GuestPages {
        let mut starts = vec![0u32];
        for region in memory.iter() {
            let pages = PAGE.pages_in(region.len()).expect("regions are whole pages");
            starts.push(starts[starts.len() - 1].checked_add(pages).expect("indexes are 32 bits"));
        }
        GuestPages { memory, starts }
    }

    /// The number of pages.
    pub fn page_count(&self) -> u32 {
        self.starts[self.starts.len() - 1]
    }

    /// The memory of the part of `run` that lies in the region of its first page.
    fn slice(&self, run: PageRun) -> io::Result<(VolatileSlice<'_, BS<'_, AtomicBitmap>>, u32)> {
        let region = self.starts.partition_point(|&start| start <= run.first.0) - 1;
        let outside = || io::Error::other(format!("{run} is outside guest memory"));
        let region_end = *self.starts.get(region + 1).ok_or_else(outside)?;
        let count = run.count.min(region_end - run.first.0);
        let offset = PAGE.bytes_of(run.first.0 - self.starts[region]);
        let bytes = usize::try_from(PAGE.bytes_of(count)).map_err(|_| outside())?;
        let region = self.memory.iter().nth(region).ok_or_else(outside)?;
        let slice = region
            .get_slice(vm_memory::MemoryRegionAddress(offset), bytes)
            .map_err(io::Error::other)?;
        Ok((slice, count))
    }

    /// Copies the pages of `run` to `out`, which is as long as they are.
    ///
    /// # Errors
    /// A run that reaches outside the guest.
    pub fn read_run(&self, mut run: PageRun, mut out: &mut [u8]) -> io::Result<()> {
        debug_assert_eq!(out.len(), PAGE.length_of(run.count));
        while run.count > 0 {
            let (slice, count) = self.slice(run)?;
            let (part, rest) = out.split_at_mut(slice.len());
            slice.copy_to(part);
            out = rest;
            run = PageRun { first: PageIndex(run.first.0 + count), count: run.count - count };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn two_regions() -> GuestPages {
        let ranges = [(GuestAddress(0), 8192), (GuestAddress(1 << 32), 4096)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(&[7; 4096], GuestAddress(4096)).unwrap();
        memory.write_obj(9u8, GuestAddress((1 << 32) + 4095)).unwrap();
        GuestPages::new(Arc::new(memory))
    }

    #[test]
    fn indexes_count_over_the_regions() {
        let pages = two_regions();
        assert_eq!(pages.page_count(), 3);
        let mut page = [0; 4096];
        pages.read_run(PageRun::one(PageIndex(2)), &mut page).unwrap();
        assert_eq!((page[0], page[4095]), (0, 9));
        assert!(pages.read_run(PageRun::one(PageIndex(3)), &mut page).is_err());
    }

    #[test]
    fn a_run_across_regions_is_read_whole() {
        let run = PageRun { first: PageIndex(1), count: 2 };
        let mut bytes = [0; 8192];
        two_regions().read_run(run, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[4095], bytes[4096], bytes[8191]), (7, 7, 0, 9));
    }
}
