//! How a guest ends, and how the rest of the process learns of it.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::Error;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestExit {
    /// It powered itself off.
    PowerOff {
        /// The exit code it left.
        code: u8,
    },
    /// It asked for a reset.
    Reset,
    /// It cannot go on; the text says why, with the registers.
    Crash(String),
}

impl fmt::Display for GuestExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestExit::PowerOff { code } => write!(f, "powered off with exit code {code}"),
            GuestExit::Reset => write!(f, "asked for a reset"),
            GuestExit::Crash(what) => write!(f, "crashed: {what}"),
        }
    }
}

struct State {
    exit: Option<GuestExit>,
    taken: bool,
}

/// The end of a guest, delivered once. The descriptor is readable from the end until
/// [`Exits::take`], so that one poll loop can wait for it beside other things.
pub struct Exits {
    event: std::os::fd::OwnedFd,
    state: Mutex<State>,
}

impl Exits {
    pub(crate) fn new() -> Result<Exits, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Event(errno.into()))?;
        Ok(Exits { event, state: Mutex::new(State { exit: None, taken: false }) })
    }

    /// Says that the guest has ended. Only the first call counts.
    pub(crate) fn post(&self, exit: GuestExit) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.exit.is_none() {
            state.exit = Some(exit);
            // The counter cannot overflow by one.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// How the guest ended, the first time that this is asked after the end; then `None`.
    pub fn take(&self) -> Option<GuestExit> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.taken {
            return None;
        }
        let exit = state.exit.clone()?;
        state.taken = true;
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        Some(exit)
    }

    /// How the guest ended, as often as it is asked.
    pub fn peek(&self) -> Option<GuestExit> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).exit.clone()
    }
}

impl AsFd for Exits {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exits {{ event: {}, exit: {:?} }}", self.event.as_raw_fd(), self.peek())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(exits: &Exits) -> bool {
        let mut fds = [PollFd::new(exits, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn end_is_delivered_once_and_wakes_a_poll() {
        let exits = Exits::new().unwrap();
        assert!(!is_readable(&exits));
        assert_eq!(exits.take(), None);
        exits.post(GuestExit::PowerOff { code: 7 });
        exits.post(GuestExit::Reset);
        assert!(is_readable(&exits));
        assert_eq!(exits.take(), Some(GuestExit::PowerOff { code: 7 }));
        assert_eq!(exits.take(), None);
        assert!(!is_readable(&exits));
        assert_eq!(exits.peek(), Some(GuestExit::PowerOff { code: 7 }));
    }
}
