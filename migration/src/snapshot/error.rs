//! Why a snapshot cannot be written or read.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system said no.
    #[error("cannot {step} {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something is in the way.
    #[error("{path} exists already; choose another name or remove it")]
    Exists {
        /// What was to be made.
        path: PathBuf,
    },
    /// Another process writes a snapshot there.
    #[error("{path} is being written by another process")]
    Busy {
        /// Where it writes.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{path} is not a snapshot: {why}")]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
        /// What is not right with it.
        why: &'static str,
    },
    /// Its writer did not come to the end.
    #[error("{path} is not a whole snapshot: writing it was interrupted")]
    Interrupted {
        /// The directory.
        path: PathBuf,
    },
    /// A later godwit wrote it.
    #[error(
        "{path} has version {version} of the format, and this build knows versions up to {known}; \
         it comes from a newer godwit"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version known.
        known: u32,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of another snapshot.
    #[error("{path} belongs to snapshot {found}, not to {wanted}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Uuid,
        /// Whose it should be.
        wanted: Uuid,
    },
}

impl SnapshotError {
    /// For `map_err` of a system call on `path`.
    pub(super) fn io(step: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
        move |source| SnapshotError::Io { path: path.to_owned(), step, source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: path.to_owned(), what: what.into() }
    }
}
