//! What a COPY remembers of its destination while it reads its source outside of all locks, to
//! notice afterwards that the memory is no longer what it was (`mfill_retry_state`).

use super::context::Modes;
use super::page_cache::MemoryFile;
use super::sync::Arc;
use super::vma::Vma;

/// The destination as it was.
///
/// A file is held by a reference, so that its place in memory cannot become another file's; the
/// state is put by dropping it.
#[derive(Debug)]
pub(super) struct RetryState {
    modes: Modes,
    shared: bool,
    anonymous: bool,
    file: Option<(Arc<MemoryFile>, u64)>,
}

impl RetryState {
    /// Remembers the VMA that `address` is in.
    pub(super) fn save(vma: &Vma, address: u64) -> RetryState {
        RetryState {
            modes: vma.modes(),
            shared: vma.shared,
            anonymous: vma.is_anonymous(),
            file: vma.file().map(|file| (file.clone(), vma.page_at(address))),
        }
    }

    /// The VMA that is there now is another kind of memory, or registered in another way. Another
    /// VMA of the same kind will do, and so will another owner.
    pub(super) fn has_changed(&self, vma: &Vma, address: u64) -> bool {
        let same_file = match (&self.file, vma.file()) {
            (None, None) => true,
            (Some((before, page)), Some(now)) => {
                Arc::ptr_eq(before, now) && *page == vma.page_at(address)
            }
            _ => false,
        };
        self.modes != vma.modes()
            || self.shared != vma.shared
            || self.anonymous != vma.is_anonymous()
            || !same_file
    }
}
