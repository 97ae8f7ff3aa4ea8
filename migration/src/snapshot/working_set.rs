//! Working sets: the pages that a guest touched first after a restore, in the order of that, with
//! their contents in the same order, so that they are brought in by one read from start to end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::head::{HEAD_BYTES, Head, Kind};
use super::{Image, PARTIAL, SnapshotError};
use crate::limits::WORKING_SET_PAGES_MAX;
use crate::page::PageSet;

const PAGE: PageSize = PageSize::BASE;
const KIND: Kind = Kind { magic: *b"\x89GWWSET\n", version: 1, name: "a working set" };

/// Pages of a recording that are put in the order of their addresses: neighbours are installed in
/// one piece, and what is touched first still comes first.
const SORTED_PAGES: usize = 1024;

/// A working set that belongs to a snapshot.
#[derive(Debug)]
pub struct WorkingSet {
    file: File,
    pages: Vec<PageIndex>,
}

/// Where the contents begin: behind the list, at the start of a page.
fn contents_at(pages: usize) -> u64 {
    (HEAD_BYTES + 4 * pages).next_multiple_of(PAGE.bytes()) as u64
}

impl WorkingSet {
    /// Opens the working set at `path`, which has to belong to the snapshot `id` with `image`.
    ///
    /// # Errors
    /// [`SnapshotError`]: it is not there, damaged, newer than this build, or of another snapshot.
    pub fn open(path: &Path, id: Uuid, image: &Image) -> Result<WorkingSet, SnapshotError> {
        let damaged = |what: &str| SnapshotError::damaged(path, what);
        let file = File::open(path).map_err(SnapshotError::io("open", path))?;
        let mut header = [0; HEAD_BYTES];
        read_exact_at(&file, &mut header, 0, path)?;
        let header = Head::read_from_bytes(&header).expect("as long as it is");
        header.check(&KIND, path, id)?;
        if header.page_bytes.get() != 4096 {
            return Err(damaged("it was recorded with pages of another size"));
        }
        if header.pages.get() > WORKING_SET_PAGES_MAX {
            return Err(damaged("it has more pages than can be recorded"));
        }
        let mut list = vec![0; 4 * header.pages.get() as usize];
        read_exact_at(&file, &mut list, HEAD_BYTES as u64, path)?;
        if header.body_crc.get() != crc32c::crc32c(&list) {
            return Err(damaged("the checksum of its list is wrong"));
        }
        let pages = list.chunks_exact(4).map(|page| page.try_into().expect("4"));
        let pages: Vec<_> = pages.map(|page| PageIndex(u32::from_le_bytes(page))).collect();
        let data = check_pages(&pages, image).map_err(damaged)?;
        let bytes = contents_at(pages.len()) + PAGE.bytes_of(data);
        let meta = file.metadata().map_err(SnapshotError::io("look at", path))?;
        if meta.len() != bytes {
            return Err(damaged("it does not have the length that its pages need"));
        }
        Ok(WorkingSet { file, pages })
    }

    /// The pages, in the order in which they are to come.
    pub fn pages(&self) -> &[PageIndex] {
        &self.pages
    }

    /// Reads the contents of as many pages as `out` holds, of those that have contents, from the
    /// one before which `before` others are.
    ///
    /// # Errors
    /// What reading returned.
    pub fn read(&self, before: u32, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, contents_at(self.pages.len()) + PAGE.bytes_of(before))
    }

    /// Writes what was recorded of a guest that came from snapshot `id` with `image`: `touched`, in
    /// the order of that, each page once. The file is written aside, synced and renamed. Pages
    /// whose contents cannot be vouched for are left out.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; what was there before then stands.
    pub fn write(
        path: &Path,
        id: Uuid,
        image: &Image,
        touched: &[PageIndex],
    ) -> Result<u32, SnapshotError> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(PARTIAL);
        let aside = PathBuf::from(aside);
        let written = write_aside(&aside, id, image, touched)
            .and_then(|pages| fs::rename(&aside, path).map(|()| pages));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written.map_err(SnapshotError::io("write", path))
    }
}

fn read_exact_at(file: &File, out: &mut [u8], at: u64, path: &Path) -> Result<(), SnapshotError> {
    file.read_exact_at(out, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::damaged(path, "it is too short"),
        _ => SnapshotError::io("read", path)(error),
    })
}

/// How many of `pages` have contents.
fn check_pages(pages: &[PageIndex], image: &Image) -> Result<u32, &'static str> {
    let (mut seen, mut data) = (PageSet::empty(image.page_count()), 0);
    for &page in pages {
        if page.0 >= image.page_count() {
            return Err("it has a page that the guest does not have");
        }
        if seen.contains(page) {
            return Err("it has a page twice");
        }
        seen.insert(page);
        data += u32::from(image.data().contains(page));
    }
    Ok(data)
}

fn write_aside(path: &Path, id: Uuid, image: &Image, touched: &[PageIndex]) -> io::Result<u32> {
    let mut contents = vec![0; PAGE.bytes()];
    let mut is_right = |page: &PageIndex| {
        if image.lost().contains(*page) {
            return false;
        }
        let run = PageRun::one(*page);
        !image.data().contains(*page)
            || image.read(run, &mut contents).is_ok() && image.matches(*page, &contents)
    };
    let mut pages: Vec<PageIndex> = touched.iter().copied().filter(|page| is_right(page)).collect();
    pages.chunks_mut(SORTED_PAGES).for_each(<[PageIndex]>::sort_unstable);
    let list: Vec<u8> = pages.iter().flat_map(|page| page.0.to_le_bytes()).collect();
    let count = u32::try_from(pages.len()).map_err(io::Error::other)?;
    let header = Head::new(&KIND, id, count, &list);
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = BufWriter::with_capacity(256 << 10, options.open(path)?);
    file.write_all(header.as_bytes())?;
    file.write_all(&list)?;
    let start = usize::try_from(contents_at(pages.len())).map_err(io::Error::other)?;
    file.write_all(&vec![0; start - HEAD_BYTES - list.len()])?;
    for &page in pages.iter().filter(|page| image.data().contains(**page)) {
        image.read(PageRun::one(page), &mut contents)?;
        file.write_all(&contents)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(count)
}
