//! The pages that this process writes, for those who follow all writes to guest memory.
//!
//! Every access of ours goes through `vm-memory`, which marks a page *after* it was written. So a
//! mark that was taken says that the bytes are there, and a write that was not seen is marked
//! later. Marks are always made: one atomic operation a write, and none of ours is in a loop.

use godwit_migration::page::PageSet;
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use vm_memory::{GuestMemoryBackend, MmapRegion};

use super::{GuestMemory, HOLE_START, MemoryError, Region, advice};

/// Base pages of one word of a bitmap.
pub(crate) const WORD_PAGES: u32 = u64::BITS;

// The bitmap of each region begins with a word of a `PageSet` of base pages, and a word has base
// pages of one huge page only.
const _: () = assert!(HOLE_START.is_multiple_of(WORD_PAGES as u64 * PageSize::BASE.bytes() as u64));
const _: () = assert!(PageSize::HUGE.in_units_of(PageSize::BASE).is_multiple_of(WORD_PAGES));

impl GuestMemory {
    /// The regions with their pages.
    pub(crate) fn numbered_regions(&self) -> impl Iterator<Item = (PageRun, &Region)> {
        let (mut next, size) = (0, self.page_size());
        self.regions.iter().map(move |region| {
            let pages = PageRun { first: PageIndex(next), count: region.page_count(size) };
            next += pages.count;
            (pages, region)
        })
    }

    /// The number of pages of all regions.
    pub fn page_count(&self) -> u32 {
        self.regions.iter().map(|region| region.page_count(self.page_size())).sum()
    }

    /// Empties `pages`, which lie inside the guest: what they hold is old, and their next access
    /// waits until they are installed again. The guest does not run meanwhile.
    ///
    /// # Errors
    /// [`MemoryError::Advise`].
    pub fn empty(&self, pages: PageRun) -> Result<(), MemoryError> {
        let size = self.page_size();
        for (all, region) in self.numbered_regions() {
            if let Some(part) = all.intersection(pages) {
                let offset = size.bytes_of(part.first.0 - all.first.0);
                let bytes = size.bytes_of(part.count);
                advice::empty(region, offset, bytes, self.backing)?;
            }
        }
        Ok(())
    }

    /// Adds the pages that this process has written since the call before to `dirty`.
    pub(crate) fn take_written(&self, dirty: &mut PageSet) {
        for ((pages, _), mapped) in self.numbered_regions().zip(self.inner.iter()) {
            let words = MmapRegion::bitmap(mapped).get_and_reset();
            insert_words(dirty, pages.first, self.page_size(), &words);
        }
    }
}

impl Region {
    /// The number of its pages of this size, which is that of its own or smaller.
    pub fn page_count(&self, size: PageSize) -> u32 {
        size.pages_in(self.bytes).expect("the layout limits the size of memory")
    }
}

/// Puts the pages of a region's bitmap into a set. The bitmap has a bit for each base page; the
/// set is one of pages of `size`, the first of which is `first`.
pub(crate) fn insert_words(dirty: &mut PageSet, first: PageIndex, size: PageSize, words: &[u64]) {
    if size == PageSize::BASE {
        for (word, &bits) in (first.0 / WORD_PAGES..).zip(words) {
            dirty.insert_word(word, bits);
        }
        return;
    }
    let words_of_page = size.in_units_of(PageSize::BASE) / WORD_PAGES;
    for (page, words) in (first.0..).zip(words.chunks(words_of_page as usize)) {
        if words.iter().any(|&bits| bits != 0) {
            dirty.insert(PageIndex(page));
        }
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
        let behind = memory.regions()[0].page_count(PageSize::BASE);
        let pages: Vec<_> = dirty.runs().flat_map(|run| run.pages()).map(|page| page.0).collect();
        assert_eq!(pages, [5, 6, behind + 1]);
        dirty.clear();
        memory.take_written(&mut dirty);
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_huge_page_is_written_if_a_part_of_it_is() {
        let mut words = vec![0; 5 * 8];
        (words[8], words[15], words[39]) = (1, 1 << 63, 1 << 63);
        let mut dirty = PageSet::empty(100);
        insert_words(&mut dirty, PageIndex(70), PageSize::HUGE, &words);
        let pages: Vec<_> = dirty.runs().flat_map(|run| run.pages()).map(|page| page.0).collect();
        assert_eq!(pages, [71, 74]);
    }
}
