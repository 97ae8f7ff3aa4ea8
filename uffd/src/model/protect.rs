//! WRITEPROTECT: the uffd-wp bit of entries, and the markers of holes.

use std::ops::Range;

use super::address_space::AddressSpace;
use super::context::{Context, Modes};
use super::folio::HUGE;
use super::hugetlb_faults::huge_entry;
use super::page_table::{Bits, Entry, Level, Marker, indices, is_whole};
use super::vma::Vma;
use crate::abi::Errno;

/// WRITEPROTECT of a range (`mwriteprotect_range`). VMAs that come before one that fails stay
/// changed.
pub(super) fn write_protect(
    context: &Context,
    range: &Range<u64>,
    protect: bool,
) -> Result<(), Errno> {
    let space = &context.space;
    if space.is_dead() {
        return Err(Errno::ESRCH);
    }
    let map = space.map.read();
    let _no_event_begins = context.map_changing.read();
    if context.is_changing() {
        return Err(Errno::EAGAIN);
    }
    let cells = map.in_range(range);
    for cell in &cells {
        let vma = cell.read();
        if !vma.modes().contains(Modes::PROTECT) {
            return Err(Errno::ENOENT);
        }
        if vma.is_hugetlb()
            && (!range.start.is_multiple_of(HUGE) || !range.end.is_multiple_of(HUGE))
        {
            return Err(Errno::EINVAL);
        }
        change(space, &vma, vma.intersection(range), protect);
    }
    if cells.is_empty() { Err(Errno::ENOENT) } else { Ok(()) }
}

/// Puts protection on a part of a VMA, or takes it off (`uffd_wp_range`).
pub(super) fn change(space: &AddressSpace, vma: &Vma, range: Range<u64>, protect: bool) {
    if protect && vma.marks_holes() {
        // Holes get markers, so there has to be a table for each.
        let mut at = range.start;
        while at < range.end {
            let slot = space.tables.get(at);
            let mut level = slot.lock();
            if vma.is_hugetlb() {
                huge_entry(&mut level);
            } else {
                level.table_or_new();
            }
            at = (at / HUGE + 1) * HUGE;
        }
    }
    for (slot, part) in space.tables.in_range(range) {
        let mut level = slot.lock();
        let keeps_huge = vma.is_hugetlb() || (vma.is_anonymous() && is_whole(&part));
        if matches!(&*level, Level::Huge(_)) && !keeps_huge {
            level.split();
            if protect && vma.marks_holes() {
                level.table_or_new();
            }
        }
        match &mut *level {
            Level::Empty => {}
            Level::Huge(entry) => change_entry(vma, entry, protect),
            Level::Table(table) => {
                for entry in &mut table.entries()[indices(&part)] {
                    change_entry(vma, entry, protect);
                }
            }
        }
    }
}

/// Puts protection on one entry, or takes it off.
pub(super) fn change_entry(vma: &Vma, entry: &mut Entry, protect: bool) {
    match (&mut *entry, protect) {
        (Entry::None, true) if vma.marks_holes() => *entry = Entry::Marker(Marker::Protect),
        (Entry::Marker(Marker::Protect), false) => *entry = Entry::None,
        (Entry::None | Entry::Marker(_), _) => {}
        (Entry::Page(mapped), false) => {
            mapped.bits.remove(Bits::PROTECTED);
            let own = if mapped.folio.anonymous {
                mapped.bits.contains(Bits::EXCLUSIVE)
            } else {
                vma.shared
            };
            mapped.bits.set(Bits::WRITE, own && vma.is_writable());
        }
        (entry, _) => {
            let bits = entry.bits_mut().expect("it is neither a hole nor a marker");
            bits.set(Bits::PROTECTED, protect);
            if protect {
                bits.remove(Bits::WRITE);
            }
        }
    }
}
