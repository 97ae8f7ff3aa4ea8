//! What may come of an operation, whatever it was.

use godwit_uffd::abi::{Answer, Call, Errno, MESSAGE_BYTES, Out, RawMessage};
use godwit_uffd::model::{Machine, Observed, Outcome, PAGE, Process, Region, Scan, Signal, Touch};
use godwit_uffd::{Event, Features, message};

use crate::differential::act::{AREAS, FIRST_HUGETLB, address, units};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An ioctl.
    Call(Call),
    /// An access.
    Touch {
        /// Whose memory.
        process: Process,
        /// Where.
        at: u64,
        /// How.
        touch: Touch,
    },
    /// A call of memory management.
    Memory,
    /// A fork.
    Fork,
}

/// What something that may sleep has come to.
pub fn outcome(machine: &Machine, asked: Asked, outcome: &Outcome) {
    match (asked, outcome) {
        (Asked::Call(call), Outcome::Ioctl(one)) => answer(call, *one),
        (Asked::Touch { process, at, touch }, _) => touched(machine, process, (at, touch), outcome),
        (Asked::Memory, Outcome::Returned(Err(errno))) => assert!(is_errno(*errno), "{errno:?}"),
        (Asked::Memory, Outcome::Returned(Ok(value))) => assert!(value.is_multiple_of(PAGE)),
        (Asked::Fork, Outcome::Forked(_)) => {}
        _ => panic!("{asked:x?} has come to {outcome:x?}"),
    }
}

fn touched(machine: &Machine, process: Process, (at, touch): (u64, Touch), outcome: &Outcome) {
    let seen = match (touch, outcome) {
        (Touch::Load, Outcome::Loaded(byte)) => Some(*byte),
        (Touch::Store(byte), Outcome::Stored)
        | (Touch::KernelStore(byte), Outcome::Returned(Ok(1))) => Some(byte),
        (Touch::KernelLoad, Outcome::Returned(Ok(1))) => machine.peek(process, at),
        // User code is signalled, the kernel and guests have an error.
        (_, Outcome::Returned(Err(Errno::EFAULT))) => return,
        (
            Touch::Load | Touch::Store(_),
            Outcome::Signal(
                Signal::Segv { address }
                | Signal::BusAddress { address }
                | Signal::BusPoison { address },
            ),
        ) => return assert_eq!(*address, at, "a signal of another address"),
        _ => panic!("{touch:?} of {at:#x} has come to {outcome:x?}"),
    };
    assert!(seen.is_some(), "{at:#x} was touched and is not there");
    assert_eq!(machine.peek(process, at), seen, "{touch:?} of {at:#x}");
}

/// An answer: its two parts agree, and what is done is whole pages of what was asked for.
pub fn answer(call: Call, answer: Answer) {
    let fills = |len: u64| match (answer.out, answer.result) {
        (Out::Untouched, Err(errno)) => is_errno(errno),
        (Out::Done(out), result) => match u64::try_from(out) {
            Ok(0) => false,
            Ok(done) => {
                let expected = if done == len { Ok(()) } else { Err(Errno::EAGAIN) };
                let whole = done <= len && done.is_multiple_of(PAGE);
                whole && result == expected
            }
            Err(_) => result.is_err_and(|errno| i64::from(-errno.0) == out && is_errno(errno)),
        },
        _ => false,
    };
    let legal = match call {
        Call::Copy { len, .. }
        | Call::Zeropage { len, .. }
        | Call::Continue { len, .. }
        | Call::Poison { len, .. }
        | Call::Move { len, .. } => fills(len),
        Call::Register { .. } => match (answer.out, answer.result) {
            (Out::Ioctls(mask), Ok(())) => mask & 0x104 == 0x104 && mask & !0x3FC == 0,
            (Out::Untouched, Err(errno)) => is_errno(errno),
            _ => false,
        },
        Call::Api { .. } => match (answer.out, answer.result) {
            (Out::Api { api, features, ioctls }, Ok(())) => {
                api == 0xAA && features & 0x1_FFFF == 0x1_FFFF && ioctls & 3 == 3
            }
            (Out::Api { api, features, ioctls }, Err(_)) => [api, features, ioctls] == [0; 3],
            (Out::Untouched, Err(errno)) => is_errno(errno),
            _ => false,
        },
        Call::Unregister { .. }
        | Call::Wake { .. }
        | Call::WriteProtect { .. }
        | Call::Other { .. } => {
            answer.out == Out::Untouched && answer.result.err().is_none_or(is_errno)
        }
    };
    assert!(legal, "{call:x?} was answered {answer:x?}");
}

/// Messages that one read has returned.
pub fn read(messages: &[RawMessage], bytes: usize, features: Features) {
    assert!(!messages.is_empty() && messages.len() <= bytes / MESSAGE_BYTES);
    let is_fault = |one: &&RawMessage| matches!(one, RawMessage::Pagefault { .. });
    let faults = messages.iter().take_while(is_fault).count();
    assert!(!messages[faults..].iter().any(|one| is_fault(&one)), "events before faults");
    for one in messages {
        assert_eq!(message::decode(&message::encode(*one)), Ok(*one));
        assert!(Event::try_from(*one).is_ok(), "{one:x?} has no meaning");
        match *one {
            RawMessage::Pagefault { address, ptid, .. } => {
                let exact = features.contains(Features::EXACT_ADDRESS);
                assert!(exact || address.is_multiple_of(PAGE), "{address:#x}");
                assert_eq!(ptid != 0, features.contains(Features::THREAD_ID));
            }
            RawMessage::Fork { .. } => {}
            RawMessage::Remap { from, to, len } => {
                assert!([from, to, len].iter().all(|one| one.is_multiple_of(PAGE)) && len > 0);
            }
            RawMessage::Remove { start, end } | RawMessage::Unmap { start, end } => {
                assert!(start < end && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE));
            }
        }
    }
}

/// What a scan has found: pieces of its range, in order.
pub fn regions(scan: &Scan, found: Result<Vec<Region>, Errno>) {
    let regions = match found {
        Ok(regions) => regions,
        Err(errno) => return assert!(is_errno(errno), "{errno:?}"),
    };
    let mut at = scan.start;
    for region in regions {
        assert!(at <= region.start && region.start < region.end, "{region:x?} in {scan:x?}");
        at = region.end;
    }
    assert!(at <= scan.end.max(scan.start).next_multiple_of(PAGE), "{scan:x?} goes to {at:#x}");
}

/// The pages that are looked at: all of the small areas, and the first of each large unit.
pub fn places() -> impl Iterator<Item = u64> {
    (0..AREAS).flat_map(|area| {
        let more = if area < FIRST_HUGETLB { 0 } else { 1 };
        (0..units(area)).flat_map(move |unit| {
            (0..=more).map(move |page: u64| address(area, unit) + page * PAGE)
        })
    })
}

/// An entry: what is there can be looked at, and nothing else.
pub fn page(machine: &Machine, process: Process, at: u64) {
    let (entry, byte) = (machine.observe(process, at), machine.peek(process, at));
    let legal = match entry {
        Observed::Anonymous { .. } | Observed::File { .. } => byte.is_some(),
        Observed::Zero { .. } => byte == Some(0),
        Observed::None
        | Observed::ProtectMarker
        | Observed::PoisonMarker
        | Observed::GuardMarker
        | Observed::Swap { .. }
        | Observed::Migration => byte.is_none(),
    };
    assert!(legal, "{at:#x} is {entry:?} and reads {byte:?}");
}

fn is_errno(errno: Errno) -> bool {
    (1..=ERRNO_MAX).contains(&errno.0)
}

/// The largest error number: EHWPOISON.
const ERRNO_MAX: i32 = 133;
