//! Opening a snapshot: everything is checked but the memory itself.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST_BYTES_MAX, Manifest};
use super::pages::{self, PageTable};
use super::state::{self, STATE_BYTES_MAX};
use super::writer::partial_of;
use super::{Image, MANIFEST_FILE, MEMORY_FILE, PAGES_FILE, STATE_FILE, SnapshotError};
use crate::wire::Section;

/// A snapshot that was found to be whole, but for the contents of its memory.
#[derive(Debug)]
pub struct Snapshot {
    /// What it is of.
    pub manifest: Manifest,
    /// The state of vCPUs and devices.
    pub sections: Vec<Section>,
    /// Its memory.
    pub image: Image,
}

impl Snapshot {
    /// Opens the snapshot in the directory `dir`.
    ///
    /// # Errors
    /// [`SnapshotError`]: it is not there, not a snapshot, not whole, newer than this build,
    /// damaged, or put together from several.
    pub fn open(dir: &Path) -> Result<Snapshot, SnapshotError> {
        let (manifest, pages) = read_manifest(dir)?;
        let id = manifest.id;
        let (file, path) = open_file(dir, STATE_FILE, manifest.files.state)?;
        if manifest.files.state > STATE_BYTES_MAX {
            return Err(SnapshotError::damaged(&path, "it is too long"));
        }
        let sections = state::decode(&path, id, &read_whole(file, &path)?)?;
        let (file, path) = open_file(dir, PAGES_FILE, manifest.files.pages)?;
        if manifest.files.pages != pages::file_bytes(pages) {
            return Err(SnapshotError::damaged(
                &path,
                "it has not as many bytes as its pages need",
            ));
        }
        let table = PageTable::decode(&path, id, pages, &read_whole(file, &path)?)?;
        let (file, path) = open_file(dir, MEMORY_FILE, manifest.files.memory)?;
        Ok(Snapshot { manifest, sections, image: Image::new(file, path, table) })
    }
}

fn read_manifest(dir: &Path) -> Result<(Manifest, u32), SnapshotError> {
    let path = dir.join(MANIFEST_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_manifest(dir)),
        Err(source) => return Err(SnapshotError::Io { path, step: "open", source }),
    };
    let mut bytes = Vec::new();
    let read = file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(SnapshotError::io("read", &path))?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(SnapshotError::damaged(&path, "it is too long"));
    }
    Manifest::read(&path, &bytes)
}

/// Why a directory has none.
fn no_manifest(dir: &Path) -> SnapshotError {
    let path = dir.to_owned();
    let partial = partial_of(dir).is_ok_and(|partial| partial.exists());
    let is_partial = dir.join(MEMORY_FILE).exists();
    match fs::metadata(dir) {
        _ if partial || is_partial => SnapshotError::Interrupted { path },
        Ok(meta) if meta.is_dir() => {
            SnapshotError::NotASnapshot { path, why: "it has no manifest" }
        }
        Ok(_) => SnapshotError::NotASnapshot { path, why: "it is not a directory" },
        Err(source) => SnapshotError::Io { path, step: "open", source },
    }
}

/// Opens a file that has to have so many bytes.
fn open_file(dir: &Path, name: &str, bytes: u64) -> Result<(File, PathBuf), SnapshotError> {
    let path = dir.join(name);
    let file = File::open(&path).map_err(SnapshotError::io("open", &path))?;
    let meta = file.metadata().map_err(SnapshotError::io("look at", &path))?;
    if !meta.is_file() || meta.len() != bytes {
        let what = format!("it has {} bytes, and {bytes} were written", meta.len());
        return Err(SnapshotError::damaged(&path, what));
    }
    Ok((file, path))
}

/// All bytes of a file whose length was checked.
fn read_whole(mut file: File, path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(SnapshotError::io("read", path))?;
    Ok(bytes)
}
