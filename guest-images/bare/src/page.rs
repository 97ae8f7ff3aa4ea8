//! What an owned page holds, and the check of every byte of it.
//!
//! Most pages have words of 64 bits: 0 the page index, 1 the generation, 2 the checksum, 3 the link
//! (the index of the next page of the chase, else 0), and from 4 on filler. Filler word
//! `4 + 4 * block + lane` depends on the seed, the index, the generation and its own place, so that
//! a page that is stale, misplaced or damaged in any byte differs from what is expected. Four
//! independent lanes let the processor work on four words at a time.
//!
//! The filler is noise, or words of a dictionary that noise chooses, so that it packs as text does.
//! Other pages are one word over and over, without a header.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = 512;
/// Neighbours that are full of the same word, as memory is that somebody has marked as unused.
pub const WORD_PAGES: u64 = 64;
/// The word that holds the index of the next page of the chase.
pub const LINK_WORD: usize = 3;

/// The memory of one page. Atomic words, because another vCPU may write it at any time; relaxed
/// atomic access compiles to plain loads and stores.
pub type Page = [AtomicU64; PAGE_WORDS];

/// What pages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Noise, which nothing packs.
    Random,
    /// Words of a small dictionary.
    Text,
    /// One word over and over, another one for each [`WORD_PAGES`] and generation.
    Word,
    /// Zeros: any wrong byte is found, but not a page that is stale or misplaced.
    Zero,
}

impl Data {
    /// Whether a page has a header, with a link.
    pub const fn has_header(self) -> bool {
        matches!(self, Data::Random | Data::Text)
    }
}

/// What a page is meant to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The seed of the whole guest.
    pub seed: u64,
    /// The index of the page in the arena.
    pub index: u64,
    /// How often the page was written; the first fill is 1.
    pub generation: u64,
    /// The index of the next page of the chase, 0 for other workloads.
    pub link: u64,
    /// What the page is made of.
    pub data: Data,
}

impl Content {
    /// What everything in the page depends on but the link.
    fn key(&self) -> u64 {
        mix(mix(self.seed ^ mix(self.index)).wrapping_add(self.generation))
    }

    /// What a page of [`Data::Word`] is full of.
    fn word(&self) -> u64 {
        Content { index: self.index / WORD_PAGES, ..*self }.key()
    }
}

/// The first word that differs from what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Byte offset of the word in the page.
    pub offset: usize,
    /// The word in memory.
    pub found: u64,
    /// The word that should be there.
    pub wanted: u64,
    /// Words of the page that differ.
    pub words: usize,
}

/// Writes all words of `page`.
pub fn write(page: &Page, content: &Content) {
    match content.data {
        Data::Random => write_filled::<false>(page, content),
        Data::Text => write_filled::<true>(page, content),
        Data::Word => page.iter().for_each(|word| word.store(content.word(), Relaxed)),
        Data::Zero => page.iter().for_each(|word| word.store(0, Relaxed)),
    }
}

/// Compares all words of `page` with what `content` says.
///
/// # Errors
/// The first word that differs.
pub fn verify(page: &Page, content: &Content) -> Result<(), Mismatch> {
    match content.data {
        Data::Random => verify_filled::<false>(page, content),
        Data::Text => verify_filled::<true>(page, content),
        Data::Word => verify_repeated(page, content.word()),
        Data::Zero => verify_zero(page),
    }
}

/// Checks that a page that nobody has written reads as zero.
///
/// # Errors
/// The first word that is not zero.
pub fn verify_zero(page: &Page) -> Result<(), Mismatch> {
    verify_repeated(page, 0)
}

/// Scatters the bits of `x`: a bijection of 64-bit words (the finalizer of SplitMix64).
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn write_filled<const TEXT: bool>(page: &Page, content: &Content) {
    let mut filler = Filler::<TEXT>::new(content);
    for block in page[HEADER_WORDS..].as_chunks::<LANES>().0 {
        for (word, filled) in block.iter().zip(filler.next_block()) {
            word.store(filled, Relaxed);
        }
    }
    for (word, value) in page.iter().zip(header(content, filler.checksum())) {
        word.store(value, Relaxed);
    }
}

fn verify_filled<const TEXT: bool>(page: &Page, content: &Content) -> Result<(), Mismatch> {
    let mut filler = Filler::<TEXT>::new(content);
    let mut different = 0;
    for block in page[HEADER_WORDS..].as_chunks::<LANES>().0 {
        for (word, wanted) in block.iter().zip(filler.next_block()) {
            different |= word.load(Relaxed) ^ wanted;
        }
    }
    for (word, wanted) in page.iter().zip(header(content, filler.checksum())) {
        different |= word.load(Relaxed) ^ wanted;
    }
    if different == 0 { Ok(()) } else { compare(page, |at| wanted_word::<TEXT>(content, at)) }
}

fn verify_repeated(page: &Page, wanted: u64) -> Result<(), Mismatch> {
    let different = page.iter().fold(0, |all, word| all | (word.load(Relaxed) ^ wanted));
    if different == 0 { Ok(()) } else { compare(page, |_| wanted) }
}

/// The slow comparison that finds out where a page differs. A page that another vCPU has put right
/// in the meantime is reported all the same, as differing in no word.
fn compare(page: &Page, wanted: impl Fn(usize) -> u64) -> Result<(), Mismatch> {
    let mut first: Option<Mismatch> = None;
    for (at, word) in page.iter().enumerate() {
        let (found, wanted) = (word.load(Relaxed), wanted(at));
        if found != wanted {
            let offset = at * size_of::<u64>();
            let known = first.get_or_insert(Mismatch { offset, found, wanted, words: 0 });
            known.words += 1;
        }
    }
    Err(first.unwrap_or(Mismatch { offset: 0, found: 0, wanted: 0, words: 0 }))
}

fn wanted_word<const TEXT: bool>(content: &Content, at: usize) -> u64 {
    let mut filler = Filler::<TEXT>::new(content);
    let mut wanted = 0;
    for block in 0..BLOCKS {
        for (lane, word) in filler.next_block().into_iter().enumerate() {
            if HEADER_WORDS + block * LANES + lane == at {
                wanted = word;
            }
        }
    }
    header(content, filler.checksum()).get(at).copied().unwrap_or(wanted)
}

fn header(content: &Content, filler_checksum: u64) -> [u64; HEADER_WORDS] {
    let whole = filler_checksum
        ^ mix(content.index.wrapping_add(GOLDEN))
        ^ mix(content.generation.wrapping_add(GOLDEN << 1))
        ^ mix(content.link.wrapping_add(GOLDEN << 2));
    [content.index, content.generation, whole, content.link]
}

/// Makes the filler of one page, a block of one word per lane at a time: noise or, if `TEXT`, words
/// of the dictionary.
struct Filler<const TEXT: bool> {
    state: [u64; LANES],
    sums: [u64; LANES],
}

impl<const TEXT: bool> Filler<TEXT> {
    fn new(content: &Content) -> Filler<TEXT> {
        let state = core::array::from_fn(|lane| mix(content.key() ^ lane as u64));
        Filler { state, sums: [0; LANES] }
    }

    #[inline(always)]
    fn next_block(&mut self) -> [u64; LANES] {
        core::array::from_fn(|lane| {
            self.state[lane] = self.state[lane].wrapping_add(GOLDEN);
            let x = self.state[lane];
            let x = (x ^ (x >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let noise = x ^ (x >> 29);
            let word = if TEXT { DICTIONARY[(noise >> DICTIONARY_SHIFT) as usize] } else { noise };
            self.sums[lane] = self.sums[lane].rotate_left(9).wrapping_add(word);
            word
        })
    }

    fn checksum(&self) -> u64 {
        self.sums.iter().fold(0, |all, sum| mix(all).wrapping_add(*sum))
    }
}

/// Words of eight letters.
const fn dictionary() -> [u64; DICTIONARY_WORDS] {
    let mut words = [0; DICTIONARY_WORDS];
    let mut at = 0;
    while at < DICTIONARY_WORDS {
        let (mut noise, mut letters) = (mix(at as u64 + 1), [0; 8]);
        let mut letter = 0;
        while letter < letters.len() {
            letters[letter] = b'a' + (noise % 26) as u8;
            noise /= 26;
            letter += 1;
        }
        words[at] = u64::from_le_bytes(letters);
        at += 1;
    }
    words
}

static DICTIONARY: [u64; DICTIONARY_WORDS] = dictionary();
/// So few that a page has each of them several times.
const DICTIONARY_WORDS: usize = 64;
const DICTIONARY_SHIFT: u32 = u64::BITS - DICTIONARY_WORDS.ilog2();
const HEADER_WORDS: usize = 4;
const LANES: usize = 4;
const BLOCKS: usize = (PAGE_WORDS - HEADER_WORDS) / LANES;
/// 2^64 divided by the golden ratio: an odd step that visits all words.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const _: () = assert!(HEADER_WORDS + BLOCKS * LANES == PAGE_WORDS);
const _: () = assert!(PAGE_WORDS as u64 * 8 == PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Content =
        Content { seed: 7, index: 42, generation: 3, link: 0, data: Data::Random };
    const ALL: [Data; 4] = [Data::Random, Data::Text, Data::Word, Data::Zero];

    fn zero_page() -> Page {
        [const { AtomicU64::new(0) }; PAGE_WORDS]
    }

    #[test]
    fn written_page_verifies() {
        for data in ALL {
            let (page, content) = (zero_page(), Content { data, ..CONTENT });
            write(&page, &content);
            assert_eq!(verify(&page, &content), Ok(()), "{data:?}");
            if data.has_header() {
                assert_eq!(page[0].load(Relaxed), 42);
                assert_eq!(page[1].load(Relaxed), 3);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_found_where_it_is() {
        for (data, at) in ALL.into_iter().flat_map(|data| (0..PAGE_WORDS).map(move |at| (data, at)))
        {
            let (page, content) = (zero_page(), Content { data, ..CONTENT });
            write(&page, &content);
            for bit in [0, 31, 63] {
                let good = page[at].fetch_xor(1 << bit, Relaxed);
                let found = good ^ (1 << bit);
                let mismatch = Mismatch { offset: at * 8, found, wanted: good, words: 1 };
                assert_eq!(verify(&page, &content), Err(mismatch), "{data:?}");
                page[at].store(good, Relaxed);
            }
        }
    }

    #[test]
    fn each_kind_of_data_is_what_it_is_called() {
        let words = |data, generation| {
            let page = zero_page();
            write(&page, &Content { data, generation, ..CONTENT });
            let mut words: Vec<u64> = page.iter().map(|word| word.load(Relaxed)).collect();
            words.sort_unstable();
            words.dedup();
            words
        };
        assert!(words(Data::Random, 3).len() > PAGE_WORDS - HEADER_WORDS, "all of noise differ");
        let text = words(Data::Text, 3).len();
        assert!(text <= DICTIONARY_WORDS + HEADER_WORDS && text > DICTIONARY_WORDS / 2, "{text}");
        assert_eq!(words(Data::Word, 3).len(), 1);
        assert_ne!(words(Data::Word, 3), words(Data::Word, 4));
        assert_eq!(words(Data::Zero, 3), [0]);
        let word = |index| Content { index, ..CONTENT }.word();
        assert_eq!((word(0), word(WORD_PAGES)), (word(63), word(127)));
        assert_ne!(word(63), word(64));
    }

    #[test]
    fn a_stale_page_of_words_is_found() {
        for data in [Data::Text, Data::Word] {
            let (page, content) = (zero_page(), Content { data, ..CONTENT });
            write(&page, &Content { generation: 2, ..content });
            assert!(verify(&page, &content).is_err(), "{data:?}");
        }
    }

    #[test]
    fn stale_page_is_found_though_it_agrees_with_itself() {
        let page = zero_page();
        write(&page, &Content { generation: 2, ..CONTENT });
        let mismatch = verify(&page, &CONTENT).unwrap_err();
        assert_eq!((mismatch.offset, mismatch.found, mismatch.wanted), (8, 2, 3));
        assert!(mismatch.words > PAGE_WORDS - HEADER_WORDS);
    }

    #[test]
    fn content_of_another_page_is_found() {
        let page = zero_page();
        write(&page, &Content { index: 43, ..CONTENT });
        assert_eq!(verify(&page, &CONTENT).unwrap_err().offset, 0);
        write(&page, &Content { seed: 8, ..CONTENT });
        assert_eq!(verify(&page, &CONTENT).unwrap_err().offset, 16);
        write(&page, &Content { link: 1, ..CONTENT });
        assert_eq!(verify(&page, &CONTENT).unwrap_err().words, 2);
    }

    #[test]
    fn only_zeros_are_a_zero_page() {
        let page = zero_page();
        assert_eq!(verify_zero(&page), Ok(()));
        page[511].store(1, Relaxed);
        let mismatch = Mismatch { offset: 4088, found: 1, wanted: 0, words: 1 };
        assert_eq!(verify_zero(&page), Err(mismatch));
    }
}
