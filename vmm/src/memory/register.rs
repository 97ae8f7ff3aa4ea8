//! Guest memory whose pages are still somewhere else.

// UNSAFETY: a userfaultfd may put pages into memory behind the compiler's back.
#![expect(unsafe_code)]

use std::sync::atomic::Ordering;

use godwit_uffd::features::RegisterMode;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::uffd::Range;

use super::GuestMemory;
use super::MemoryError;
use super::advice::Advice;

impl GuestMemory {
    /// Registers all guest memory: whoever touches a page that is missing waits until it is
    /// installed. The memory must be untouched, or else what it holds counts as present.
    ///
    /// Huge pages are switched off until [`GuestMemory::set_complete`]: the kernel would put one
    /// where a base page was installed and make up the other 511 as zeros.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`], whose message says how to get the permission; [`MemoryError::Advise`].
    pub fn register_missing(&self) -> Result<KernelUffd, MemoryError> {
        let uffd = KernelUffd::open()?;
        self.advise(Advice::NoHugePage)?;
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
