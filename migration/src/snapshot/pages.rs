//! The pages file: what each page of the memory is, and its checksum.

use std::path::Path;

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::SnapshotError;
use super::head::{HEAD_BYTES, Head, Kind};
use crate::page::PageSet;

const KIND: Kind = Kind { magic: *b"\x89GWPAGE\n", version: 1, name: "a file of pages" };

/// What each page is, with the checksums of those that have contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageTable {
    /// Pages whose contents are in the memory file.
    pub data: PageSet,
    /// Pages that could not be read when the guest was saved.
    pub lost: PageSet,
    /// CRC-32C of each page in `data`; 0 for others.
    sums: Vec<u32>,
}

/// Bytes of the file of a guest of `pages` pages.
pub(super) fn file_bytes(pages: u32) -> u64 {
    let words = u64::from(pages.div_ceil(u64::BITS));
    HEAD_BYTES as u64 + 2 * 8 * words + 4 * u64::from(pages)
}

impl PageTable {
    /// All pages zero.
    pub fn new(pages: u32) -> PageTable {
        let none = PageSet::empty(pages);
        PageTable { data: none.clone(), lost: none, sums: vec![0; pages as usize] }
    }

    /// The pages of `run` have these contents.
    pub fn set_data(&mut self, run: PageRun, contents: &[u8]) {
        self.data.insert_run(run);
        for (page, bytes) in run.pages().zip(contents.chunks(PageSize::BASE.bytes())) {
            self.sums[page.0 as usize] = crc32c::crc32c(bytes);
        }
    }

    /// `page` could not be read.
    pub fn set_lost(&mut self, page: PageIndex) {
        self.lost.insert(page);
    }

    /// Whether `contents` are those that `page`, a page with contents, was saved with.
    pub fn matches(&self, page: PageIndex, contents: &[u8]) -> bool {
        self.sums[page.0 as usize] == crc32c::crc32c(contents)
    }

    /// The file of snapshot `id`.
    pub fn encode(&self, id: Uuid) -> Vec<u8> {
        let pages = self.data.page_count();
        let mut out = vec![0; HEAD_BYTES];
        for set in [&self.data, &self.lost] {
            out.extend(set.words().iter().flat_map(|word| word.to_le_bytes()));
        }
        out.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        let header = Head::new(&KIND, id, pages, &out[HEAD_BYTES..]);
        out[..HEAD_BYTES].copy_from_slice(header.as_bytes());
        out
    }

    /// The table in `bytes`, which are all of the file at `path` of snapshot `id`, of a guest of
    /// `pages` pages.
    pub fn decode(
        path: &Path,
        id: Uuid,
        pages: u32,
        bytes: &[u8],
    ) -> Result<PageTable, SnapshotError> {
        let damaged = |what: &str| SnapshotError::damaged(path, what);
        let (header, body) =
            Head::read_from_prefix(bytes).map_err(|_| damaged("it is too short"))?;
        header.check(&KIND, path, id)?;
        if header.pages.get() != pages || header.page_bytes.get() != 4096 {
            return Err(damaged("it is for another number of pages, or another size of them"));
        }
        if bytes.len() as u64 != file_bytes(pages) {
            return Err(damaged("it does not have the length that its pages need"));
        }
        if header.body_crc.get() != crc32c::crc32c(body) {
            return Err(damaged("the checksum of its contents is wrong"));
        }
        let (sets, sums) = body.split_at(2 * 8 * pages.div_ceil(u64::BITS) as usize);
        let (data, lost) = sets.split_at(sets.len() / 2);
        let (data, lost) = (read_set(pages, data), read_set(pages, lost));
        if data.words().iter().zip(lost.words()).any(|(data, lost)| data & lost != 0) {
            return Err(damaged("a page is said to be lost and to have contents"));
        }
        let sums = sums.chunks_exact(4).map(|sum| u32::from_le_bytes(sum.try_into().expect("4")));
        Ok(PageTable { data, lost, sums: sums.collect() })
    }
}

fn read_set(pages: u32, bytes: &[u8]) -> PageSet {
    let mut set = PageSet::empty(pages);
    for (word, bits) in (0..).zip(bytes.chunks_exact(8)) {
        set.insert_word(word, u64::from_le_bytes(bits.try_into().expect("8")));
    }
    set
}
