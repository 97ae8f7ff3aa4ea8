//! The words of the rows: constants, calls and answers, with the names that the specification
//! gives them.

use godwit_uffd::abi::{
    API_VERSION, Answer, Call, Errno, MODE_DONTWAKE, MODE_WP, MOVE_ALLOW_SRC_HOLES, Out,
    RawMessage, WRITEPROTECT_DONTWAKE, WRITEPROTECT_WP,
};

use crate::world::{Backing, Entry, File};

/// A base page.
pub const PAGE: u64 = 4096;
/// A huge page.
pub const HUGE: u64 = HUGE_PAGES * PAGE;
/// Base pages in a huge one.
pub const HUGE_PAGES: u64 = 512;

/// Flags of creation.
pub const O_NONBLOCK: u32 = 0o4000;
pub const O_CLOEXEC: u32 = 0o2_000_000;
pub const USER_MODE_ONLY: u32 = 1;

/// Features.
pub const EVENT_FORK: u64 = 1 << 1;
pub const EVENT_REMAP: u64 = 1 << 2;
pub const EVENT_REMOVE: u64 = 1 << 3;
pub const EVENT_UNMAP: u64 = 1 << 6;
pub const SIGBUS: u64 = 1 << 7;
pub const THREAD_ID: u64 = 1 << 8;
pub const EXACT_ADDRESS: u64 = 1 << 11;
pub const UNPOPULATED: u64 = 1 << 13;
pub const ASYNC: u64 = 1 << 15;

/// Modes of REGISTER.
pub const MISSING: u64 = 1;
pub const WP: u64 = 2;
pub const MINOR: u64 = 4;

/// Flags of a fault.
pub const READ: u64 = 0;
pub const WRITE: u64 = 1;
pub const WRITE_TO_PROTECTED: u64 = 3;
pub const MINOR_READ: u64 = 4;
pub const MINOR_WRITE: u64 = 5;

/// Page-table entries, as section 0.1 of the specification names them.
pub const N: Entry = Entry::None;
pub const P: Entry = Entry::Anonymous { exclusive: true, protected: false, huge: false };
pub const PS: Entry = Entry::Anonymous { exclusive: false, protected: false, huge: false };
pub const PW: Entry = Entry::Anonymous { exclusive: true, protected: true, huge: false };
pub const T: Entry = Entry::Anonymous { exclusive: true, protected: false, huge: true };
pub const TW: Entry = Entry::Anonymous { exclusive: true, protected: true, huge: true };
pub const Z: Entry = Entry::Zero { protected: false };
pub const ZW: Entry = Entry::Zero { protected: true };
pub const F: Entry = Entry::File { protected: false };
pub const FW: Entry = Entry::File { protected: true };
pub const W: Entry = Entry::ProtectMarker;
pub const X: Entry = Entry::PoisonMarker;
pub const G: Entry = Entry::GuardMarker;
pub const S: Entry = Entry::Swap { protected: false };
pub const SW: Entry = Entry::Swap { protected: true };

pub const EPERM: Errno = Errno(1);
pub const ENOENT: Errno = Errno(2);
pub const ESRCH: Errno = Errno(3);
pub const EAGAIN: Errno = Errno(11);
pub const ENOMEM: Errno = Errno(12);
pub const EFAULT: Errno = Errno(14);
pub const EBUSY: Errno = Errno(16);
pub const EEXIST: Errno = Errno(17);
pub const EINVAL: Errno = Errno(22);

/// The call has worked and has no out field.
pub const OK: Answer = Answer { result: Ok(()), out: Out::Untouched };

/// All pages are done.
pub fn done(pages: u64) -> Answer {
    Answer { result: Ok(()), out: Out::Done(bytes(pages)) }
}

/// Some pages are done, and the next one is not.
pub fn partial(pages: u64) -> Answer {
    Answer { result: Err(EAGAIN), out: Out::Done(bytes(pages)) }
}

/// Refused at the first page: the error is in the out field as well.
pub fn refused(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Done(-i64::from(errno.0)) }
}

/// Refused before anything was tried: the out field is as it was.
pub fn untouched(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Untouched }
}

/// REGISTER has worked.
pub fn ioctls(mask: u64) -> Answer {
    Answer { result: Ok(()), out: Out::Ioctls(mask) }
}

/// A handshake that has failed: the structure is all zeros.
pub fn zeroed(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Api { api: 0, features: 0, ioctls: 0 } }
}

fn bytes(pages: u64) -> i64 {
    i64::try_from(pages * PAGE).expect("few pages")
}

pub fn api(features: u64) -> Call {
    Call::Api { api: API_VERSION, features }
}

pub fn register(start: u64, pages: u64, mode: u64) -> Call {
    Call::Register { start, len: pages * PAGE, mode }
}

pub fn unregister(start: u64, pages: u64) -> Call {
    Call::Unregister { start, len: pages * PAGE }
}

pub fn wake(start: u64, pages: u64) -> Call {
    Call::Wake { start, len: pages * PAGE }
}

pub fn copy(dst: u64, src: u64, pages: u64) -> Call {
    Call::Copy { dst, src, len: pages * PAGE, mode: 0 }
}

pub fn copy_protected(dst: u64, src: u64, pages: u64) -> Call {
    Call::Copy { dst, src, len: pages * PAGE, mode: MODE_WP }
}

pub fn copy_silently(dst: u64, src: u64, pages: u64) -> Call {
    Call::Copy { dst, src, len: pages * PAGE, mode: MODE_DONTWAKE }
}

pub fn zeropage(start: u64, pages: u64) -> Call {
    Call::Zeropage { start, len: pages * PAGE, mode: 0 }
}

pub fn poison(start: u64, pages: u64) -> Call {
    Call::Poison { start, len: pages * PAGE, mode: 0 }
}

pub fn continue_(start: u64, pages: u64) -> Call {
    Call::Continue { start, len: pages * PAGE, mode: 0 }
}

pub fn continue_protected(start: u64, pages: u64) -> Call {
    Call::Continue { start, len: pages * PAGE, mode: MODE_WP }
}

pub fn protect(start: u64, pages: u64) -> Call {
    Call::WriteProtect { start, len: pages * PAGE, mode: WRITEPROTECT_WP }
}

pub fn unprotect(start: u64, pages: u64) -> Call {
    Call::WriteProtect { start, len: pages * PAGE, mode: 0 }
}

pub fn unprotect_silently(start: u64, pages: u64) -> Call {
    Call::WriteProtect { start, len: pages * PAGE, mode: WRITEPROTECT_DONTWAKE }
}

pub fn move_(dst: u64, src: u64, pages: u64) -> Call {
    Call::Move { dst, src, len: pages * PAGE, mode: 0 }
}

pub fn move_with_holes(dst: u64, src: u64, pages: u64) -> Call {
    Call::Move { dst, src, len: pages * PAGE, mode: MOVE_ALLOW_SRC_HOLES }
}

/// The message of a fault, without the feature that fills in the thread.
pub fn fault(flags: u64, address: u64) -> RawMessage {
    RawMessage::Pagefault { flags, address, ptid: 0 }
}

/// A file from its start, shared.
pub fn shared(file: File) -> Backing {
    Backing::File { file, page: 0, shared: true, read_only_descriptor: false }
}

/// A file from its start, private.
pub fn private(file: File) -> Backing {
    Backing::File { file, page: 0, shared: false, read_only_descriptor: false }
}
