//! Sets of pages of one guest.

use godwit_uffd::page::{PageIndex, PageRun};

/// Pages in one word of a set.
const WORD_PAGES: u32 = u64::BITS;

/// A set of pages of a guest: one bit a page, owned by one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u32,
}

impl PageSet {
    /// The empty set of pages of a guest of `pages` pages.
    pub fn empty(pages: u32) -> PageSet {
        PageSet { words: vec![0; pages.div_ceil(WORD_PAGES) as usize], pages }
    }

    /// All pages of a guest of `pages` pages.
    pub fn full(pages: u32) -> PageSet {
        let mut set = PageSet::empty(pages);
        set.insert_run(PageRun { first: PageIndex(0), count: pages });
        set
    }

    /// The number of pages of the guest.
    pub fn page_count(&self) -> u32 {
        self.pages
    }

    /// The number of pages in the set.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether `page`, a page of the guest, is in the set.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.words[(page.0 / WORD_PAGES) as usize] & (1 << (page.0 % WORD_PAGES)) != 0
    }

    /// Puts `page`, a page of the guest, into the set.
    pub fn insert(&mut self, page: PageIndex) {
        self.insert_run(PageRun::one(page));
    }

    /// Puts the pages of `run`, which lies inside the guest, into the set.
    pub fn insert_run(&mut self, run: PageRun) {
        assert!(run.end() <= u64::from(self.pages), "{run} of {} pages", self.pages);
        for (index, mask) in masks(run) {
            self.words[index] |= mask;
        }
    }

    /// Takes the pages of `run`, which lies inside the guest, out of the set.
    pub fn remove_run(&mut self, run: PageRun) {
        assert!(run.end() <= u64::from(self.pages), "{run} of {} pages", self.pages);
        for (index, mask) in masks(run) {
            self.words[index] &= !mask;
        }
    }

    /// Puts all pages of `other`, a set of the same guest, into this one.
    pub fn insert_all(&mut self, other: &PageSet) {
        assert_eq!(self.pages, other.pages);
        for (word, others) in self.words.iter_mut().zip(&other.words) {
            *word |= others;
        }
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The pages of the set as the words of a bitmap: bit `i % 64` of word `i / 64` is page `i`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Puts the pages that `bits` names into the set: bit `i` stands for page `64 * word + i`.
    /// Bits behind the guest's last page are left out.
    pub fn insert_word(&mut self, word: u32, bits: u64) {
        let behind = self.pages.saturating_sub(word * WORD_PAGES).min(WORD_PAGES);
        let inside = if behind == WORD_PAGES { u64::MAX } else { (1 << behind) - 1 };
        self.words[word as usize] |= bits & inside;
    }

    /// The pages of the set as the longest runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> {
        let mut next = 0u32;
        std::iter::from_fn(move || {
            let first = self.find(next, true)?;
            let end = self.find(first, false).unwrap_or(self.pages);
            next = end;
            Some(PageRun { first: PageIndex(first), count: end - first })
        })
    }

    /// The first page from `from` on that is in the set, or is not.
    fn find(&self, from: u32, wanted: bool) -> Option<u32> {
        let mut index = (from / WORD_PAGES) as usize;
        let mut skip = from % WORD_PAGES;
        while let Some(&word) = self.words.get(index) {
            let bits = (if wanted { word } else { !word }) >> skip << skip;
            if bits != 0 {
                let at = u32::try_from(index).expect("a word of an index") * WORD_PAGES;
                let page = at + bits.trailing_zeros();
                return (page < self.pages).then_some(page);
            }
            (index, skip) = (index + 1, 0);
        }
        None
    }
}

/// The words that `run` touches, with the bits of its pages.
fn masks(run: PageRun) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (u64::from(run.first.0), run.end());
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (index, low) = (at / u64::from(WORD_PAGES), at % u64::from(WORD_PAGES));
        let count = (end - at).min(u64::from(WORD_PAGES) - low);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << low };
        at += count;
        Some((usize::try_from(index).expect("a word of an index"), mask))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    #[test]
    fn runs_are_what_was_put_in() {
        let mut set = PageSet::empty(200);
        for piece in [run(0, 3), run(60, 10), run(128, 72)] {
            set.insert_run(piece);
        }
        assert_eq!(set.runs().collect::<Vec<_>>(), [run(0, 3), run(60, 10), run(128, 72)]);
        assert_eq!(set.len(), 85);
        set.remove_run(run(62, 130));
        assert_eq!(set.runs().collect::<Vec<_>>(), [run(0, 3), run(60, 2), run(192, 8)]);
        assert!(set.contains(PageIndex(61)) && !set.contains(PageIndex(62)));
    }

    #[test]
    fn all_and_none_have_one_run_and_no_run() {
        for pages in [1, 63, 64, 65, 200] {
            assert_eq!(PageSet::full(pages).runs().collect::<Vec<_>>(), [run(0, pages)]);
            assert!(PageSet::empty(pages).is_empty());
        }
    }

    #[test]
    fn bits_behind_the_last_page_are_left_out() {
        let mut set = PageSet::empty(70);
        set.insert_word(1, u64::MAX);
        assert_eq!(set.runs().collect::<Vec<_>>(), [run(64, 6)]);
        assert_eq!(set.words(), [0, 0b11_1111]);
    }
}
