//! The operations that fill holes - COPY, ZEROPAGE, CONTINUE, POISON - from the checks of the
//! range to the count of bytes done (`mfill_atomic` and its four entries).

use super::access::{Reached, copy_present, copy_with_faults};
use super::address_space::AddressSpace;
use super::contents::Contents;
use super::context::{Context, Modes};
use super::faults::{ThreadState, Waiting};
use super::fill_hugetlb;
use super::fill_page;
use super::folio::{HUGE, PAGE, PAGE_BYTES};
use super::page_cache::FileKind;
use super::page_table::Slot;
use super::retry_state::RetryState;
use super::sync::Arc;
use super::vma::{Backing, Vma};
use crate::abi::Errno;

/// Which of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// COPY.
    Copy,
    /// ZEROPAGE.
    Zero,
    /// CONTINUE.
    Continue,
    /// POISON.
    Poison,
}

/// One call, and how far it has come (`mfill_state`).
#[derive(Debug)]
pub(super) struct Fill {
    /// Which of the four.
    pub(super) kind: Kind,
    /// The first byte to fill.
    pub(super) dst: u64,
    /// The first byte to copy.
    pub(super) src: u64,
    /// Bytes to fill.
    pub(super) len: u64,
    /// The pages come write-protected.
    pub(super) protect: bool,
    /// Bytes done.
    pub(super) done: u64,
    /// The page that is being read outside of the locks.
    outside: Option<Outside>,
}

/// A page whose source was not there: it is read without locks, and then put in place.
#[derive(Debug)]
struct Outside {
    contents: Contents,
    /// How many of its bytes were read.
    filled: usize,
    saved: RetryState,
}

/// How far the part under the locks has come.
#[derive(Debug)]
pub(super) enum Run {
    /// The end: bytes done, or the error of the first page.
    Over(Result<u64, Errno>),
    /// The source has to be read outside of the locks.
    ReadSource,
}

/// Why a loop over pages ends before all are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// An error.
    Error(Errno),
    /// The source is not there.
    SourceMissing,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Error(errno)
    }
}

impl Fill {
    /// A call that has not begun.
    pub(super) fn new(kind: Kind, dst: u64, src: u64, len: u64, protect: bool) -> Fill {
        Fill { kind, dst, src, len, protect, done: 0, outside: None }
    }

    /// The address to fill next.
    pub(super) fn at(&self) -> u64 {
        self.dst + self.done
    }

    /// Fills what can be filled without a fault of the source. `given` are the bytes to copy where
    /// they do not come from the caller's memory.
    pub(super) fn run(
        &mut self,
        context: &Context,
        thread: &ThreadState,
        given: Option<&[u8]>,
    ) -> Run {
        let source = Source { thread, given };
        let space = &context.space;
        let stopped = space.with_vma(self.dst, |vma| self.in_vma(context, &source, vma));
        match stopped {
            Err(Stop::SourceMissing) => return Run::ReadSource,
            Err(Stop::Error(errno)) if self.done == 0 => return Run::Over(Err(errno)),
            Err(Stop::Error(_)) | Ok(()) => {}
        }
        Run::Over(Ok(self.done))
    }

    /// Reads the source of one page with page faults on (`mfill_copy_folio_retry`). No lock is
    /// held; the thread may have to sleep.
    pub(super) fn read_source(&mut self, thread: &ThreadState) -> Result<(), SourceError> {
        let at = self.src + self.done;
        let outside = self.outside.as_mut().expect("a run asked for it");
        match copy_with_faults(thread, at, &mut outside.contents, &mut outside.filled) {
            Reached::Done(()) => Ok(()),
            Reached::Parked(waiting) => Err(SourceError::Parked(waiting)),
            Reached::Failed(_) | Reached::WouldWait => Err(SourceError::Fault),
        }
    }

    /// The result after the source could not be read.
    pub(super) fn unreadable(&mut self) -> Result<u64, Errno> {
        self.outside = None;
        if self.done > 0 { Ok(self.done) } else { Err(Errno::EFAULT) }
    }

    /// The checks of the destination, every time its locks are taken (`validate_dst_vma`,
    /// `mfill_get_vma`), and the loop over its pages.
    fn in_vma(
        &mut self,
        context: &Context,
        source: &Source<'_>,
        vma: Option<&Vma>,
    ) -> Result<(), Stop> {
        let space = &context.space;
        let vma = vma.ok_or(Errno::ENOENT)?;
        if !vma.shared {
            space.prepare_anonymous(vma);
        }
        if !vma.contains(&(self.dst..self.dst + self.len)) || vma.owner().is_none() {
            return Err(Errno::ENOENT.into());
        }
        let _no_event_begins = context.map_changing.read();
        if context.is_changing() {
            return Err(Errno::EAGAIN.into());
        }
        if self.protect && !vma.modes().contains(Modes::PROTECT) {
            return Err(Errno::EINVAL.into());
        }
        if let Some(outside) = &self.outside
            && space.profile().copy_notices_changed_map
            && outside.saved.has_changed(vma, self.at())
        {
            return Err(Errno::EAGAIN.into());
        }
        if vma.is_hugetlb() {
            return fill_hugetlb::fill(self, space, source, vma);
        }
        if !takes_pages(space, vma) || (self.kind == Kind::Continue && vma.is_anonymous()) {
            return Err(Errno::EINVAL.into());
        }
        self.each_page(space, source, vma)
    }

    fn each_page(
        &mut self,
        space: &AddressSpace,
        source: &Source<'_>,
        vma: &Vma,
    ) -> Result<(), Stop> {
        while self.done < self.len {
            let at = self.at();
            // The tables above the last are made here (`mfill_establish_pmd`).
            let slot = space.tables.get(at);
            let end = (self.dst + self.len).min((at / HUGE + 1) * HUGE);
            if slot.lock().table_or_new().is_none() {
                return Err(Errno::EEXIST.into());
            }
            self.in_table(space, source, vma, (&slot, end))?;
        }
        Ok(())
    }

    fn in_table(
        &mut self,
        space: &AddressSpace,
        source: &Source<'_>,
        vma: &Vma,
        (slot, end): (&Slot, u64),
    ) -> Result<(), Stop> {
        let private = !vma.shared;
        if self.kind == Kind::Poison || (self.kind == Kind::Zero && private) {
            return fill_page::mark_run(self, source, vma, (slot, end));
        }
        if self.kind == Kind::Continue {
            return fill_page::continue_run(self, (space, source), vma, (slot, end));
        }
        while self.at() < end {
            let at = self.at();
            match self.kind {
                Kind::Copy => {
                    let contents = self.source_page(source, vma, PAGE_BYTES)?;
                    fill_page::put(space, vma, (slot, at), contents, self.protect)?;
                }
                _ => {
                    let zeros = Contents::zeros(PAGE_BYTES);
                    fill_page::put(space, vma, (slot, at), zeros, false)?;
                }
            }
            self.page_done(source, PAGE)?;
        }
        Ok(())
    }

    /// Counts what was done; a thread that was killed stops behind its page.
    pub(super) fn page_done(&mut self, source: &Source<'_>, bytes: u64) -> Result<(), Stop> {
        self.done += bytes;
        self.outside = None;
        if source.thread.is_dying() { Err(Errno::EINTR.into()) } else { Ok(()) }
    }

    /// The bytes of the next page: those that were read outside of the locks, or what the source
    /// has now (`mfill_copy_folio_locked`).
    pub(super) fn source_page(
        &mut self,
        source: &Source<'_>,
        vma: &Vma,
        size: usize,
    ) -> Result<Contents, Stop> {
        if let Some(outside) = self.outside.take_if(|outside| outside.is_full(size)) {
            return Ok(outside.contents);
        }
        if let Some(given) = source.given {
            let frames = &source.thread.space.host.frames;
            let at = usize::try_from(self.done).expect("inside of a slice");
            return Ok(Contents::copy_of(&given[at..at + size], frames));
        }
        let mut contents = Contents::zeros(size);
        if copy_present(&source.thread.space, self.src + self.done, &mut contents) {
            return Ok(contents);
        }
        let saved = RetryState::save(vma, self.at());
        self.outside = Some(Outside { contents, filled: 0, saved });
        Err(Stop::SourceMissing)
    }
}

impl Outside {
    fn is_full(&self, size: usize) -> bool {
        self.contents.length() == size && self.filled == size
    }
}

/// Why a source could not be read, for now or for good.
#[derive(Debug)]
pub(super) enum SourceError {
    /// The thread sleeps.
    Parked(Waiting),
    /// It cannot be read.
    Fault,
}

/// Where the bytes of a COPY come from: the memory of the thread that calls, or outside of the
/// model.
pub(super) struct Source<'a> {
    /// The thread that calls.
    pub(super) thread: &'a ThreadState,
    /// The bytes.
    pub(super) given: Option<&'a [u8]>,
}

/// Memory of a kind that pages can be put into. With WP_ASYNC any kind can be registered.
fn takes_pages(space: &Arc<AddressSpace>, vma: &Vma) -> bool {
    match &vma.backing {
        Backing::Anonymous => true,
        Backing::Droppable | Backing::Special => false,
        Backing::File(file) => match file.kind {
            FileKind::Shmem | FileKind::Hugetlb => true,
            FileKind::GuestMemory => space.profile().guest_memory_fills,
            FileKind::Regular | FileKind::Secret => false,
        },
    }
}
