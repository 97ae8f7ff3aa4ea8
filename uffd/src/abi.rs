//! The calls of a userfaultfd as numbers: what goes in, what comes out, nothing interpreted.
//!
//! Both backends answer these, the running kernel and the model, so that one suite can hold them
//! equal down to the error number and the bytes of the out field. What the numbers mean for a
//! caller is decided once, above them, in [`meaning`](crate::meaning).

use std::fmt;

use crate::page::Hva;
use crate::uffd::Range;

/// The only version of the interface, the first field of UFFDIO_API.
pub const API_VERSION: u64 = 0xAA;

/// Mode bit of the calls that install pages: the waiters sleep on.
pub const MODE_DONTWAKE: u64 = 1;
/// Mode bit of COPY and CONTINUE: the page comes write-protected.
pub const MODE_WP: u64 = 2;
/// Mode bit of MOVE: a source page that is missing counts as moved.
pub const MOVE_ALLOW_SRC_HOLES: u64 = 2;
/// Mode bit of WRITEPROTECT: protect; without it, unprotect.
pub const WRITEPROTECT_WP: u64 = 1;
/// Mode bit of WRITEPROTECT: the waiters sleep on.
pub const WRITEPROTECT_DONTWAKE: u64 = 2;

/// Bytes of one message.
pub const MESSAGE_BYTES: usize = 32;

/// An error number of the kernel, as in `errno`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let io = std::io::Error::from_raw_os_error(self.0);
        write!(f, "errno {} ({io})", self.0)
    }
}

/// One ioctl on a userfaultfd. Addresses and lengths are in bytes; nothing is checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields have the names of the kernel's structures")]
pub enum Call {
    /// UFFDIO_API: the handshake.
    Api { api: u64, features: u64 },
    /// UFFDIO_REGISTER.
    Register { start: u64, len: u64, mode: u64 },
    /// UFFDIO_UNREGISTER.
    Unregister { start: u64, len: u64 },
    /// UFFDIO_WAKE.
    Wake { start: u64, len: u64 },
    /// UFFDIO_COPY. `src` is an address of the caller.
    Copy { dst: u64, src: u64, len: u64, mode: u64 },
    /// UFFDIO_ZEROPAGE.
    Zeropage { start: u64, len: u64, mode: u64 },
    /// UFFDIO_MOVE.
    Move { dst: u64, src: u64, len: u64, mode: u64 },
    /// UFFDIO_WRITEPROTECT.
    WriteProtect { start: u64, len: u64, mode: u64 },
    /// UFFDIO_CONTINUE.
    Continue { start: u64, len: u64, mode: u64 },
    /// UFFDIO_POISON.
    Poison { start: u64, len: u64, mode: u64 },
    /// Any other number (its low byte counts) of the type 0xAA, with a structure of four zeros.
    Other { number: u64 },
}

impl Call {
    /// The call as its ioctl is named, without the prefix.
    pub const fn name(&self) -> &'static str {
        match self {
            Call::Api { .. } => "API",
            Call::Register { .. } => "REGISTER",
            Call::Unregister { .. } => "UNREGISTER",
            Call::Wake { .. } => "WAKE",
            Call::Copy { .. } => "COPY",
            Call::Zeropage { .. } => "ZEROPAGE",
            Call::Move { .. } => "MOVE",
            Call::WriteProtect { .. } => "WRITEPROTECT",
            Call::Continue { .. } => "CONTINUE",
            Call::Poison { .. } => "POISON",
            Call::Other { .. } => "ioctl",
        }
    }

    /// The range that the call is about: of COPY and MOVE the destination. Empty where there is
    /// none.
    pub const fn range(&self) -> Range {
        let (start, bytes) = match *self {
            Call::Api { .. } | Call::Other { .. } => (0, 0),
            Call::Register { start, len, .. }
            | Call::Unregister { start, len }
            | Call::Wake { start, len }
            | Call::Zeropage { start, len, .. }
            | Call::WriteProtect { start, len, .. }
            | Call::Continue { start, len, .. }
            | Call::Poison { start, len, .. } => (start, len),
            Call::Copy { dst, len, .. } | Call::Move { dst, len, .. } => (dst, len),
        };
        Range { start: Hva(start), bytes }
    }
}

/// What a call has written behind its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Nothing: the field is as the caller left it, or the call has none.
    Untouched,
    /// REGISTER: the mask of the calls that work on the range.
    Ioctls(u64),
    /// COPY, ZEROPAGE, MOVE, CONTINUE, POISON: bytes done, or a negative error number.
    Done(i64),
    /// API: the whole structure as the call left it.
    Api {
        /// The version.
        api: u64,
        /// The features that are offered.
        features: u64,
        /// The calls that work on the descriptor.
        ioctls: u64,
    },
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The return value.
    pub result: Result<(), Errno>,
    /// The out field.
    pub out: Out,
}

/// One message as it is read, decoded by the layout of `struct uffd_msg` and not interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RawMessage {
    /// A fault: flag bits (WRITE 1, WP 2, MINOR 4), the address, and the thread or 0.
    Pagefault {
        /// The flag bits.
        flags: u64,
        /// The address, exact or rounded down to its page.
        address: u64,
        /// The thread in its pid namespace, or 0.
        ptid: u32,
    },
    /// A fork; the descriptor of the child's context.
    Fork {
        /// The new descriptor's number.
        fd: u32,
    },
    /// A moving mremap.
    Remap {
        /// The old address.
        from: u64,
        /// The new address.
        to: u64,
        /// The old length.
        len: u64,
    },
    /// Pages are being given up.
    Remove {
        /// The first byte.
        start: u64,
        /// The byte behind the last.
        end: u64,
    },
    /// A range was unmapped.
    Unmap {
        /// The first byte.
        start: u64,
        /// The byte behind the last.
        end: u64,
    },
}
