//! Guest memory whose first writes wait until they are allowed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd::{Event, Features, Wake};

use super::watch::{all_of_it, parts};
use super::{GuestMemory, MemoryError};

/// Write-protection of all guest memory that writers wait for: vCPUs, KVM and threads of ours.
/// Reads go on. Ends when dropped: whoever waits goes on then.
///
/// A thread that answers for the waiting writers must not write guest memory. Whoever pauses the
/// guest keeps answering meanwhile: a vCPU that waits in the middle of an access of KVM's own (see
/// [`crate::vcpu`]) comes out only when that is allowed.
pub struct HeldWrites {
    memory: GuestUffd<KernelUffd>,
    guest: Arc<GuestMemory>,
}

impl GuestMemory {
    /// Protects all guest memory, which must be complete. A write that begins after this has
    /// returned waits until its page is [allowed](HeldWrites::allow).
    ///
    /// # Errors
    /// [`MemoryError::Incomplete`], [`MemoryError::AlreadyProtected`], and [`MemoryError::Uffd`],
    /// whose message says what the kernel lacks or how to get the permission.
    pub fn hold_writes(self: &Arc<GuestMemory>) -> Result<HeldWrites, MemoryError> {
        let uffd = self.open_for_writes(Features::THREAD_ID)?;
        // First, so that a shutdown knows of the vCPUs that wait from the first page on.
        if self.set_held(true) {
            return Err(MemoryError::AlreadyProtected);
        }
        let protected = self.protect_all(uffd).inspect_err(|_| {
            self.set_held(false);
        });
        Ok(HeldWrites { memory: protected?, guest: Arc::clone(self) })
    }
}

impl HeldWrites {
    /// Appends the pages whose writers have begun to wait since the call before to `into`, a page
    /// once for each writer. Never waits; the descriptor is readable while there are some.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`]; what could be read is in `into`.
    pub fn waiting(&self, into: &mut Vec<PageIndex>) -> Result<(), MemoryError> {
        let (mut events, space) = (Vec::new(), self.memory.space());
        let read = self.memory.read_events(&mut events);
        into.extend(events.into_iter().filter_map(|event| match event {
            Event::Fault(fault) => space.page_at(fault.address),
            // No other event was asked for.
            _ => None,
        }));
        Ok(read?)
    }

    /// Lets the pages of `run` be written, now and from now on, and whoever waits for that go on.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`]: the run is not all of the guest's, or the kernel refuses it.
    pub fn allow(&self, run: PageRun) -> Result<(), MemoryError> {
        for part in parts(run, self.guest.page_size()) {
            all_of_it(self.memory.unprotect(part, Wake::Now)?);
        }
        Ok(())
    }

    /// Holds up writes to the pages of `run` again.
    ///
    /// # Errors
    /// [`MemoryError::Uffd`]: the run is not all of the guest's, or the kernel refuses it.
    pub fn hold(&self, run: PageRun) -> Result<(), MemoryError> {
        for part in parts(run, self.guest.page_size()) {
            all_of_it(self.memory.protect(part)?);
        }
        Ok(())
    }
}

impl AsFd for HeldWrites {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for HeldWrites {
    fn drop(&mut self) {
        // The userfaultfd is closed right after this, which lets all that wait go on.
        self.guest.set_held(false);
    }
}
