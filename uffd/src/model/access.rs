//! Loads and stores, by user code and by the kernel for user code: the hardware first, then as
//! many faults as it takes.

use super::address_space::{AddressSpace, reach_in};
use super::faults::{Failure, Request, Step, ThreadState, Waiting, resolve};
use super::folio::{Folio, HUGE, PAGE};
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

/// Copies bytes of user memory while page faults are off: what the hardware finds, or nothing. Each
/// page table is locked once.
pub(super) fn copy_present(space: &AddressSpace, mut address: u64, mut into: &mut [u8]) -> bool {
    while !into.is_empty() {
        let Some(slot) = space.tables.find(address) else { return false };
        let mut level = slot.lock();
        let end = (address / HUGE + 1) * HUGE;
        while address < end && !into.is_empty() {
            let length = in_page(address, into.len());
            let (part, rest) = into.split_at_mut(length);
            if reach_in(&mut level, address, false, |folio, at| read(folio, at, part)).is_none() {
                return false;
            }
            (address, into) = (address + length as u64, rest);
        }
    }
    true
}

/// Copies bytes of user memory with page faults on, from `*done` on, so that a caller that had to
/// sleep goes on where it was.
pub(super) fn copy_with_faults(
    thread: &ThreadState,
    address: u64,
    into: &mut [u8],
    done: &mut usize,
) -> Reached<()> {
    while *done < into.len() {
        let at = address + *done as u64;
        let length = in_page(at, into.len() - *done);
        let part = &mut into[*done..*done + length];
        let request = Request {
            thread,
            space: &thread.space,
            address: at,
            write: false,
            user: false,
            no_wait: false,
        };
        match reach(&request, |folio, at| read(folio, at, part)) {
            Reached::Done(()) => *done += length,
            other => return other,
        }
    }
    Reached::Done(())
}

fn read(folio: Option<&Folio>, at: usize, into: &mut [u8]) {
    match folio {
        Some(folio) => folio.read(at, into),
        None => into.fill(0),
    }
}

/// How many of `length` bytes from `address` are in its page.
fn in_page(address: u64, length: usize) -> usize {
    let left = PAGE - address % PAGE;
    length.min(usize::try_from(left).expect("less than a page"))
}
