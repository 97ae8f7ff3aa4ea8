//! The calls of the running kernel's userfaultfd, and the opening that the `userfaultfd` crate
//! lacks.
//!
//! The crate turns the signed out field of a failed COPY into an unsigned number, has one error
//! for "stopped half way" and "did nothing", does not return the feature mask of the handshake,
//! and ends at Linux 5.13. All fields of the kernel's structures are 64 bits wide and packed, so a
//! structure is an array of words here. The numbers are derived from direction, number and size,
//! and compared at compile time with the values of the kernel's header.

// UNSAFETY: system calls that fill memory which the guest and other threads also use.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::mm::UserfaultfdFlags;

use crate::abi::{API_VERSION, Answer, Call, Errno, Out};

const fn number(direction: u64, number: u64, words: u64) -> u64 {
    (direction << 30) | ((words * WORD_BYTES) << 16) | (TYPE << 8) | number
}

const TYPE: u64 = 0xAA;
const WORD_BYTES: u64 = size_of::<u64>() as u64;
const NONE: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

const NEW: u64 = number(NONE, 0x00, 0);
const REGISTER: u64 = number(READ_WRITE, 0x00, 4);
const UNREGISTER: u64 = number(READ, 0x01, 2);
const WAKE: u64 = number(READ, 0x02, 2);
const COPY: u64 = number(READ_WRITE, 0x03, 5);
const ZEROPAGE: u64 = number(READ_WRITE, 0x04, 4);
const MOVE: u64 = number(READ_WRITE, 0x05, 5);
const WRITEPROTECT: u64 = number(READ_WRITE, 0x06, 3);
const CONTINUE: u64 = number(READ_WRITE, 0x07, 4);
const POISON: u64 = number(READ_WRITE, 0x08, 4);
const API: u64 = number(READ_WRITE, 0x3F, 3);

const _: () = assert!(NEW == 0x0000_AA00);
const _: () = assert!(REGISTER == 0xC020_AA00);
const _: () = assert!(UNREGISTER == 0x8010_AA01);
const _: () = assert!(WAKE == 0x8010_AA02);
const _: () = assert!(COPY == 0xC028_AA03);
const _: () = assert!(ZEROPAGE == 0xC020_AA04);
const _: () = assert!(MOVE == 0xC028_AA05);
const _: () = assert!(WRITEPROTECT == 0xC018_AA06);
const _: () = assert!(CONTINUE == 0xC020_AA07);
const _: () = assert!(POISON == 0xC020_AA08);
const _: () = assert!(API == 0xC018_AA3F);

/// Words of the largest structure.
const WORDS: usize = 5;

/// What an out field holds before the call: no count, no error number and no mask.
const SENTINEL: u64 = 0x5E17_1E1D_0DD0_5EED;

const DEVICE: &str = "/dev/userfaultfd";

/// Where a call answers, as the index of a word.
#[derive(Clone, Copy)]
enum Reply {
    Nowhere,
    Done(usize),
    Ioctls(usize),
    Api,
}

/// A structure of the kernel's, before and after the call.
struct Request {
    number: u64,
    words: [u64; WORDS],
    reply: Reply,
}

impl Request {
    fn new<const N: usize>(number: u64, given: [u64; N], reply: Reply) -> Request {
        let mut words = [0; WORDS];
        words[..N].copy_from_slice(&given);
        if let Reply::Done(at) | Reply::Ioctls(at) = reply {
            words[at] = SENTINEL;
        }
        Request { number, words, reply }
    }

    fn of(call: Call) -> Request {
        match call {
            Call::Api { api, features } => Request::new(API, [api, features], Reply::Api),
            Call::Register { start, len, mode } => {
                Request::new(REGISTER, [start, len, mode], Reply::Ioctls(3))
            }
            Call::Unregister { start, len } => {
                Request::new(UNREGISTER, [start, len], Reply::Nowhere)
            }
            Call::Wake { start, len } => Request::new(WAKE, [start, len], Reply::Nowhere),
            Call::Copy { dst, src, len, mode } => {
                Request::new(COPY, [dst, src, len, mode], Reply::Done(4))
            }
            Call::Zeropage { start, len, mode } => {
                Request::new(ZEROPAGE, [start, len, mode], Reply::Done(3))
            }
            Call::Move { dst, src, len, mode } => {
                Request::new(MOVE, [dst, src, len, mode], Reply::Done(4))
            }
            Call::WriteProtect { start, len, mode } => {
                Request::new(WRITEPROTECT, [start, len, mode], Reply::Nowhere)
            }
            Call::Continue { start, len, mode } => {
                Request::new(CONTINUE, [start, len, mode], Reply::Done(3))
            }
            Call::Poison { start, len, mode } => {
                Request::new(POISON, [start, len, mode], Reply::Done(3))
            }
            Call::Other { number: other } => {
                Request::new(number(READ_WRITE, other & 0xFF, 4), [], Reply::Nowhere)
            }
        }
    }

    fn out(&self) -> Out {
        let told = |at: usize| Some(self.words[at]).filter(|&word| word != SENTINEL);
        let out = match self.reply {
            Reply::Nowhere => None,
            Reply::Done(at) => told(at).map(|word| Out::Done(word.cast_signed())),
            Reply::Ioctls(at) => told(at).map(Out::Ioctls),
            Reply::Api => {
                let [api, features, ioctls, ..] = self.words;
                Some(Out::Api { api, features, ioctls })
            }
        };
        out.unwrap_or(Out::Untouched)
    }
}

/// Makes one call.
///
/// # Safety
///
/// A range that is registered, and the source of a move, must be memory of which Rust holds no
/// reference and expects no value to stay. All other calls are safe: they read any memory, and
/// change only pages of registered ranges that nothing was in.
pub(super) unsafe fn call(fd: BorrowedFd<'_>, call: Call) -> Answer {
    let mut request = Request::of(call);
    let structure = request.words.as_mut_ptr();
    // SAFETY: the structure is as large as the number says, and initialised. What the call does to
    // other memory is the caller's promise.
    let returned = unsafe { libc::ioctl(fd.as_raw_fd(), request.number, structure) };
    let result = if returned < 0 { Err(last_errno()) } else { Ok(()) };
    Answer { result, out: request.out() }
}

/// A new userfaultfd that does not block and has no handshake yet, from the device node, or by the
/// system call where the node is missing or closed to this user.
pub(super) fn new_descriptor() -> io::Result<OwnedFd> {
    new_from_device().or_else(|_| new_from_system_call())
}

pub(super) fn new_from_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    // SAFETY: the argument is a number, not a pointer.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

pub(super) fn new_from_system_call() -> io::Result<OwnedFd> {
    new_with(UserfaultfdFlags::empty())
}

/// By the system call, for faults of user space only, which needs no permission.
pub(super) fn new_for_user_mode() -> io::Result<OwnedFd> {
    new_with(UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY))
}

fn new_with(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    let flags = flags | UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a descriptor without registered ranges can do nothing to memory, and `register` has
    // its own contract.
    Ok(unsafe { rustix::mm::userfaultfd(flags) }?)
}

/// UFFD_USER_MODE_ONLY of the kernel's header.
const USER_MODE_ONLY: u32 = 1;

/// Enables `features` and returns all that the kernel offers.
pub(super) fn handshake(fd: BorrowedFd<'_>, features: u64) -> io::Result<u64> {
    // SAFETY: a handshake changes no memory.
    let answer = unsafe { call(fd, Call::Api { api: API_VERSION, features }) };
    match (answer.result, answer.out) {
        (Ok(()), Out::Api { features, .. }) => Ok(features),
        (Ok(()), out) => unreachable!("API has told {out:?}"),
        (Err(errno), _) => Err(io::Error::from_raw_os_error(errno.0)),
    }
}

/// A descriptor that came with a FORK message is closed, because nobody wants it.
pub(super) fn close_child(fd: u32) {
    if let Ok(raw) = i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(raw) });
    }
}

pub(super) fn last_errno() -> Errno {
    Errno(io::Error::last_os_error().raw_os_error().expect("an error of the system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_commands_are_of_userfaultfd_and_fit_the_structure() {
        let of = |number| Request::of(Call::Other { number }).number;
        assert_eq!(of(9), 0xC020_AA09);
        assert_eq!(of(u64::MAX), 0xC020_AAFF);
    }

    #[test]
    fn an_out_field_that_stays_is_told_as_untouched() {
        let mut request = Request::of(Call::Zeropage { start: 0, len: 0, mode: 0 });
        assert_eq!(request.out(), Out::Untouched);
        request.words[3] = (-11_i64).cast_unsigned();
        assert_eq!(request.out(), Out::Done(-11));
        let mut request = Request::of(Call::Register { start: 0, len: 0, mode: 0 });
        assert_eq!(request.out(), Out::Untouched);
        request.words[3] = 0x13c;
        assert_eq!(request.out(), Out::Ioctls(0x13c));
    }
}
