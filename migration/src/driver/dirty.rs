//! Which pages a running guest writes, as the driver asks for them.

use std::os::fd::AsFd;
use std::sync::Arc;

use godwit_uffd::page::{PageIndex, PageRun};
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
    /// Write-protection of userfaultfd whose faults are answered: the first write to a page waits
    /// until the page is on the wire.
    WriteFaults,
}

/// The pages that a running guest writes, while its memory is sent in rounds.
pub trait DirtyLog: Send + Sync {
    /// Begins to note writes, by whomever. A page written from now on is in the next collection.
    /// With [`DirtyTracking::WriteFaults`] it returns a guard that holds writes up instead, and
    /// whoever has that notes them.
    ///
    /// # Errors
    /// What went wrong, in a line. Nothing is noted then.
    fn start(&self, tracking: DirtyTracking) -> Result<Option<Arc<dyn WriteGuard>>, String>;
    /// Adds the pages that were written since the call before, or since the start, to `dirty`.
    /// Pages that were taken from the kernel are in `dirty` even if it fails afterwards.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn collect(&self, dirty: &mut PageSet) -> Result<(), String>;
    /// Ends it: writes cost nothing any more. Without a start it does nothing.
    fn stop(&self);
}

/// A running guest's memory whose first writes wait: each page can be sent as it was when the guard
/// began, and is written only then. Reads go on.
///
/// Whoever makes one protects all pages by that, and dropping it ends it: whoever waits goes on.
/// The descriptor is readable while there is something to answer. The threads that answer never
/// write the guest's memory.
pub trait WriteGuard: AsFd + Send + Sync {
    /// Appends the pages whose writers have begun to wait since the call before to `into`: a page
    /// once for each writer, and perhaps again for a writer that was interrupted. Never waits.
    ///
    /// # Errors
    /// What went wrong, in a line. What could be read is in `into`.
    fn waiting(&self, into: &mut Vec<PageIndex>) -> Result<(), String>;
    /// Lets the pages of `run` be written from now on, and whoever waits for that go on.
    ///
    /// # Errors
    /// What went wrong, in a line. A part of the run may be allowed.
    fn allow(&self, run: PageRun) -> Result<(), String>;
    /// Holds up writes to the pages of `run` again.
    ///
    /// # Errors
    /// What went wrong, in a line. A part of the run may be held.
    fn hold(&self, run: PageRun) -> Result<(), String>;
}
