//! Guest memory whose pages are still somewhere else.

// UNSAFETY: a userfaultfd may put pages into memory behind the compiler's back.
#![expect(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use godwit_uffd::guest::{GuestSpace, GuestUffd, Region};
use godwit_uffd::kernel::{KernelUffd, trials};
use godwit_uffd::{Features, MemoryKind, Range, RegisterMode};

use super::{GuestMemory, MemoryError};

impl GuestMemory {
    /// Registers all guest memory: whoever touches a page that is missing waits until it is
    /// installed. The memory must be untouched, or else what it holds counts as present.
    ///
    /// Huge pages are switched off until [`GuestMemory::set_complete`]. Closing the userfaultfd
    /// makes the pages that are still missing zero: end the guest before.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`], whose message says how to get the permission;
    /// [`MemoryError::Advise`].
    pub fn register_missing(&self) -> Result<GuestUffd<KernelUffd>, MemoryError> {
        // Nobody gives guest memory up while pages are missing, so no other events are wanted.
        let uffd = KernelUffd::open_with(Features::THREAD_ID)?;
        self.forbid_huge_pages()?;
        self.incomplete.store(true, Ordering::Release);
        self.lend_to(&uffd);
        let enabled = uffd.enabled();
        let memory =
            GuestUffd::register(uffd, self.space()?, RegisterMode::MISSING, enabled, trials)?;
        tracing::debug!("pages of the guest: {}", memory.methods(self.kind()));
        Ok(memory)
    }

    /// Lends all guest memory, and keeps it mapped as long as the userfaultfd.
    pub(super) fn lend_to(&self, uffd: &KernelUffd) {
        uffd.keep(Arc::new(self.inner().clone()));
        for region in self.regions() {
            let range = Range { start: region.hva, bytes: region.bytes };
            // SAFETY: guest memory is only ever accessed by guests and through volatile copies;
            // nobody holds a reference to its bytes, and it stays mapped as long as it is kept.
            unsafe { uffd.lend(range) };
        }
    }

    /// What the memory is made of, as userfaultfd tells it apart.
    pub fn kind(&self) -> MemoryKind {
        self.backing.kind()
    }

    pub(super) fn space(&self) -> Result<GuestSpace, MemoryError> {
        let memory = self.kind();
        let regions = self.regions().iter().map(|region| {
            let (gpa, hva, bytes) = (region.gpa, region.hva, region.bytes);
            Region { gpa, hva, bytes, memory }
        });
        Ok(GuestSpace::counted_in(self.page_size(), regions)?)
    }
}
