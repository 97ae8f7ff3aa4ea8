//! The pages that this process writes, for those who follow all writes to guest memory.
//!
//! Every access of ours goes through `vm-memory`, which marks a page *after* it was written. So a
//! mark that was taken says that the bytes are there, and a write that was not seen is marked
//! later. Marks are always made: one atomic operation a write, and none of ours is in a loop.

use godwit_migration::page::PageSet;
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use vm_memory::{GuestMemoryBackend, MmapRegion};

use super::{GuestMemory, HOLE_START, MemoryError, Region, advice};

/// Pages of one word of a bitmap.
pub(crate) const WORD_PAGES: u32 = u64::BITS;

// The bitmap of each region begins with a word of a `PageSet`.
const _: () = assert!(HOLE_START.is_multiple_of(WORD_PAGES as u64 * PageSize::BASE.bytes() as u64));

impl GuestMemory {
    /// The regions with the index of their first page, which is a multiple of [`WORD_PAGES`].
    pub(crate) fn numbered_regions(&self) -> impl Iterator<Item = (PageIndex, &Region)> {
        let mut next = 0;
        self.regions.iter().map(move |region| {
            let first = PageIndex(next);
            next += region.page_count();
            (first, region)
        })
    }

    /// The number of pages of all regions.
    pub fn page_count(&self) -> u32 {
        self.regions.iter().map(Region::page_count).sum()
    }

    /// Empties `pages`, which lie inside the guest: what they hold is old, and their next access
    /// waits until they are installed again. The guest does not run meanwhile.
    ///
    /// # Errors
    /// [`MemoryError::Advise`].
    pub fn empty(&self, pages: PageRun) -> Result<(), MemoryError> {
        for (first, region) in self.numbered_regions() {
            let all = PageRun { first, count: region.page_count() };
            if let Some(part) = all.intersection(pages) {
                let offset = PageSize::BASE.bytes_of(part.first.0 - first.0);
                let bytes = PageSize::BASE.bytes_of(part.count);
                advice::empty(region, offset, bytes, self.backing)?;
            }
        }
        Ok(())
    }

    /// Adds the pages that this process has written since the call before to `dirty`.
    pub(crate) fn take_written(&self, dirty: &mut PageSet) {
        for ((first, _), mapped) in self.numbered_regions().zip(self.inner.iter()) {
            insert_words(dirty, first, &MmapRegion::bitmap(mapped).get_and_reset());
        }
    }
}

impl Region {
    /// The number of its pages.
    pub fn page_count(&self) -> u32 {
        PageSize::BASE.pages_in(self.bytes).expect("the layout limits the size of memory")
    }
}

/// Puts the pages of a region's bitmap into a set.
pub(crate) fn insert_words(dirty: &mut PageSet, first: PageIndex, words: &[u64]) {
    for (word, &bits) in (first.0 / WORD_PAGES..).zip(words) {
        dirty.insert_word(word, bits);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Backing, HOLE_END};

    #[test]
    fn pages_that_are_written_are_told_once_under_their_numbers() {
        let bytes = HOLE_START + (1 << 20);
        let memory = GuestMemory::create(bytes, Backing::Anon).unwrap();
        let mut dirty = PageSet::empty(memory.page_count());
        memory.take_written(&mut dirty);
        assert!(dirty.is_empty());
        memory.inner().write_slice(&[1; 2], GuestAddress(0x5fff)).unwrap();
        memory.inner().write_obj(1u64, GuestAddress(HOLE_END + 0x1000)).unwrap();
        memory.inner().read_obj::<u64>(GuestAddress(0x9000)).unwrap();
        memory.take_written(&mut dirty);
        let behind = memory.regions()[0].page_count();
        let pages: Vec<_> = dirty.runs().flat_map(|run| run.pages()).map(|page| page.0).collect();
        assert_eq!(pages, [5, 6, behind + 1]);
        dirty.clear();
        memory.take_written(&mut dirty);
        assert!(dirty.is_empty());
    }
}
