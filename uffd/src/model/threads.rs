//! [`ModelUffd`]: a userfaultfd of the model for real threads, which sleep where the core parks.

use std::io;

use super::context::Context;
use super::machine::Machine;
use super::sync::Arc;
use super::task::{Outcome, Progress};
use super::{ContextId, Placement, Thread, Touch};
use crate::abi::{self, Answer, Call, Errno, RawMessage};
use crate::error::Error;
use crate::event::{Event, Fault, FaultKind};
use crate::features::Features;
use crate::page::Hva;
use crate::uffd::{Installed, Range, Uffd, Wake};

/// A userfaultfd of a [`Machine`] behind the crate's trait. Addresses are those of the process
/// that it was opened for; bytes to copy come from outside of the machine.
#[derive(Debug)]
pub struct ModelUffd {
    machine: Arc<Machine>,
    thread: Thread,
    id: ContextId,
    context: Arc<Context>,
}

impl ModelUffd {
    /// The userfaultfd `id` of a machine, called from `thread`.
    ///
    /// # Panics
    ///
    /// If the machine has no such userfaultfd.
    pub fn new(machine: Arc<Machine>, thread: Thread, id: ContextId) -> ModelUffd {
        let context = machine.context(id);
        ModelUffd { machine, thread, id, context }
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Calls an ioctl and sleeps where the kernel would.
    pub fn call(&self, call: Call) -> Answer {
        let progress = self.machine.call(self.thread, self.id, call, Placement::Ordinary);
        match finish(progress) {
            Outcome::Ioctl(answer) => answer,
            other => unreachable!("an ioctl ends as one, not as {other:?}"),
        }
    }

    /// COPY of bytes from outside of the machine.
    pub fn copy_bytes(&self, dst: u64, bytes: &[u8], mode: u64) -> Answer {
        self.machine.copy_bytes(self.thread, self.id, dst, bytes, mode)
    }

    /// Reads at least one message and at most `messages`; sleeps while there is none.
    ///
    /// # Errors
    /// EINVAL before the handshake or for no messages at all.
    pub fn read_blocking(&self, messages: usize) -> Result<Vec<RawMessage>, Errno> {
        loop {
            let seen = self.context.news.count();
            match self.machine.read(self.id, messages * abi::MESSAGE_BYTES) {
                Err(Errno::EAGAIN) => self.context.news.wait_past(seen),
                result => return result,
            }
        }
    }

    fn done(&self, answer: Answer) -> Result<Installed, Errno> {
        match (answer.result, answer.out) {
            (Ok(()), _) => Ok(Installed::All),
            (Err(Errno::EEXIST), _) => Ok(Installed::AlreadyPresent),
            (Err(Errno::EAGAIN), abi::Out::Done(done)) if done > 0 => {
                Ok(Installed::Partly { bytes: done.unsigned_abs() })
            }
            (Err(Errno::EAGAIN), _) => Ok(Installed::EventsFirst),
            (Err(errno), _) => Err(errno),
        }
    }

    fn event(&self, message: RawMessage) -> Event {
        match message {
            RawMessage::Pagefault { flags, address, ptid } => Event::Fault(Fault {
                address: Hva(address),
                kind: match flags & (FLAG_WP | FLAG_MINOR) {
                    0 => FaultKind::Missing,
                    FLAG_WP => FaultKind::WriteProtect,
                    _ => FaultKind::Minor,
                },
                write: flags & FLAG_WRITE != 0,
                thread: self.context.has(Features::THREAD_ID).then_some(ptid),
            }),
            RawMessage::Remove { start, end } => Event::Remove { start: Hva(start), end: Hva(end) },
            RawMessage::Unmap { start, end } => Event::Unmap { start: Hva(start), end: Hva(end) },
            RawMessage::Remap { from, to, len } => {
                Event::Remap { from: Hva(from), to: Hva(to), len }
            }
            RawMessage::Fork { fd } => {
                self.machine.close(ContextId(fd));
                Event::Fork
            }
        }
    }
}

impl Uffd for ModelUffd {
    fn copy(&self, at: Hva, bytes: &[u8], wake: Wake) -> Result<Installed, Error> {
        let range = Range { start: at, bytes: bytes.len() as u64 };
        let answer = self.copy_bytes(at.0, bytes, mode(wake));
        self.done(answer).map_err(|errno| failed("COPY", range, errno))
    }

    fn zero(&self, range: Range, wake: Wake) -> Result<Installed, Error> {
        let (start, len) = (range.start.0, range.bytes);
        let answer = self.call(Call::Zeropage { start, len, mode: mode(wake) });
        self.done(answer).map_err(|errno| failed("ZEROPAGE", range, errno))
    }

    fn wake(&self, range: Range) -> Result<(), Error> {
        let answer = self.call(Call::Wake { start: range.start.0, len: range.bytes });
        answer.result.map_err(|errno| failed("WAKE", range, errno))
    }

    fn unregister(&self, range: Range) -> Result<(), Error> {
        let answer = self.call(Call::Unregister { start: range.start.0, len: range.bytes });
        answer.result.map_err(|errno| failed("UNREGISTER", range, errno))
    }

    fn read_events(&self, into: &mut Vec<Event>) -> Result<(), Error> {
        match self.machine.read(self.id, MESSAGES_PER_READ * abi::MESSAGE_BYTES) {
            Ok(messages) => {
                into.extend(messages.into_iter().map(|message| self.event(message)));
                Ok(())
            }
            Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(Error::Read(io::Error::from_raw_os_error(errno.0))),
        }
    }
}

/// Touches memory of a machine from a real thread and sleeps where the kernel would have it sleep.
pub fn touch(machine: &Machine, thread: Thread, address: u64, touch: Touch) -> Outcome {
    finish(machine.access(thread, address, touch))
}

/// Sleeps until something is over.
pub fn finish(mut progress: Progress) -> Outcome {
    loop {
        match progress {
            Progress::Done(outcome) => return outcome,
            Progress::Parked(parked) => {
                parked.wait();
                progress = parked.resume();
            }
        }
    }
}

fn mode(wake: Wake) -> u64 {
    match wake {
        Wake::Now => 0,
        Wake::Later => abi::MODE_DONTWAKE,
    }
}

fn failed(operation: &'static str, range: Range, errno: Errno) -> Error {
    Error::Operation { operation, range, source: io::Error::from_raw_os_error(errno.0) }
}

const FLAG_WRITE: u64 = 1;
const FLAG_WP: u64 = 2;
const FLAG_MINOR: u64 = 4;
/// Messages that one read takes at most.
const MESSAGES_PER_READ: usize = 64;
