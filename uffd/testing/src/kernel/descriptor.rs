//! Userfaultfds as the kernel has them: the numbers and structures of their ioctls, what they
//! read as, and what poll and fdinfo say. Reads are made by the driver itself.

// UNSAFETY: reads into a buffer, and into nowhere.
#![expect(unsafe_code)]

use std::fs;

use godwit_uffd::abi::{Answer, Call, Errno, MESSAGE_BYTES, Out, RawMessage};

use super::errno;
use super::mailbox::BUFFER_WORDS;
use crate::world::{FdInfo, Polled};

/// What a field holds that the kernel may fill, before it does. No length, errno or mask is this.
const SENTINEL: u64 = 0x5E47_12E1_5E47_12E1;

const fn number(direction: u64, number: u64, words: u64) -> u64 {
    (direction << 30) | ((words * 8) << 16) | (0xAA << 8) | number
}

const READ: u64 = 2;
const READ_WRITE: u64 = 3;

/// The device node's only ioctl.
pub(super) const NEW: u64 = number(0, 0, 0);

/// The number of an ioctl, and its structure with untouched out fields.
pub(super) fn encode(call: Call) -> (u64, [u64; BUFFER_WORDS]) {
    let (number, words): (u64, &[u64]) = match call {
        Call::Api { api, features } => (number(READ_WRITE, 0x3F, 3), &[api, features, SENTINEL]),
        Call::Register { start, len, mode } => {
            (number(READ_WRITE, 0x00, 4), &[start, len, mode, SENTINEL])
        }
        Call::Unregister { start, len } => (number(READ, 0x01, 2), &[start, len]),
        Call::Wake { start, len } => (number(READ, 0x02, 2), &[start, len]),
        Call::Copy { dst, src, len, mode } => {
            (number(READ_WRITE, 0x03, 5), &[dst, src, len, mode, SENTINEL])
        }
        Call::Zeropage { start, len, mode } => {
            (number(READ_WRITE, 0x04, 4), &[start, len, mode, SENTINEL])
        }
        Call::Move { dst, src, len, mode } => {
            (number(READ_WRITE, 0x05, 5), &[dst, src, len, mode, SENTINEL])
        }
        Call::WriteProtect { start, len, mode } => {
            (number(READ_WRITE, 0x06, 3), &[start, len, mode])
        }
        Call::Continue { start, len, mode } => {
            (number(READ_WRITE, 0x07, 4), &[start, len, mode, SENTINEL])
        }
        Call::Poison { start, len, mode } => {
            (number(READ_WRITE, 0x08, 4), &[start, len, mode, SENTINEL])
        }
        Call::Other { number: other } => (number(READ_WRITE, other & 0xFF, 4), &[0; 4]),
    };
    let mut structure = [0; BUFFER_WORDS];
    structure[..words.len()].copy_from_slice(words);
    (number, structure)
}

/// What a call has written behind its arguments. `written` says whether the structure is where
/// the kernel could write it.
pub(super) fn decode(
    call: Call,
    result: Result<u64, Errno>,
    structure: [u64; BUFFER_WORDS],
    written: bool,
) -> Answer {
    let out = match call {
        _ if !written => Out::Untouched,
        Call::Api { .. } if structure[2] == SENTINEL => Out::Untouched,
        Call::Api { .. } => {
            Out::Api { api: structure[0], features: structure[1], ioctls: structure[2] }
        }
        Call::Register { .. } => field(structure[3]).map_or(Out::Untouched, Out::Ioctls),
        Call::Copy { .. } | Call::Move { .. } => done(structure[4]),
        Call::Zeropage { .. } | Call::Continue { .. } | Call::Poison { .. } => done(structure[3]),
        Call::Unregister { .. }
        | Call::Wake { .. }
        | Call::WriteProtect { .. }
        | Call::Other { .. } => Out::Untouched,
    };
    Answer { result: result.map(drop), out }
}

fn field(word: u64) -> Option<u64> {
    (word != SENTINEL).then_some(word)
}

fn done(word: u64) -> Out {
    field(word).map_or(Out::Untouched, |word| Out::Done(word.cast_signed()))
}

/// Reads messages without sleeping, whether the descriptor blocks or not.
pub(super) fn read(fd: i32, bytes: usize) -> Result<Vec<RawMessage>, Errno> {
    let mut buffer = vec![0; bytes];
    let got = without_blocking(fd, || {
        // SAFETY: the buffer has this many bytes.
        unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), bytes) }
    })?;
    Ok(buffer[..got].chunks_exact(MESSAGE_BYTES).map(message).collect())
}

/// Reads one message into memory that is not mapped.
pub(super) fn read_into_nowhere(fd: i32) -> Result<usize, Errno> {
    without_blocking(fd, || {
        // SAFETY: the address is in no mapping, so the kernel writes nothing.
        unsafe { libc::read(fd, super::NOWHERE as *mut libc::c_void, MESSAGE_BYTES) }
    })
}

fn without_blocking(fd: i32, read: impl FnOnce() -> isize) -> Result<usize, Errno> {
    let blocking = !is_nonblocking(fd);
    if blocking {
        set_nonblocking(fd, true);
    }
    let got = usize::try_from(read()).map_err(|_| errno());
    if blocking {
        set_nonblocking(fd, false);
    }
    got
}

fn is_nonblocking(fd: i32) -> bool {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    assert!(flags >= 0, "fcntl: {:?}", errno());
    flags & libc::O_NONBLOCK != 0
}

/// Sets or clears `O_NONBLOCK`.
pub(super) fn set_nonblocking(fd: i32, nonblocking: bool) {
    let flags = if nonblocking { libc::O_NONBLOCK } else { 0 };
    // SAFETY: no memory is involved.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
    assert!(set == 0, "fcntl: {:?}", errno());
}

fn message(bytes: &[u8]) -> RawMessage {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    assert!(bytes[1..8].iter().all(|byte| *byte == 0), "reserved bytes: {bytes:x?}");
    match bytes[0] {
        0x12 => RawMessage::Pagefault { flags: word(8), address: word(16), ptid: half(24) },
        0x13 => RawMessage::Fork { fd: half(8) },
        0x14 => RawMessage::Remap { from: word(8), to: word(16), len: word(24) },
        0x15 => RawMessage::Remove { start: word(8), end: word(16) },
        0x16 => RawMessage::Unmap { start: word(8), end: word(16) },
        other => panic!("an event with the number {other:#x}"),
    }
}

/// What poll says now.
pub(super) fn poll(fd: i32) -> Polled {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives through the call; it does not wait.
    let count = unsafe { libc::poll(&raw mut entry, 1, 0) };
    assert!(count >= 0, "poll: {:?}", errno());
    match entry.revents {
        0 => Polled::Idle,
        bits if bits & libc::POLLERR != 0 => Polled::Err,
        bits if bits & libc::POLLHUP != 0 => Polled::Hup,
        _ => Polled::In,
    }
}

/// What fdinfo says.
pub(super) fn info(fd: i32) -> FdInfo {
    let path = format!("/proc/self/fdinfo/{fd}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
    };
    let count = |name: &str| value(name).parse().expect("a count");
    let features = value("API:").split(':').nth(1).expect("version:features:calls");
    let features = u64::from_str_radix(features, 16).expect("hexadecimal features");
    FdInfo {
        pending: count("pending:"),
        total: count("total:"),
        features: features & !HANDSHAKE_DONE,
    }
}

/// The bit of the features that says that the handshake is done.
const HANDSHAKE_DONE: u64 = 1 << 31;
