//! The memory of a snapshot as a page provider.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use super::pages::PageTable;
use crate::page::PageSet;

const PAGE: PageSize = PageSize::BASE;

/// Neighbouring pages of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Zero.
    Zero(PageRun),
    /// With contents, which have to be read.
    Data(PageRun),
    /// Lost when the guest was saved.
    Lost(PageRun),
}

impl Stretch {
    /// The pages.
    pub fn run(self) -> PageRun {
        match self {
            Stretch::Zero(run) | Stretch::Data(run) | Stretch::Lost(run) => run,
        }
    }
}

/// The memory of a snapshot. Reading it needs no lock: the file is never written again.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    table: PageTable,
}

impl Image {
    pub(super) fn new(file: File, path: PathBuf, table: PageTable) -> Image {
        Image { file, path, table }
    }

    /// The number of pages.
    pub fn page_count(&self) -> u32 {
        self.table.data.page_count()
    }

    /// The file with the pages that have contents, page `n` at `n` times the page size. Zero pages
    /// are holes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where that file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pages that have contents.
    pub fn data(&self) -> &PageSet {
        &self.table.data
    }

    /// The pages that could not be read when the guest was saved.
    pub fn lost(&self) -> &PageSet {
        &self.table.lost
    }

    /// The first pages of `run`, a run of the guest that is not empty, that are of one kind.
    pub fn stretch(&self, run: PageRun) -> Stretch {
        let (data, lost) = (&self.table.data, &self.table.lost);
        let kind = |page| (data.contains(page), lost.contains(page));
        let first = kind(run.first);
        let count = run.pages().take_while(|&page| kind(page) == first).count();
        let run = run.first_pages(u32::try_from(count).expect("part of a run"));
        match first {
            (true, _) => Stretch::Data(run),
            (false, true) => Stretch::Lost(run),
            (false, false) => Stretch::Zero(run),
        }
    }

    /// Reads the contents of `run`, all of whose pages have some, into `out`, which is as long.
    /// They are what the file has: see [`Image::matches`].
    ///
    /// # Errors
    /// What reading returned. A file that was cut off is `UnexpectedEof`.
    pub fn read(&self, run: PageRun, out: &mut [u8]) -> io::Result<()> {
        debug_assert_eq!(out.len(), PAGE.length_of(run.count));
        self.file.read_exact_at(out, PAGE.bytes_of(run.first.0))
    }

    /// Whether `contents` are those that `page`, a page with contents, was saved with.
    pub fn matches(&self, page: PageIndex, contents: &[u8]) -> bool {
        self.table.matches(page, contents)
    }
}
