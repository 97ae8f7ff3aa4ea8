//! Which pages a running guest writes, as the driver asks for them.

use serde::{Deserialize, Serialize};

use crate::page::PageSet;

/// How the pages that a running guest writes are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyTracking {
    /// The dirty log of KVM, with what this process writes added.
    KvmLog,
    /// Asynchronous write-protection of userfaultfd, read by PAGEMAP_SCAN.
    WriteProtect,
}

/// The pages that a running guest writes, while its memory is sent in rounds.
pub trait DirtyLog: Send + Sync {
    /// Begins to note writes, by whomever. A page written from now on is in the next collection.
    ///
    /// # Errors
    /// What went wrong, in a line. Nothing is noted then.
    fn start(&self, tracking: DirtyTracking) -> Result<(), String>;
    /// Adds the pages that were written since the call before, or since the start, to `dirty`.
    /// Pages that were taken from the kernel are in `dirty` even if it fails afterwards.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn collect(&self, dirty: &mut PageSet) -> Result<(), String>;
    /// Ends it: writes cost nothing any more. Without a start it does nothing.
    fn stop(&self);
}
