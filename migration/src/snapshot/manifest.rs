//! The manifest: what a snapshot is of, as JSON for people and their tools.

use std::path::Path;

use godwit_uffd::page::PageSize;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SnapshotError;
use crate::wire::{MemslotLayout, paging_of};

/// The version of the format that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// What every manifest says in `format`.
const FORMAT: &str = "godwit-snapshot";

/// Most bytes of a manifest.
pub(super) const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Before and behind the checksum of everything above it, at the end of the file.
const SUM_BEGIN: &str = ",\n  \"crc32c\": \"";
const SUM_END: &str = "\"\n}\n";
/// Hexadecimal digits of the checksum.
const SUM_DIGITS: usize = 8;

/// What is known of a guest when it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The guest.
    pub guest: Uuid,
    /// How often it had changed hands.
    pub generation: u64,
    /// When it was saved, in seconds since 1970.
    pub created_unix_s: u64,
    /// Its memory, in address order; pages are numbered over these.
    pub memslots: Vec<MemslotLayout>,
    /// What it is made of and what it needs, in the words of the VMM. For people: what is restored
    /// is in the state file.
    pub machine: serde_json::Value,
}

/// A snapshot as it describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The identity of the snapshot, which all of its files have.
    pub id: Uuid,
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Bytes of each file but this one.
    pub(super) files: Files,
    /// What it is of.
    #[serde(flatten)]
    pub facts: Facts,
}

/// Bytes of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Files {
    pub state: u64,
    pub pages: u64,
    pub memory: u64,
}

/// As much of a manifest as every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Manifest {
    pub(super) fn new(id: Uuid, files: Files, facts: Facts) -> Manifest {
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Manifest { format, version, id, page_bytes: 4096, files, facts }
    }

    /// The file: JSON whose last field is the checksum of all before it.
    pub(super) fn to_text(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("plain data serializes");
        let body = json.strip_suffix("\n}").expect("an object ends with it");
        let crc = crc32c::crc32c(body.as_bytes());
        format!("{body}{SUM_BEGIN}{crc:08x}{SUM_END}")
    }

    /// Reads and checks a manifest, and counts the guest's pages.
    ///
    /// # Errors
    /// Everything but [`SnapshotError::Io`].
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<(Manifest, u32), SnapshotError> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let summed = sum_is_right(text);
        let head: Option<Head> = serde_json::from_str(text).ok();
        match (summed, head) {
            // Not even that can be trusted, but what it says may explain it.
            (Some(false), _) => return Err(SnapshotError::damaged(path, "its checksum is wrong")),
            (_, Some(head)) if head.format != FORMAT => {
                let why = "its manifest is that of something else";
                return Err(SnapshotError::NotASnapshot { path: path.to_owned(), why });
            }
            (None, Some(_)) => return Err(SnapshotError::damaged(path, "it has no checksum")),
            (None, None) => {
                let why = "its manifest cannot be read";
                return Err(SnapshotError::NotASnapshot { path: path.to_owned(), why });
            }
            (Some(true), Some(Head { version, .. })) if version > VERSION => {
                return Err(SnapshotError::Newer {
                    path: path.to_owned(),
                    version,
                    known: VERSION,
                });
            }
            (Some(true), _) => {}
        }
        let manifest: Manifest = serde_json::from_str(text)
            .map_err(|error| SnapshotError::damaged(path, error.to_string()))?;
        let pages = manifest.check().map_err(|what| SnapshotError::damaged(path, what))?;
        Ok((manifest, pages))
    }

    /// Whether the numbers can be; how many pages there are.
    fn check(&self) -> Result<u32, &'static str> {
        if self.version == 0 {
            return Err("it has no version");
        }
        let paging = paging_of(self.page_bytes, &self.facts.memslots)?;
        if paging.size != PageSize::BASE {
            return Err("its pages are not 4096 bytes");
        }
        let bytes: u64 = self.facts.memslots.iter().map(|slot| slot.bytes).sum();
        if self.files.memory != bytes {
            return Err("its memory file is not as long as the guest's memory");
        }
        Ok(paging.count)
    }
}

/// Whether the checksum at the end is that of what is before it; `None` if there is none.
fn sum_is_right(text: &str) -> Option<bool> {
    let body = text.strip_suffix(SUM_END)?;
    let (body, digits) = body.split_at_checked(body.len().checked_sub(SUM_DIGITS)?)?;
    let body = body.strip_suffix(SUM_BEGIN)?;
    Some(digits == format!("{:08x}", crc32c::crc32c(body.as_bytes())))
}
