//! Which pages the source has sent.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use godwit_uffd::page::PageIndex;

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

    /// The number of words: groups of 64 consecutive pages.
    pub fn word_count(&self) -> u32 {
        self.pages.div_ceil(WORD_PAGES)
    }

    /// The word that `page` is in.
    pub fn word_of(page: PageIndex) -> u32 {
        page.0 / WORD_PAGES
    }

    /// The first page of `word`.
    pub fn first_page(word: u32) -> PageIndex {
        PageIndex(word * WORD_PAGES)
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

    /// Takes what is left of `word`: one bit per page taken, the lowest for its first page.
    pub fn take_word(&self, word: u32) -> u64 {
        let in_word = (self.pages - word * WORD_PAGES).min(WORD_PAGES);
        let all = if in_word == WORD_PAGES { u64::MAX } else { (1 << in_word) - 1 };
        let taken = all & !self.words[word as usize].fetch_or(all, Ordering::AcqRel);
        self.remaining.fetch_sub(taken.count_ones(), Ordering::AcqRel);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_taken_once() {
        let sent = Sent::new(70);
        assert!(sent.take(PageIndex(3)));
        assert!(!sent.take(PageIndex(3)));
        assert_eq!(sent.take_word(0), !8);
        assert_eq!(sent.take_word(1), 0b11_1111);
        assert_eq!((sent.take_word(1), sent.remaining()), (0, 0));
        assert!(!sent.take(PageIndex(69)));
    }
}
