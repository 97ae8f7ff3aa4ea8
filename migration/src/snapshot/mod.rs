//! Snapshots of guests: a directory of files, written aside and renamed when all of it is on the
//! disk. `SNAPSHOT.md` gives the files byte by byte.
//!
//! [`Writer`] makes one, [`Snapshot::open`] reads everything of one but the memory, and [`Image`]
//! gives the memory, page by page, each with its checksum.

mod base;
mod error;
mod head;
mod image;
mod manifest;
mod pages;
mod reader;
mod state;
#[cfg(test)]
mod tests;
mod working_set;
mod writer;

pub use base::Base;
pub use error::SnapshotError;
pub use image::{Image, Stretch};
pub use manifest::{Facts, Manifest, VERSION};
pub use reader::Snapshot;
pub use working_set::WorkingSet;
pub use writer::Writer;

/// The name of the manifest in the directory. It is written last.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The name of the file with the state of vCPUs and devices.
pub const STATE_FILE: &str = "state";
/// The name of the file that says what each page is, with its checksum.
pub const PAGES_FILE: &str = "pages";
/// The name of the file with the guest's memory: page `n` at `n` times the page size.
pub const MEMORY_FILE: &str = "memory";

/// Behind the name of the directory while it is being written.
const PARTIAL: &str = ".partial";

/// All of its files.
const FILES: [&str; 4] = [MANIFEST_FILE, STATE_FILE, PAGES_FILE, MEMORY_FILE];
