//! Reading all of a snapshot's memory at once: into a guest, or only to see that it is right.

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use crate::provider::GuestPages;
use crate::snapshot::{Image, Stretch};

const PAGE: PageSize = PageSize::BASE;

/// Pages that one thread takes at a time, so that neighbours are read one after the other.
const SHARE_PAGES: u32 = 2048;
/// Pages that are read in one piece: what the cache of a core holds.
const PIECE_PAGES: u32 = 64;
/// Most threads that read.
const THREADS_MAX: usize = 4;

/// Why the memory of a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file system said no.
    #[error("cannot read {run} from {path}")]
    Read {
        /// The pages.
        run: PageRun,
        /// The memory file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A page is not what was saved.
    #[error("{path} is damaged: the checksum of {page} is wrong")]
    Damaged {
        /// The page.
        page: PageIndex,
        /// The memory file.
        path: PathBuf,
    },
    /// A page was lost before.
    #[error(
        "{page} of the guest was lost before it was saved; a restore on demand lets the guest run \
         as long as it does not need that page"
    )]
    Lost {
        /// The page.
        page: PageIndex,
    },
    /// The memory is not the guest's.
    #[error("cannot write {run} of the guest")]
    Write {
        /// The pages.
        run: PageRun,
        /// Why.
        source: io::Error,
    },
}

/// Reads all pages of `image` that have contents into `memory`, which is zero and has as many.
/// Each is verified before it is there.
///
/// # Errors
/// [`LoadError`]; what is in the memory then has no meaning.
pub fn copy_all(image: &Image, memory: &GuestPages) -> Result<(), LoadError> {
    if let Some(run) = image.lost().runs().next() {
        return Err(LoadError::Lost { page: run.first });
    }
    let stop = AtomicBool::new(false);
    read_all(image, &stop, |run, contents| {
        memory.write_run(run, contents).map_err(|source| LoadError::Write { run, source })
    })
}

/// Reads all pages of `image` that have contents and verifies them, until `stop` is set.
///
/// # Errors
/// The first page that could not be read or is not what was saved.
pub fn check_all(image: &Image, stop: &AtomicBool) -> Result<(), LoadError> {
    read_all(image, stop, |_, _| Ok(()))
}

fn read_all(
    image: &Image,
    stop: &AtomicBool,
    take: impl Fn(PageRun, &[u8]) -> Result<(), LoadError> + Sync,
) -> Result<(), LoadError> {
    let (next, failed) = (AtomicU32::new(0), AtomicBool::new(false));
    let shares = image.page_count().div_ceil(SHARE_PAGES);
    let work = || {
        let mut buffer = vec![0; PAGE.length_of(PIECE_PAGES)];
        loop {
            let share = next.fetch_add(1, Ordering::Relaxed);
            if share >= shares || [stop, &failed].iter().any(|flag| flag.load(Ordering::Relaxed)) {
                return Ok(());
            }
            let first = share * SHARE_PAGES;
            let count = SHARE_PAGES.min(image.page_count() - first);
            let run = PageRun { first: PageIndex(first), count };
            let read = read_share(image, run, &mut buffer, &take);
            if read.is_err() {
                failed.store(true, Ordering::Relaxed);
                return read;
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..cores.min(THREADS_MAX)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            result = result.and(other.join().expect("a reader does not panic"));
        }
        result
    })
}

fn read_share(
    image: &Image,
    mut run: PageRun,
    buffer: &mut [u8],
    take: &impl Fn(PageRun, &[u8]) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    while run.count > 0 {
        let stretch = image.stretch(run);
        run = run.without(stretch.run().count);
        let Stretch::Data(mut data) = stretch else { continue };
        while data.count > 0 {
            let piece = data.first_pages(data.count.min(PIECE_PAGES));
            data = data.without(piece.count);
            let contents = &mut buffer[..PAGE.length_of(piece.count)];
            image.read(piece, contents).map_err(|source| LoadError::Read {
                run: piece,
                path: image.path().to_owned(),
                source,
            })?;
            let pages = piece.pages().zip(contents.chunks_exact(PAGE.bytes()));
            for (page, bytes) in pages {
                if !image.matches(page, bytes) {
                    return Err(LoadError::Damaged { page, path: image.path().to_owned() });
                }
            }
            take(piece, contents)?;
        }
    }
    Ok(())
}
