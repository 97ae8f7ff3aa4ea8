//! madvise. The advices that give up pages tell the userfaultfd first, and sleep until it knows.

use super::address_space::AddressSpace;
use super::collapse;
use super::events::{Announced, Delivery, EventMessage};
use super::file_ops;
use super::folio::{HUGE, PAGE};
use super::memory_map::update;
use super::merge;
use super::page_cache::{FileKind, MemoryFile};
use super::page_table::{Entry, Level, Marker, indices};
use super::split;
use super::swap;
use super::sync::{Arc, Ordering};
use super::vma::Vma;
use super::wait_queue::Sleeper;
use super::zap::{Zap, zap};
use crate::abi::Errno;
use crate::features::Features;
use std::ops::Range;

/// What madvise is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the kernel's header, without MADV_")]
pub enum Advice {
    DontNeed,
    Free,
    Remove,
    PageOut,
    GuardInstall,
    GuardRemove,
    NoHugePage,
    HugePage,
    Collapse,
    Mergeable,
    PopulateRead,
    PopulateWrite,
}

/// A call of madvise that gives up pages, VMA by VMA.
#[derive(Debug)]
pub(super) struct Advising {
    space: Arc<AddressSpace>,
    advice: Advice,
    at: u64,
    end: u64,
    /// A part of the range was not mapped; the rest is advised all the same.
    hole: bool,
    /// The event of the VMA at `at`; `None` if it was not raised.
    telling: Option<Delivery>,
    /// The event of the VMA at `at` was read.
    told: bool,
    /// The end of what was told of.
    told_until: u64,
    /// The file that MADV_REMOVE is told of, and which of its pages: they go, whatever is mapped
    /// once the event was read.
    removed: Option<(Arc<MemoryFile>, Range<u64>)>,
}

/// The part of the VMA that comes next, and what is to be known of it.
struct Next {
    part: Range<u64>,
    refused: Option<Errno>,
    event: Option<Announced>,
    removed: Option<(Arc<MemoryFile>, Range<u64>)>,
}

impl Advising {
    /// Advice about a range.
    pub(super) fn new(space: Arc<AddressSpace>, range: Range<u64>, advice: Advice) -> Advising {
        let Range { start: at, end } = range;
        let (telling, removed) = (None, None);
        Advising {
            space,
            advice,
            at,
            end,
            hole: false,
            telling,
            told: false,
            told_until: at,
            removed,
        }
    }

    /// Goes on until it is over or has to sleep.
    pub(super) fn go_on(&mut self) -> Result<Result<u64, Errno>, Arc<Sleeper>> {
        loop {
            if let Some(delivery) = &mut self.telling {
                if let Some(sleeper) = delivery.step() {
                    return Err(sleeper);
                }
                self.telling = None;
                self.told = true;
                if let Some((file, pages)) = self.removed.take() {
                    file_ops::punch(&file, &pages);
                    (self.at, self.told) = (self.told_until, false);
                }
            }
            if self.at >= self.end {
                return Ok(if self.hole { Err(Errno::ENOMEM) } else { Ok(0) });
            }
            let Some(next) = self.next() else {
                if self.told {
                    // What was to be advised was unmapped by who read the event.
                    return Ok(Err(Errno::ENOMEM));
                }
                continue;
            };
            if let Some(errno) = next.refused {
                return Ok(Err(errno));
            }
            if let Some(event) = next.event {
                self.told_until = next.part.end;
                self.removed = next.removed;
                self.telling = Some(Delivery::new(vec![event]));
                continue;
            }
            // The file's other mappings are seen to as well, so no lock of this VMA is held.
            if let Some((file, pages)) = next.removed {
                file_ops::punch(&file, &pages);
            } else if let Err(errno) = self.apply(&next.part) {
                return Ok(Err(errno));
            }
            self.at = next.part.end;
            self.told = false;
        }
    }

    /// The thread was killed.
    pub(super) fn cancel(self) {
        if let Some(delivery) = self.telling {
            delivery.cancel();
        }
    }

    /// The VMA at the place that the call has come to; a hole is stepped over.
    fn next(&mut self) -> Option<Next> {
        // What was told of is advised first, however the map has changed.
        let range = self.at..if self.told { self.told_until } else { self.end };
        let map = self.space.map.read();
        let Some(cell) = map.in_range(&range).first().cloned() else {
            (self.hole, self.at) = (true, self.end);
            return None;
        };
        let vma = cell.read();
        let part = vma.intersection(&range);
        if part.start > self.at {
            (self.hole, self.at) = (true, part.start);
            return None;
        }
        let refused = self.refuses(&vma, &part);
        let owner = vma.owner().filter(|owner| owner.has(Features::EVENT_REMOVE));
        let gives_up = matches!(self.advice, Advice::DontNeed | Advice::Free | Advice::Remove);
        let event = owner.filter(|_| gives_up && !self.told && refused.is_none()).map(|owner| {
            let message = EventMessage::Remove { start: part.start, end: part.end };
            Announced::new(owner.clone(), message)
        });
        let removed = vma.file().filter(|_| self.advice == Advice::Remove).map(|file| {
            let first = vma.page_at(part.start);
            (file.clone(), first..first + (part.end - part.start) / PAGE)
        });
        Some(Next { part, refused, event, removed })
    }

    fn refuses(&self, vma: &Vma, part: &Range<u64>) -> Option<Errno> {
        let aligned = part.start.is_multiple_of(HUGE) && part.end.is_multiple_of(HUGE);
        let bad = match self.advice {
            Advice::DontNeed => vma.locked || (vma.is_hugetlb() && !aligned),
            Advice::Remove
                if vma.file().is_some() && !vma.locked && !(vma.shared && vma.may_write) =>
            {
                return Some(Errno::EACCES);
            }
            Advice::Remove => vma.locked || vma.file().is_none(),
            Advice::Free | Advice::PageOut | Advice::GuardInstall => vma.locked || vma.is_hugetlb(),
            Advice::GuardRemove => vma.is_hugetlb(),
            Advice::Collapse => {
                let shmem = vma.kind() == Some(FileKind::Shmem) && vma.shared;
                !vma.is_anonymous() && !shmem
            }
            _ => false,
        };
        bad.then_some(Errno::EINVAL)
    }

    fn apply(&self, part: &Range<u64>) -> Result<(), Errno> {
        let space = &self.space;
        match self.advice {
            Advice::HugePage | Advice::NoHugePage => {
                let huge = self.advice == Advice::HugePage;
                let as_asked = |vma: &Vma| Ok(vma.huge == huge);
                return update(space, part, as_asked, |vma| vma.huge = huge);
            }
            Advice::Mergeable => {
                let as_asked = |vma: &Vma| Ok(vma.mergeable);
                update(space, part, as_asked, |vma| vma.mergeable = true)?;
                merge::merge_equal_pages(space);
                return Ok(());
            }
            Advice::Collapse => return collapse::collapse(space, part),
            Advice::Free => split::split_partly_freed(space, part),
            Advice::PageOut => split::split_mapped(space, part),
            _ => {}
        }
        space.with_vma(part.start, |vma| {
            let vma = vma.ok_or(Errno::ENOMEM)?;
            let part = vma.intersection(part);
            match self.advice {
                Advice::DontNeed => zap(space, vma, part, Zap::DontNeed),
                Advice::Free if !vma.is_anonymous() => return Err(Errno::EINVAL),
                Advice::Free => free(space, part),
                Advice::PageOut => swap::page_out(space, vma, part),
                Advice::GuardInstall => install_guards(space, vma, part),
                Advice::GuardRemove => remove_guards(space, part),
                _ => {}
            }
            Ok(())
        })
    }
}

/// MADV_FREE: swapped pages and poison go at once, the rest when memory is short, which it is not.
fn free(space: &AddressSpace, range: Range<u64>) {
    for (slot, part) in space.tables.in_range(range) {
        if let Level::Table(table) = &mut *slot.lock() {
            for entry in &mut table.entries()[indices(&part)] {
                if matches!(entry, Entry::Swap(_) | Entry::Marker(Marker::Poison { .. })) {
                    *entry = Entry::None;
                }
            }
        }
    }
}

fn install_guards(space: &AddressSpace, vma: &Vma, range: Range<u64>) {
    let remembers = space.profile().remembers_guards;
    vma.guarded.store(remembers, Ordering::SeqCst);
    if vma.is_anonymous() || !remembers {
        space.prepare_anonymous(vma);
    }
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / HUGE + 1) * HUGE);
        let slot = space.tables.get(at);
        let mut level = slot.lock();
        level.split();
        if let Some(table) = level.table_or_new() {
            table.entries()[indices(&(at..end))].fill(Entry::Marker(Marker::GUARD));
        }
        at = end;
    }
}

fn remove_guards(space: &AddressSpace, range: Range<u64>) {
    for (slot, part) in space.tables.in_range(range) {
        if let Level::Table(table) = &mut *slot.lock() {
            for entry in &mut table.entries()[indices(&part)] {
                if matches!(entry, Entry::Marker(Marker::Guard { .. })) {
                    *entry = Entry::None;
                }
            }
        }
    }
}
