//! What a userfaultfd has to be able to do, and nothing of what it means: the running kernel is
//! one, the model is another. [`Uffd`](crate::Uffd) is the same code over either.

use crate::abi::{Answer, Call, Errno, RawMessage};
use crate::error::Error;
use crate::features::Features;
use crate::page::Hva;
use crate::uffd::Range;

/// A userfaultfd as numbers.
///
/// Safe code may make any call. A backend whose calls could change memory that safe code relies
/// on refuses those with EPERM: the kernel's registers and moves from only memory that was
/// [lent](crate::kernel::KernelUffd::lend) to it.
pub trait Backend: Send + Sync {
    /// Makes one call. Addresses of [`Call::Copy`]'s source are those of the memory that the
    /// userfaultfd is about.
    fn call(&self, call: Call) -> Answer;

    /// Makes the call COPY with bytes of this program, which need not be memory that the backend
    /// knows. `mode` has the bits of [`Call::Copy`].
    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer;

    /// Makes the call MOVE from memory of this program, which holds zeros where its pages were
    /// moved. A backend that is not of the same memory copies. `mode` has the bits of
    /// [`Call::Move`].
    fn move_bytes(&self, at: Hva, staged: &mut [u8], mode: u64) -> Answer;

    /// Gives the pages of these bytes up, if they are whole pages of private anonymous memory.
    /// What they hold afterwards is anybody's guess.
    fn give_up(&self, staged: &mut [u8]);

    /// Calls `each` for the messages that wait, at most a fixed number of them. Never waits. The
    /// descriptor of a FORK message is closed before this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the descriptor cannot be read. [`Error::Message`] if one of the messages
    /// is not known; `each` has been called for all others.
    fn read(&self, each: &mut dyn FnMut(RawMessage)) -> Result<(), Error>;

    /// Calls `each` for the pages of a range that were written since they were protected, and
    /// protects them again in the same step: PAGEMAP_SCAN. After an error it was called for every
    /// page that may have been protected again.
    ///
    /// # Errors
    ///
    /// The kernel's: EPERM if the range, or a part of it, is not protected asynchronously.
    fn scan_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno>;

    /// The features that were negotiated.
    fn enabled(&self) -> Features;
}
