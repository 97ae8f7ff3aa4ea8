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
/// on refuses those with EPERM: the kernel's registers, moves from and gives up only memory that
/// was [lent](crate::kernel::KernelUffd::lend) to it.
pub trait Backend: Send + Sync {
    /// Makes one call. Addresses of [`Call::Copy`]'s source are those of the memory that the
    /// userfaultfd is about.
    fn call(&self, call: Call) -> Answer;

    /// Makes the call COPY with bytes of this program, which need not be memory that the backend
    /// knows. `mode` has the bits of [`Call::Copy`].
    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer;

    /// Calls `each` for the messages that wait, at most a fixed number of them. Never waits. The
    /// descriptor of a FORK message is closed before this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the descriptor cannot be read. [`Error::Message`] if one of the messages
    /// is not known; `each` has been called for all others.
    fn read(&self, each: &mut dyn FnMut(RawMessage)) -> Result<(), Error>;

    /// Gives the pages of a range up: they read as zero, or are missing if the range is registered.
    /// Waits for its REMOVE event to be read, if these were asked for: whoever reads events calls
    /// neither this nor UNREGISTER.
    ///
    /// # Errors
    ///
    /// The error number of madvise.
    fn give_up(&self, range: Range) -> Result<(), Errno>;

    /// The features that were negotiated.
    fn enabled(&self) -> Features;
}
