//! The ioctls of a userfaultfd: the order of their checks, the out field, and who is woken.

use std::ops::Range;

use super::address_space::Kept;
use super::context::Context;
use super::faults::{ThreadState, Waiting};
use super::handshake;
use super::mfill::{Fill, Kind, Run, SourceError};
use super::move_pages::{self, Move};
use super::protect;
use super::read_write_protect;
use super::register::{self, check_limits, check_range};
use super::sync::Arc;
use crate::abi::{self, Answer, Call, Errno, Out};

/// Where the structure of a call is in the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In ordinary memory.
    Ordinary,
    /// In memory that can be read and not written.
    ReadOnly,
    /// Nowhere.
    Unmapped,
}

impl Placement {
    fn is_readable(self) -> bool {
        self != Placement::Unmapped
    }

    fn is_writable(self) -> bool {
        self == Placement::Ordinary
    }
}

/// A call that may have to sleep: a COPY.
#[derive(Debug)]
pub(super) struct FillCall {
    context: Arc<Context>,
    _space: Kept,
    fill: Fill,
    dont_wake: bool,
    placement: Placement,
    /// The source is being read outside of the locks.
    reading: bool,
}

/// A call that may have to sleep: a MOVE.
#[derive(Debug)]
pub(super) struct MoveCall {
    context: Arc<Context>,
    _space: Kept,
    work: Move,
    dont_wake: bool,
    placement: Placement,
}

/// A call that sleeps.
#[derive(Debug)]
pub(super) enum Sleeping {
    /// COPY, for its source.
    Fill(Box<FillCall>),
    /// MOVE, for a migration.
    Move(Box<MoveCall>),
}

impl Sleeping {
    /// Goes on.
    pub(super) fn go_on(self, thread: &ThreadState) -> Called {
        match self {
            Sleeping::Fill(fill) => fill.go_on(thread, None),
            Sleeping::Move(call) => call.go_on(thread),
        }
    }
}

/// How far a call has come.
#[derive(Debug)]
pub(super) enum Called {
    /// It is over.
    Done(Answer),
    /// Its thread sleeps.
    Parked(Waiting, Sleeping),
}

/// Calls an ioctl.
pub(super) fn call(
    context: &Arc<Context>,
    thread: &ThreadState,
    call: Call,
    placement: Placement,
) -> Called {
    if let Call::Api { api, features } = call {
        if !placement.is_readable() {
            return Called::Done(failed(Errno::EFAULT));
        }
        let storable = placement.is_writable();
        return Called::Done(handshake::handshake(context, thread, api, features, storable));
    }
    if !context.is_initialised() {
        return Called::Done(failed(Errno::EINVAL));
    }
    match call {
        Call::Copy { .. } | Call::Zeropage { .. } | Call::Continue { .. } | Call::Poison { .. } => {
            match prepare_fill(context, call, placement) {
                Ok(fill) => fill.go_on(thread, None),
                Err(answer) => Called::Done(answer),
            }
        }
        Call::Move { dst, src, len, mode } => {
            let work =
                Move { dst, src, len, holes: mode & abi::MOVE_ALLOW_SRC_HOLES != 0, done: 0 };
            match prepare_move(context, thread, work, mode, placement) {
                Ok(call) => call.go_on(thread),
                Err(answer) => Called::Done(answer),
            }
        }
        Call::WriteProtect { start, len, mode } => {
            let apply = protect::write_protect;
            let result = write_protect(context, (start, len), mode, placement, apply);
            Called::Done(Answer { result, out: Out::Untouched })
        }
        _ => Called::Done(control(context, call, placement)),
    }
}

/// COPY of bytes from outside of the model. It never sleeps.
pub(super) fn copy_bytes(
    context: &Arc<Context>,
    thread: &ThreadState,
    dst: u64,
    bytes: &[u8],
    mode: u64,
) -> Answer {
    let call = Call::Copy { dst, src: 0, len: bytes.len() as u64, mode };
    let called = if context.is_initialised() {
        match prepare_fill(context, call, Placement::Ordinary) {
            Ok(fill) => fill.go_on(thread, Some(bytes)),
            Err(answer) => Called::Done(answer),
        }
    } else {
        Called::Done(failed(Errno::EINVAL))
    };
    match called {
        Called::Done(answer) => answer,
        Called::Parked(..) => unreachable!("the bytes are there"),
    }
}

/// The calls that change no page.
fn control(context: &Arc<Context>, call: Call, placement: Placement) -> Answer {
    let readable = placement.is_readable();
    match call {
        _ if !readable && !matches!(call, Call::Other { .. }) => failed(Errno::EFAULT),
        Call::Register { start, len, mode } => {
            match register::register(context, start, len, mode) {
                Err(errno) => failed(errno),
                // The registration stands.
                Ok(_) if !placement.is_writable() => failed(Errno::EFAULT),
                Ok(ioctls) => Answer { result: Ok(()), out: Out::Ioctls(ioctls) },
            }
        }
        Call::Unregister { start, len } => plain(register::unregister(context, start, len)),
        Call::Wake { start, len } => plain(check_range(start, len).map(|range| {
            context.faults.wake(&range);
        })),
        // A structure of zeros: nothing to enable and nothing to disable.
        Call::Other { number: SET_MODE } => plain(set_mode(context, 0, 0)),
        _ => failed(Errno::EINVAL),
    }
}

/// The checks of a fill, in the kernel's order. That the map is changing is seen before the
/// structure is read.
fn prepare_fill(
    context: &Arc<Context>,
    call: Call,
    placement: Placement,
) -> Result<Box<FillCall>, Answer> {
    if context.is_changing() {
        return Err(store(Err(Errno::EAGAIN), placement));
    }
    if !placement.is_readable() {
        return Err(failed(Errno::EFAULT));
    }
    let (kind, dst, src, len, mode) = match call {
        Call::Copy { dst, src, len, mode } => (Kind::Copy, dst, src, len, mode),
        Call::Zeropage { start, len, mode } => (Kind::Zero, start, 0, len, mode),
        Call::Continue { start, len, mode } => (Kind::Continue, start, 0, len, mode),
        Call::Poison { start, len, mode } => (Kind::Poison, start, 0, len, mode),
        _ => unreachable!("not a fill"),
    };
    let mut modes = abi::MODE_DONTWAKE;
    if matches!(kind, Kind::Copy | Kind::Continue) {
        modes |= abi::MODE_WP;
    }
    if kind == Kind::Copy {
        check_limits(src, len).map_err(failed)?;
    }
    check_range(dst, len).map_err(failed)?;
    if mode & !modes != 0 {
        return Err(failed(Errno::EINVAL));
    }
    Ok(Box::new(FillCall {
        _space: context.space.keep().ok_or(failed(Errno::ESRCH))?,
        context: context.clone(),
        fill: Fill::new(kind, dst, src, len, mode & abi::MODE_WP != 0),
        dont_wake: mode & abi::MODE_DONTWAKE != 0,
        placement,
        reading: false,
    }))
}

impl FillCall {
    /// Goes on: after a sleep with the source, otherwise with the destination.
    pub(super) fn go_on(mut self: Box<Self>, thread: &ThreadState, given: Option<&[u8]>) -> Called {
        let result = loop {
            if self.reading {
                match self.fill.read_source(thread) {
                    Ok(()) => self.reading = false,
                    Err(SourceError::Fault) => break self.fill.unreadable(),
                    Err(SourceError::Parked(waiting)) => {
                        return Called::Parked(waiting, Sleeping::Fill(self));
                    }
                }
            }
            match self.fill.run(&self.context, thread, given) {
                Run::Over(result) => break result,
                Run::ReadSource => self.reading = true,
            }
        };
        let fill = &self.fill;
        let finish = Finish { start: fill.dst, len: fill.len, dont_wake: self.dont_wake };
        Called::Done(finish.answer(&self.context, result, self.placement))
    }
}

/// What is done with the result of a call that has an out field and installs pages.
struct Finish {
    start: u64,
    len: u64,
    dont_wake: bool,
}

impl Finish {
    fn answer(
        &self,
        context: &Context,
        result: Result<u64, Errno>,
        placement: Placement,
    ) -> Answer {
        let mut answer = store(result, placement);
        // If the result could not be stored, the pages stay and nobody is woken.
        if let (Ok(done), true) = (result, placement.is_writable()) {
            if !self.dont_wake {
                context.faults.wake(&(self.start..self.start + done));
            }
            answer.result = if done == self.len { Ok(()) } else { Err(Errno::EAGAIN) };
        }
        answer
    }
}

fn prepare_move(
    context: &Arc<Context>,
    thread: &ThreadState,
    work: Move,
    mode: u64,
    placement: Placement,
) -> Result<Box<MoveCall>, Answer> {
    if context.is_changing() {
        return Err(store(Err(Errno::EAGAIN), placement));
    }
    if !placement.is_readable() {
        return Err(failed(Errno::EFAULT));
    }
    // Pages can only be moved by a thread that they belong to.
    if !Arc::ptr_eq(&thread.space, &context.space) {
        return Err(failed(Errno::EINVAL));
    }
    check_range(work.dst, work.len).map_err(failed)?;
    check_range(work.src, work.len).map_err(failed)?;
    if mode & !(abi::MODE_DONTWAKE | abi::MOVE_ALLOW_SRC_HOLES) != 0 {
        return Err(failed(Errno::EINVAL));
    }
    let dont_wake = mode & abi::MODE_DONTWAKE != 0;
    Ok(Box::new(MoveCall {
        _space: context.space.keep().ok_or(failed(Errno::ESRCH))?,
        context: context.clone(),
        work,
        dont_wake,
        placement,
    }))
}

impl MoveCall {
    fn go_on(mut self: Box<Self>, thread: &ThreadState) -> Called {
        match self.work.run(&self.context, thread) {
            move_pages::Run::Migrating(sleeper) => {
                let waiting = Waiting { sleeper, context: None };
                Called::Parked(waiting, Sleeping::Move(self))
            }
            move_pages::Run::Over(result) => {
                let (start, len) = (self.work.dst, self.work.len);
                let finish = Finish { start, len, dont_wake: self.dont_wake };
                Called::Done(finish.answer(&self.context, result, self.placement))
            }
        }
    }
}

/// What WRITEPROTECT or RWPROTECT does to a range: puts protection on, or takes it off.
type Protection = fn(&Context, &Range<u64>, bool) -> Result<(), Errno>;

/// RWPROTECT. It has the modes of WRITEPROTECT.
pub(super) fn read_write_protect(
    context: &Arc<Context>,
    range: (u64, u64),
    mode: u64,
) -> Result<(), Errno> {
    if !context.is_initialised() || !context.space.profile().read_write_protect {
        return Err(Errno::EINVAL);
    }
    let apply = read_write_protect::read_write_protect;
    write_protect(context, range, mode, Placement::Ordinary, apply)
}

/// SET_MODE.
pub(super) fn set_mode(context: &Arc<Context>, enable: u64, disable: u64) -> Result<(), Errno> {
    if !context.is_initialised() || !context.space.profile().read_write_protect {
        return Err(Errno::EINVAL);
    }
    read_write_protect::set_mode(context, enable, disable)
}

fn write_protect(
    context: &Arc<Context>,
    (start, len): (u64, u64),
    mode: u64,
    placement: Placement,
    apply: Protection,
) -> Result<(), Errno> {
    if context.is_changing() {
        return Err(Errno::EAGAIN);
    }
    if !placement.is_readable() {
        return Err(Errno::EFAULT);
    }
    let range = check_range(start, len)?;
    let protect = mode & abi::WRITEPROTECT_WP != 0;
    let dont_wake = mode & abi::WRITEPROTECT_DONTWAKE != 0;
    let known = abi::WRITEPROTECT_WP | abi::WRITEPROTECT_DONTWAKE;
    if mode & !known != 0 || (protect && dont_wake) {
        return Err(Errno::EINVAL);
    }
    apply(context, &range, protect)?;
    if !protect && !dont_wake {
        context.faults.wake(&range);
    }
    Ok(())
}

/// The out field gets bytes done or a negative error; if it cannot be stored, that is the error.
fn store(result: Result<u64, Errno>, placement: Placement) -> Answer {
    if !placement.is_writable() {
        return failed(Errno::EFAULT);
    }
    let out = match result {
        Ok(done) => i64::try_from(done).expect("less than the address space"),
        Err(errno) => errno.negative(),
    };
    Answer { result: result.map(|_| ()), out: Out::Done(out) }
}

fn failed(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Untouched }
}

fn plain(result: Result<(), Errno>) -> Answer {
    Answer { result, out: Out::Untouched }
}

/// The number of SET_MODE.
const SET_MODE: u64 = 0x0A;
