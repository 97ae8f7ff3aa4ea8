//! What a userfaultfd reports: faults of threads that now wait, and changes of the address space.

use crate::abi::RawMessage;
use crate::message::MessageError;
use crate::page::Hva;

/// Why a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no page.
    Missing,
    /// The page cache has the page and the page table does not.
    Minor,
    /// The page is write-protected by userfaultfd.
    WriteProtect,
}

/// One access that waits for its page. Several threads that wait for one page raise one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first byte of the page; the exact byte with
    /// [`EXACT_ADDRESS`](crate::Features::EXACT_ADDRESS).
    pub address: Hva,
    /// What is to be done about the page.
    pub kind: FaultKind,
    /// The access is a write.
    pub write: bool,
    /// The thread that waits, if [`THREAD_ID`](crate::Features::THREAD_ID) was enabled.
    pub thread: Option<u32>,
}

/// One message of a userfaultfd.
///
/// Faults are delivered before all other events, so the order between the two says nothing. The
/// thread that caused an event other than a fault waits until the event has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault(Fault),
    /// The pages of a range are being given up by madvise; they read as missing afterwards.
    Remove {
        /// The first byte given up.
        start: Hva,
        /// The byte behind the last one.
        end: Hva,
    },
    /// A range is no longer mapped.
    Unmap {
        /// The first byte unmapped.
        start: Hva,
        /// The byte behind the last one.
        end: Hva,
    },
    /// A range has moved in the address space and is registered at its new place.
    Remap {
        /// Where it was.
        from: Hva,
        /// Where it is.
        to: Hva,
        /// Its length before the move, in bytes.
        len: u64,
    },
    /// The process has forked. The child's own userfaultfd has been closed, so the child's memory
    /// is ordinary.
    Fork,
}

/// The access is a write.
const FLAG_WRITE: u64 = 1;
/// The page is write-protected.
const FLAG_WP: u64 = 2;
/// The page cache has the page.
const FLAG_MINOR: u64 = 4;

impl TryFrom<RawMessage> for Event {
    type Error = MessageError;

    /// What a message means. A reason for a fault that has no name here is an error: to call it a
    /// missing page would install a page where one is.
    fn try_from(message: RawMessage) -> Result<Event, MessageError> {
        Ok(match message {
            RawMessage::Pagefault { flags, address, ptid } => Event::Fault(Fault {
                address: Hva(address),
                kind: match flags & !FLAG_WRITE {
                    0 => FaultKind::Missing,
                    FLAG_WP => FaultKind::WriteProtect,
                    FLAG_MINOR => FaultKind::Minor,
                    _ => return Err(MessageError::Flags { flags }),
                },
                write: flags & FLAG_WRITE != 0,
                thread: (ptid != 0).then_some(ptid),
            }),
            RawMessage::Fork { .. } => Event::Fork,
            RawMessage::Remap { from, to, len } => {
                Event::Remap { from: Hva(from), to: Hva(to), len }
            }
            RawMessage::Remove { start, end } => Event::Remove { start: Hva(start), end: Hva(end) },
            RawMessage::Unmap { start, end } => Event::Unmap { start: Hva(start), end: Hva(end) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(flags: u64, ptid: u32) -> Result<Event, MessageError> {
        Event::try_from(RawMessage::Pagefault { flags, address: 0x7000, ptid })
    }

    #[test]
    fn flags_become_one_reason() {
        let kinds = [
            (0, FaultKind::Missing, false),
            (1, FaultKind::Missing, true),
            (3, FaultKind::WriteProtect, true),
            (4, FaultKind::Minor, false),
            (5, FaultKind::Minor, true),
        ];
        for (flags, kind, write) in kinds {
            let wanted = Fault { address: Hva(0x7000), kind, write, thread: Some(8) };
            assert_eq!(fault(flags, 8), Ok(Event::Fault(wanted)));
        }
    }

    #[test]
    fn two_reasons_or_an_unknown_one_are_refused() {
        for flags in [6, 7, 8, 9, 1 << 63] {
            assert_eq!(fault(flags, 0), Err(MessageError::Flags { flags }));
        }
    }

    #[test]
    fn thread_zero_is_none() {
        let Ok(Event::Fault(fault)) = fault(0, 0) else { panic!("not a fault") };
        assert_eq!(fault.thread, None);
    }

    #[test]
    fn events_keep_their_addresses() {
        let remap = RawMessage::Remap { from: 1, to: 2, len: 3 };
        let wanted = Event::Remap { from: Hva(1), to: Hva(2), len: 3 };
        assert_eq!(Event::try_from(remap), Ok(wanted));
        let remove = Event::try_from(RawMessage::Remove { start: 1, end: 2 });
        assert_eq!(remove, Ok(Event::Remove { start: Hva(1), end: Hva(2) }));
        let unmap = Event::try_from(RawMessage::Unmap { start: 1, end: 2 });
        assert_eq!(unmap, Ok(Event::Unmap { start: Hva(1), end: Hva(2) }));
        assert_eq!(Event::try_from(RawMessage::Fork { fd: 3 }), Ok(Event::Fork));
    }
}
