//! A snapshot that both hosts have: pages of a guest that are still as they were in it need not
//! travel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_uffd::page::{PageRun, PageSize};
use uuid::Uuid;

use super::{Snapshot, SnapshotError};
use crate::wire::MemslotLayout;

/// The memory of a snapshot that is on this host, and that another host may have as well.
#[derive(Clone, Debug)]
pub struct Base {
    /// The identity of the snapshot: the same on all hosts that have it.
    pub id: Uuid,
    /// The memory that it was taken of.
    pub memslots: Vec<MemslotLayout>,
    snapshot: Arc<Snapshot>,
}

impl Base {
    /// The snapshot in the directory `dir`.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn open(dir: &Path) -> Result<Base, SnapshotError> {
        let snapshot = Snapshot::open(dir)?;
        let (id, memslots) = (snapshot.manifest.id, snapshot.manifest.facts.memslots.clone());
        Ok(Base { id, memslots, snapshot: Arc::new(snapshot) })
    }

    /// Where its memory is.
    pub fn path(&self) -> PathBuf {
        self.snapshot.image.path().to_owned()
    }

    fn file(&self) -> &File {
        self.snapshot.image.file()
    }

    /// Reads what the file has for `run` into `out`, which is as long as these pages. Pages that
    /// were zero or lost are holes, which are zero.
    ///
    /// # Errors
    /// What reading returned.
    pub fn read(&self, run: PageRun, out: &mut [u8]) -> io::Result<()> {
        assert_eq!(out.len(), PageSize::BASE.length_of(run.count));
        self.file().read_exact_at(out, PageSize::BASE.bytes_of(run.first.0))
    }

    /// Which of the pages of `run`, whose bytes are `pages`, are those of the base, byte by byte:
    /// as stretches of the same answer. `room` is for the pages of the base.
    ///
    /// # Errors
    /// What reading returned.
    pub fn compare(
        &self,
        run: PageRun,
        pages: &[u8],
        room: &mut Vec<u8>,
    ) -> io::Result<Vec<(bool, u32)>> {
        room.resize(pages.len(), 0);
        self.read(run, room)?;
        let page = PageSize::BASE.bytes();
        let same = pages.chunks_exact(page).zip(room.chunks_exact(page)).map(|(a, b)| a == b);
        let mut stretches: Vec<(bool, u32)> = Vec::new();
        for same in same {
            match stretches.last_mut() {
                Some((last, count)) if *last == same => *count += 1,
                _ => stretches.push((same, 1)),
            }
        }
        Ok(stretches)
    }
}
