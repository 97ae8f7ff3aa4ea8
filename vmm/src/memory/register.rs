//! Guest memory whose pages are still somewhere else.

// UNSAFETY: a userfaultfd may put pages into memory behind the compiler's back.
#![expect(unsafe_code)]

use std::sync::atomic::Ordering;

use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::{Features, Range, RegisterMode};

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
    pub fn register_missing(&self) -> Result<KernelUffd, MemoryError> {
        // Nobody gives guest memory up while pages are missing, so no other events are wanted.
        let uffd = KernelUffd::open_with(Features::THREAD_ID)?;
        self.forbid_huge_pages()?;
        self.incomplete.store(true, Ordering::Release);
        for region in self.regions() {
            let range = Range { start: region.hva, bytes: region.bytes };
            // SAFETY: guest memory is only ever accessed by guests and through volatile copies;
            // nobody holds a reference to its bytes.
            unsafe { uffd.register(range, RegisterMode::MISSING) }?;
        }
        Ok(uffd)
    }
}
