//! [`ModelUffd`]: a userfaultfd of the model for real threads, which sleep where the core parks.

use std::io;

use super::context::Context;
use super::machine::Machine;
use super::scan::{self, Categories, Scan};
use super::sync::Arc;
use super::task::{Outcome, Progress};
use super::{ContextId, Placement, Thread, Touch};
use crate::abi::{self, Answer, Call, Errno, Out, RawMessage};
use crate::backend::Backend;
use crate::error::Error;
use crate::features::Features;
use crate::page::Hva;
use crate::uffd::Range;

/// A userfaultfd of a [`Machine`] as a backend of [`Uffd`](crate::Uffd). Addresses are those of the
/// process that it was opened for; bytes to copy come from outside of the machine.
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
}

impl Backend for ModelUffd {
    fn call(&self, call: Call) -> Answer {
        ModelUffd::call(self, call)
    }

    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer {
        self.machine.copy_bytes(self.thread, self.id, at.0, bytes, mode)
    }

    /// The pages of this program cannot become pages of the machine, so they are copied.
    fn move_bytes(&self, at: Hva, staged: &mut [u8], mode: u64) -> Answer {
        let answer = self.copy_bytes(at, staged, mode & abi::MODE_DONTWAKE);
        if let Out::Done(done) = answer.out
            && let Ok(done) = usize::try_from(done)
        {
            staged[..done].fill(0);
        }
        answer
    }

    fn give_up(&self, staged: &mut [u8]) {
        staged.fill(0);
    }

    fn read(&self, each: &mut dyn FnMut(RawMessage)) -> Result<(), Error> {
        let messages = match self.machine.read(self.id, MESSAGES_PER_READ * abi::MESSAGE_BYTES) {
            Ok(messages) => messages,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(Error::Read(io::Error::from_raw_os_error(errno.0))),
        };
        for message in messages {
            if let RawMessage::Fork { fd } = message {
                self.machine.close(ContextId(fd));
            }
            each(message);
        }
        Ok(())
    }

    fn scan_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        let (start, end) = (range.start.0, range.start.0 + range.bytes);
        let (protect, check_async, mask) = (true, true, Categories::WRITTEN);
        let call = Scan { start, end, protect, check_async, mask };
        let written = scan::scan(&self.context.space, &call).inspect_err(|_| each(range))?;
        for region in written {
            each(Range { start: Hva(region.start), bytes: region.end - region.start });
        }
        Ok(())
    }

    fn enabled(&self) -> Features {
        self.context.features()
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

/// Messages that one read takes at most.
const MESSAGES_PER_READ: usize = 64;
