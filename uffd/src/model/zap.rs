//! Taking pages out of page tables: what goes, and which markers stay behind.

use std::ops::Range;

use super::address_space::AddressSpace;
use super::context::Modes;
use super::folio::HUGE;
use super::page_table::{Entry, Level, Marker, indices, is_whole};
use super::vma::{Vma, VmaMap};

/// Why pages are taken out, which decides about what is not an ordinary page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zap {
    /// The range is unmapped: everything goes.
    Unmap,
    /// MADV_DONTNEED: guards stay, and the protection of memory that has a file.
    DontNeed,
    /// The file is shorter now: as with DONTNEED.
    Truncate,
    /// The file has a hole now: private pages stay, and poison does.
    Punch,
}

/// Takes the pages of a part of a VMA out.
pub(super) fn zap(space: &AddressSpace, vma: &Vma, range: Range<u64>, why: Zap) {
    for (slot, part) in space.tables.in_range(range) {
        let mut level = slot.lock();
        if matches!(&*level, Level::Huge(_)) && !vma.is_hugetlb() {
            if is_whole(&part) {
                *level = Level::Empty;
                continue;
            }
            level.split();
        }
        match &mut *level {
            Level::Empty => {}
            Level::Huge(entry) => zap_entry(vma, entry, why),
            Level::Table(table) => {
                for entry in &mut table.entries()[indices(&part)] {
                    zap_entry(vma, entry, why);
                }
                // A table that is empty now is given back if all of it was advised.
                let empty = why == Zap::DontNeed
                    && is_whole(&part)
                    && table.entries().iter().all(Entry::is_none);
                if empty {
                    *level = Level::Empty;
                }
            }
        }
    }
}

fn zap_entry(vma: &Vma, entry: &mut Entry, why: Zap) {
    let keeps_protection = why != Zap::Unmap && !vma.is_anonymous();
    let keeps_private = why == Zap::Punch && !vma.is_anonymous();
    *entry = match entry {
        Entry::None => return,
        Entry::Marker(Marker::Protect) if keeps_protection => return,
        Entry::Marker(Marker::Guard { .. }) if why != Zap::Unmap => return,
        Entry::Marker(Marker::Poison { .. }) if keeps_private && !vma.is_hugetlb() => return,
        Entry::Page(mapped) | Entry::Swap(mapped) if keeps_private && mapped.folio.anonymous => {
            return;
        }
        Entry::Migration(migrating) => {
            migrating.sleeper.wake();
            Entry::None
        }
        Entry::Page(_) | Entry::Swap(_) | Entry::Zero(_) | Entry::Marker(_)
            if keeps_protection
                && entry.is_protected()
                && (vma.is_hugetlb() || vma.modes().contains(Modes::PROTECT)) =>
        {
            Entry::Marker(Marker::Protect)
        }
        _ => Entry::None,
    };
}

/// Gives back the tables of a range that map nothing any more.
pub(super) fn free_tables(space: &AddressSpace, map: &VmaMap, range: Range<u64>) {
    for (slot, part) in space.tables.in_range(range) {
        let block = part.start / HUGE * HUGE;
        if map.in_range(&(block..block + HUGE)).is_empty() {
            *slot.lock() = Level::Empty;
        }
    }
}
