//! Which pages the source has sent.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use godwit_uffd::page::{PageIndex, PageRun};

use super::PageSet;

/// Pages in one word of the bitmap.
const WORD_PAGES: u32 = u64::BITS;

/// One bit a page: taken by the channel that sends it, so that a page asked for and pushed at the
/// same time travels once.
#[derive(Debug)]
pub struct Sent {
    words: Box<[AtomicU64]>,
    pages: u32,
    remaining: AtomicU32,
}

impl Sent {
    /// None of `pages` sent.
    pub fn new(pages: u32) -> Sent {
        let words = (0..pages.div_ceil(WORD_PAGES)).map(|_| AtomicU64::new(0)).collect();
        Sent { words, pages, remaining: AtomicU32::new(pages) }
    }

    /// The number of pages of the guest.
    pub fn page_count(&self) -> u32 {
        self.pages
    }

    /// Pages that no channel has taken.
    pub fn remaining(&self) -> u32 {
        self.remaining.load(Ordering::Acquire)
    }

    /// The word that `page` is in.
    fn word_of(page: PageIndex) -> u32 {
        page.0 / WORD_PAGES
    }

    /// Takes one page. False if another channel has taken it.
    pub fn take(&self, page: PageIndex) -> bool {
        assert!(page.0 < self.pages, "{page} of {}", self.pages);
        let bit = 1u64 << (page.0 % WORD_PAGES);
        let word = &self.words[Sent::word_of(page) as usize];
        let taken = word.fetch_or(bit, Ordering::AcqRel) & bit == 0;
        if taken {
            self.remaining.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }

    /// Takes what is left of the `wanted` pages of `group`, which are in one word: one bit a page,
    /// the lowest for its first. Returns those that were taken.
    pub fn take_of_group(&self, group: PageRun, wanted: u64) -> u64 {
        let (first, word) = (group.first.0, &self.words[Sent::word_of(group.first) as usize]);
        let count = group.count.min(self.pages - first);
        let shift = first % WORD_PAGES;
        assert!(shift + count <= WORD_PAGES, "{group} is not in one word");
        let wanted = (wanted & (u64::MAX >> (WORD_PAGES - count))) << shift;
        // Groups are passed over again and again, and looking is cheaper than taking.
        if wanted & !word.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let taken = wanted & !word.fetch_or(wanted, Ordering::AcqRel);
        self.remaining.fetch_sub(taken.count_ones(), Ordering::AcqRel);
        taken >> shift
    }

    /// The pages of `pages` have to be sent again. Returns how many of them had been.
    pub fn give_back(&self, pages: &PageSet) -> u32 {
        assert_eq!(pages.page_count(), self.pages);
        let mut given = 0;
        for (word, &bits) in self.words.iter().zip(pages.words()) {
            given += (word.fetch_and(!bits, Ordering::AcqRel) & bits).count_ones();
        }
        self.remaining.fetch_add(given, Ordering::AcqRel);
        given
    }

    /// What the destination has is what was sent, and nothing else. Nobody takes pages meanwhile.
    pub fn reset(&self, received: &PageSet) {
        assert_eq!(received.page_count(), self.pages);
        for (word, &bits) in self.words.iter().zip(received.words()) {
            word.store(bits, Ordering::Release);
        }
        self.remaining.store(self.pages - received.len(), Ordering::Release);
    }

    /// The pages that are not sent.
    pub fn left(&self) -> PageSet {
        let mut left = PageSet::empty(self.pages);
        for (index, word) in (0..).zip(&self.words) {
            left.insert_word(index, !word.load(Ordering::Acquire));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_given_back_are_left_again() {
        let sent = Sent::new(70);
        (0..70).for_each(|page| assert!(sent.take(PageIndex(page))));
        let mut dirty = PageSet::empty(70);
        dirty.insert(PageIndex(5));
        dirty.insert(PageIndex(69));
        assert_eq!((sent.give_back(&dirty), sent.give_back(&dirty)), (2, 0));
        assert_eq!((sent.remaining(), sent.left()), (2, dirty.clone()));
        assert!(sent.take(PageIndex(69)));
        sent.reset(&dirty);
        assert_eq!((sent.remaining(), sent.take(PageIndex(5))), (68, false));
    }

    #[test]
    fn each_page_is_taken_once() {
        let sent = Sent::new(70);
        assert!(sent.take(PageIndex(3)));
        assert!(!sent.take(PageIndex(3)));
        let group = |first, count, wanted| {
            sent.take_of_group(PageRun { first: PageIndex(first), count }, wanted)
        };
        assert_eq!((group(2, 1, 1), group(2, 4, !0b1000)), (1, 0b0100));
        assert_eq!(group(0, 64, 0b1111_1000), 0b1110_0000);
        assert_eq!(group(0, 64, u64::MAX), !0b1111_1100);
        assert_eq!(group(64, 64, u64::MAX), 0b11_1111);
        assert_eq!((group(64, 64, u64::MAX), sent.remaining()), (0, 0));
        assert!(!sent.take(PageIndex(69)));
    }
}
