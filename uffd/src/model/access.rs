//! Loads and stores, by user code and by the kernel for user code: the hardware first, then as
//! many faults as it takes.

use super::address_space::AddressSpace;
use super::contents::Contents;
use super::faults::{Failure, Request, Step, ThreadState, Waiting, resolve};
use super::folio::{Folio, PAGE, PAGE_BYTES};
use super::sync::Arc;

/// An access of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// User code loads a byte.
    Load,
    /// User code stores a byte.
    Store(u8),
    /// The kernel loads a byte for user code.
    KernelLoad,
    /// The kernel stores a byte for user code.
    KernelStore(u8),
}

impl Touch {
    /// It stores.
    pub fn is_write(self) -> bool {
        matches!(self, Touch::Store(_) | Touch::KernelStore(_))
    }

    /// User code does it.
    pub fn is_user(self) -> bool {
        matches!(self, Touch::Load | Touch::Store(_))
    }
}

/// How far an access has come.
#[derive(Debug)]
pub(super) enum Reached<T> {
    /// It is done.
    Done(T),
    /// It cannot be done.
    Failed(Failure),
    /// The thread sleeps and then tries again.
    Parked(Waiting),
    /// The thread would sleep and does not want to.
    WouldWait,
}

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toucher {
    /// A thread of the process, by itself or in a system call.
    Thread,
    /// The guest of a vCPU: the kernel asks for the page on its behalf, first without waiting.
    Guest,
}

/// Touches one byte; a load returns it, a store returns what it stored.
pub(super) fn touch(
    thread: &ThreadState,
    space: &Arc<AddressSpace>,
    address: u64,
    touch: Touch,
    toucher: Toucher,
) -> Reached<u8> {
    let request = Request {
        thread,
        space,
        address,
        write: touch.is_write(),
        user: touch.is_user() && toucher == Toucher::Thread,
        no_wait: toucher == Toucher::Guest,
    };
    match touch_once(&request, touch) {
        // No message was queued for the first try; the second waits.
        Reached::WouldWait => touch_once(&Request { no_wait: false, ..request }, touch),
        reached => reached,
    }
}

fn touch_once(request: &Request<'_>, touch: Touch) -> Reached<u8> {
    reach(request, |folio, at| match touch {
        Touch::Load | Touch::KernelLoad => folio.map_or(0, |folio| folio.load(at)),
        Touch::Store(byte) | Touch::KernelStore(byte) => {
            folio.expect("the zero page is never writable").write(at, &[byte]);
            byte
        }
    })
}

/// Has a page there and allows an access, without making one: what the kernel does to populate
/// memory, to lock it, and for a vCPU.
pub(super) fn populate(request: &Request<'_>) -> Reached<()> {
    reach(request, |_, _| ())
}

fn reach<R>(request: &Request<'_>, mut work: impl FnMut(Option<&Folio>, usize) -> R) -> Reached<R> {
    loop {
        let (address, write) = (request.address, request.write);
        if let Some(result) = request.space.reach(address, write, &mut work) {
            return Reached::Done(result);
        }
        match resolve(request) {
            Step::Again => {}
            Step::Failed(failure) => return Reached::Failed(failure),
            Step::Parked(waiting) => return Reached::Parked(waiting),
            Step::WouldWait => return Reached::WouldWait,
        }
    }
}

/// Copies user memory from `address` on, as much as fits, while page faults are off: what the
/// hardware finds, or nothing.
pub(super) fn copy_present(space: &AddressSpace, address: u64, into: &mut Contents) -> bool {
    let mut done = 0;
    while done < into.length() {
        let (from, length) = next_piece(address, done, into);
        if space.reach(from, false, |folio, at| give(folio, at, length, into, done)).is_none() {
            return false;
        }
        done += length;
    }
    true
}

/// Copies user memory with page faults on, from `*done` on, so that a caller that had to sleep
/// goes on where it was.
pub(super) fn copy_with_faults(
    thread: &ThreadState,
    address: u64,
    into: &mut Contents,
    done: &mut usize,
) -> Reached<()> {
    while *done < into.length() {
        let (from, length) = next_piece(address, *done, into);
        let request = Request {
            thread,
            space: &thread.space,
            address: from,
            write: false,
            user: false,
            no_wait: false,
        };
        match reach(&request, |folio, at| give(folio, at, length, into, *done)) {
            Reached::Done(()) => *done += length,
            other => return other,
        }
    }
    Reached::Done(())
}

/// Where the bytes at `done` come from, and how many of them are in one page there and here.
fn next_piece(address: u64, done: usize, into: &Contents) -> (u64, usize) {
    let from = address + done as u64;
    let here = PAGE_BYTES - done % PAGE_BYTES;
    (from, in_page(from, here.min(into.length() - done)))
}

fn give(folio: Option<&Folio>, from: usize, length: usize, into: &mut Contents, at: usize) {
    match folio {
        Some(folio) => folio.give(from, length, into, at),
        None => into.take(at, length, None, 0),
    }
}

/// How many of `length` bytes from `address` are in its page.
fn in_page(address: u64, length: usize) -> usize {
    let left = PAGE - address % PAGE;
    length.min(usize::try_from(left).expect("less than a page"))
}
