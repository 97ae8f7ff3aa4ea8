//! The memory of a paused guest as a page provider.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileMemory, VolatileMemoryError,
    VolatileSlice, WriteVolatile,
};

const PAGE: PageSize = PageSize::BASE;

/// Reads pages of guest memory by index, over the memslots in address order.
///
/// The guest is paused and its devices are drained while pages are read, so that no page changes
/// under the reader.
#[derive(Clone, Debug)]
pub struct GuestPages {
    memory: Arc<GuestMemoryMmap>,
    /// First page index of each region, and the count behind the last.
    starts: Vec<u32>,
}

impl GuestPages {
    /// All regions of `memory`, which are whole pages and at most `u32::MAX` pages together.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> GuestPages {
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
    fn slice(&self, run: PageRun) -> io::Result<(VolatileSlice<'_>, u32)> {
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

    /// Copies one page to `out`, which is one page long.
    ///
    /// # Errors
    /// A page outside the guest.
    pub fn read(&self, page: PageIndex, out: &mut [u8]) -> io::Result<()> {
        let (slice, _) = self.slice(PageRun::one(page))?;
        let copied = slice.copy_to(out);
        debug_assert_eq!(copied, PAGE.bytes());
        Ok(())
    }

    /// A copy of the pages of `run`.
    ///
    /// # Errors
    /// A run outside the guest.
    pub fn read_run(&self, run: PageRun) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE.length_of(run.count)];
        for (page, out) in run.pages().zip(bytes.chunks_mut(PAGE.bytes())) {
            self.read(page, out)?;
        }
        Ok(bytes)
    }

    /// Whether all bytes of `page` are zero. Stops at the first that is not.
    ///
    /// # Errors
    /// A page outside the guest.
    pub fn is_zero(&self, page: PageIndex) -> io::Result<bool> {
        let (slice, _) = self.slice(PageRun::one(page))?;
        let words = slice
            .get_array_ref::<[u64; 8]>(0, PAGE.bytes() / size_of::<[u64; 8]>())
            .map_err(io::Error::other)?;
        Ok((0..words.len()).all(|i| words.load(i).iter().fold(0, |all, word| all | word) == 0))
    }

    /// Writes the contents of `run` to `stream`, from guest memory without a copy in between.
    ///
    /// # Errors
    /// Whatever the stream returns, or a run outside the guest.
    pub fn write_to(&self, mut run: PageRun, stream: impl AsFd) -> io::Result<()> {
        let mut stream = stream.as_fd();
        while run.count > 0 {
            let (slice, count) = self.slice(run)?;
            stream.write_all_volatile(&slice).map_err(|error| match error {
                VolatileMemoryError::IOError(error) => error,
                other => io::Error::other(other),
            })?;
            run = PageRun { first: PageIndex(run.first.0 + count), count: run.count - count };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

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
        let zero = |page| pages.is_zero(PageIndex(page)).unwrap();
        assert_eq!((zero(0), zero(1), zero(2)), (true, false, false));
        let mut page = [0; 4096];
        pages.read(PageIndex(2), &mut page).unwrap();
        assert_eq!((page[0], page[4095]), (0, 9));
        assert!(pages.is_zero(PageIndex(3)).is_err());
    }

    #[test]
    fn a_run_across_regions_is_written_whole() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let run = PageRun { first: PageIndex(1), count: 2 };
        two_regions().write_to(run, &writer).unwrap();
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes.len(), bytes[0], bytes[4096], bytes[8191]), (8192, 7, 0, 9));
    }
}
