//! Writing a snapshot: aside, synced, renamed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use rustix::fs::{FlockOperation, RenameFlags, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::manifest::{Facts, Files, Manifest};
use super::pages::PageTable;
use super::{
    FILES, MANIFEST_FILE, MEMORY_FILE, PAGES_FILE, PARTIAL, STATE_FILE, SnapshotError, state,
};
use crate::wire::{PageKind, Section};

const PAGE: PageSize = PageSize::BASE;

/// A snapshot that is being written, in a directory beside the one that it will be. If it is
/// dropped before it is finished, nothing is left of it; if the process dies, what is left is never
/// taken for a snapshot, and the next one to the same place removes it.
#[derive(Debug)]
pub struct Writer {
    id: Uuid,
    target: PathBuf,
    partial: Partial,
    memory: File,
    table: PageTable,
}

/// The directory while it is being written.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    /// Locked: whoever finds the directory unlocked may remove it.
    folder: File,
    keep: bool,
}

impl Writer {
    /// Begins the snapshot of a guest of `pages` pages, all zero until something else is said. It
    /// will be the directory `target`, which must not be there.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`], [`SnapshotError::Busy`], [`SnapshotError::Io`].
    pub fn create(target: &Path, pages: u32) -> Result<Writer, SnapshotError> {
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists { path: target.to_owned() });
        }
        let partial = Partial::make(partial_of(target)?)?;
        let path = partial.path.join(MEMORY_FILE);
        let memory = create_file(&path)?;
        memory.set_len(PAGE.bytes_of(pages)).map_err(SnapshotError::io("lengthen", &path))?;
        let (id, target) = (Uuid::new_v4(), target.to_owned());
        Ok(Writer { id, target, partial, memory, table: PageTable::new(pages) })
    }

    /// The identity of the snapshot.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Adds the pages of `run` with their `contents`. Those that are zero take no room. Each page
    /// is added once.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], most likely because the disk is full.
    pub fn add(&mut self, run: PageRun, contents: &[u8]) -> Result<(), SnapshotError> {
        let kinds: Vec<bool> = contents
            .chunks_exact(PAGE.bytes())
            .map(|page| PageKind::of(page) != PageKind::Zero)
            .collect();
        let mut at = 0;
        for stretch in kinds.chunk_by(bool::eq) {
            let count = u32::try_from(stretch.len()).expect("part of a run");
            if stretch[0] {
                let run = PageRun { first: PageIndex(run.first.0 + at), count };
                let contents = &contents[PAGE.length_of(at)..PAGE.length_of(at + count)];
                self.memory
                    .write_all_at(contents, PAGE.bytes_of(run.first.0))
                    .map_err(SnapshotError::io("write", &self.partial.path.join(MEMORY_FILE)))?;
                self.table.set_data(run, contents);
            }
            at += count;
        }
        Ok(())
    }

    /// Notes that `page` cannot be read: it will be lost for whoever restores the snapshot, too.
    pub fn add_lost(&mut self, page: PageIndex) {
        self.table.set_lost(page);
    }

    /// Writes the rest and waits until all is on the disk. Then it is a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; [`SnapshotError::Exists`] if something has come in its way.
    pub fn finish(mut self, facts: Facts, sections: &[Section]) -> Result<Manifest, SnapshotError> {
        let memory = self.partial.path.join(MEMORY_FILE);
        self.memory.sync_all().map_err(SnapshotError::io("sync", &memory))?;
        let state = self.write(STATE_FILE, &state::encode(self.id, sections))?;
        let pages = self.write(PAGES_FILE, &self.table.encode(self.id))?;
        let memory = facts.memslots.iter().map(|slot| slot.bytes).sum();
        let manifest = Manifest::new(self.id, Files { state, pages, memory }, facts);
        // Last: without it the directory is not a snapshot.
        self.write(MANIFEST_FILE, manifest.to_text().as_bytes())?;
        self.partial.become_whole(&self.target)?;
        Ok(manifest)
    }

    /// Writes a file and waits until it is on the disk. Returns its length.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<u64, SnapshotError> {
        let path = self.partial.path.join(name);
        let file = create_file(&path)?;
        file.write_all_at(bytes, 0).map_err(SnapshotError::io("write", &path))?;
        file.sync_all().map_err(SnapshotError::io("sync", &path))?;
        Ok(bytes.len() as u64)
    }
}

impl Partial {
    fn make(path: PathBuf) -> Result<Partial, SnapshotError> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SnapshotError::io("make", &path)(error));
            }
            _ => {}
        }
        let folder = File::open(&path).map_err(SnapshotError::io("open", &path))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(SnapshotError::Busy { path }),
            Err(errno) => return Err(SnapshotError::io("lock", &path)(errno.into())),
        }
        let partial = Partial { path, folder, keep: false };
        partial.clear().map_err(SnapshotError::io("clear", &partial.path))?;
        Ok(partial)
    }

    /// Removes the files of one that was interrupted.
    fn clear(&self) -> io::Result<()> {
        for name in FILES {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn become_whole(&mut self, target: &Path) -> Result<(), SnapshotError> {
        self.folder.sync_all().map_err(SnapshotError::io("sync", &self.path))?;
        let (here, flags) = (rustix::fs::CWD, RenameFlags::NOREPLACE);
        match rustix::fs::renameat_with(here, &self.path, here, target, flags) {
            Ok(()) => self.keep = true,
            Err(Errno::EXIST) => return Err(SnapshotError::Exists { path: target.to_owned() }),
            Err(errno) => return Err(SnapshotError::io("rename", &self.path)(errno.into())),
        }
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let folder = File::open(parent).map_err(SnapshotError::io("open", parent))?;
        folder.sync_all().map_err(SnapshotError::io("sync", parent))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Still locked, so it is nobody else's. What cannot be removed is removed by the next one.
        if !self.keep {
            let _ = self.clear();
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Where a snapshot is while it is being written.
pub(super) fn partial_of(target: &Path) -> Result<PathBuf, SnapshotError> {
    let path = target.to_owned();
    let Some(name) = target.file_name() else {
        return Err(SnapshotError::NotASnapshot { path, why: "it has no name" });
    };
    let mut name = name.to_owned();
    name.push(PARTIAL);
    Ok(target.with_file_name(name))
}

fn create_file(path: &Path) -> Result<File, SnapshotError> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(SnapshotError::io("create", path))
}
