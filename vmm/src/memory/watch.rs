//! Guest memory whose writes are followed by write-protection.

use godwit_migration::page::PageSet;
use godwit_uffd::guest::{GuestUffd, Protected};
use godwit_uffd::kernel::{KernelUffd, trials};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use godwit_uffd::{Features, RegisterMode};

use super::{GuestMemory, MemoryError};

/// Bytes that one call works on. vCPUs that fault on one of their pages wait meanwhile.
const PART_BYTES: usize = 64 << 20;

/// Write-protection of all guest memory that nobody waits for: the kernel takes it away from a page
/// at the first write, and tells later which pages that were. Ends when dropped.
pub(crate) struct WriteWatch {
    memory: GuestUffd<KernelUffd>,
}

impl GuestMemory {
    /// Protects all guest memory so that writes can be followed, whoever makes them. The memory
    /// must be complete.
    ///
    /// # Errors
    /// [`MemoryError::Incomplete`], [`MemoryError::CannotWatch`], and [`MemoryError::Uffd`], whose
    /// message says how to get the permission.
    pub(crate) fn watch_writes(&self) -> Result<WriteWatch, MemoryError> {
        let uffd = self.open_for_writes(Features::WP_ASYNC)?;
        if !uffd.enabled().contains(Features::WP_ASYNC) {
            return Err(MemoryError::CannotWatch(None));
        }
        let watch = WriteWatch { memory: self.protect_all(uffd)? };
        // What is written before this returns does not count, so what it finds is of no interest.
        let one = PageRun::one(PageIndex(0));
        let tried = watch.memory.take_written(one, |_| ());
        all_of_it(tried.map_err(|error| MemoryError::CannotWatch(Some(error)))?);
        Ok(watch)
    }

    /// Opens a userfaultfd for write-protection of memory that must be complete.
    pub(super) fn open_for_writes(&self, wanted: Features) -> Result<KernelUffd, MemoryError> {
        if self.is_incomplete() {
            return Err(MemoryError::Incomplete);
        }
        if self.of_file {
            return Err(MemoryError::OfFile);
        }
        Ok(KernelUffd::open_with(wanted | Features::WP_UNPOPULATED)?)
    }

    /// Registers all memory for write-protection and protects it.
    pub(super) fn protect_all(
        &self,
        uffd: KernelUffd,
    ) -> Result<GuestUffd<KernelUffd>, MemoryError> {
        self.lend_to(&uffd);
        let (mode, enabled) = (RegisterMode::WRITE_PROTECT, uffd.enabled());
        let memory = GuestUffd::register(uffd, self.space()?, mode, enabled, trials);
        let memory = memory.map_err(|error| match error.is_range_taken() {
            true => MemoryError::AlreadyProtected,
            false => error.into(),
        })?;
        for part in parts(memory.space().all(), self.page_size()) {
            all_of_it(memory.protect(part)?);
        }
        Ok(memory)
    }
}

impl WriteWatch {
    /// Adds the pages that were written since the call before, or since the start, to `dirty`, and
    /// protects them again.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`]. Pages that may have been protected again are in `dirty`.
    pub(crate) fn collect(&self, dirty: &mut PageSet) -> Result<(), MemoryError> {
        let space = self.memory.space();
        for part in parts(space.all(), space.page_size()) {
            all_of_it(self.memory.take_written(part, |run| dirty.insert_run(run))?);
        }
        Ok(())
    }
}

pub(super) fn all_of_it(done: Protected) {
    assert_eq!(done, Protected::All, "nobody changes where guest memory is");
}

/// A run of pages of `size` in parts of [`PART_BYTES`].
pub(super) fn parts(run: PageRun, size: PageSize) -> impl Iterator<Item = PageRun> {
    let most = PART_BYTES / size.bytes();
    (0..run.count).step_by(most).map(move |skipped| {
        let rest = run.without(skipped);
        rest.first_pages(u32::try_from(most).map_or(rest.count, |most| rest.count.min(most)))
    })
}
