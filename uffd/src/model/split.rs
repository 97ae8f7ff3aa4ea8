//! Splitting of huge pages: not of their mapping, but of the pages themselves.

use std::ops::Range;

use super::address_space::{AddressSpace, Host};
use super::folio::Folio;
use super::page_table::{Bits, Entry, Level, Mapped, indices, is_whole};
use super::sync::Arc;

/// Splits a huge page into pages of their own, wherever parts of it are mapped. Pages of zeros are
/// freed and the zero page is mapped in their place, except in memory that is locked. What is
/// pinned, or a file's, stays whole. The caller holds no lock.
pub(super) fn split_folio(host: &Host, folio: &Arc<Folio>) {
    if folio.maybe_pinned() || !folio.anonymous {
        return;
    }
    let is_part =
        |entry: &Entry| matches!(entry, Entry::Page(one) if Arc::ptr_eq(&one.folio, folio));
    // What was one page is one page for all who map it.
    let mut pieces = vec![None; usize::from(folio.pages)];
    for space in host.spaces() {
        let map = space.map.read();
        for cell in map.all() {
            let vma = cell.read();
            for (slot, part) in space.tables.in_range(vma.range()) {
                let mut level = slot.lock();
                if matches!(&*level, Level::Huge(entry) if is_part(entry)) {
                    level.split();
                }
                let Level::Table(table) = &mut *level else { continue };
                for entry in table.entries()[indices(&part)].iter_mut().filter(|one| is_part(one)) {
                    split_off(entry, &mut pieces, vma.locked);
                }
            }
        }
    }
}

/// Gives an entry that maps a part of a huge page a page of its own.
fn split_off(entry: &mut Entry, pieces: &mut [Option<Arc<Folio>>], locked: bool) {
    let Entry::Page(mapped) = entry else { return };
    if !locked && mapped.folio.page_is_zero(mapped.index) {
        let bits = mapped.bits & (Bits::PROTECTED | Bits::NO_ACCESS);
        *entry = Entry::Zero(bits);
        return;
    }
    let Mapped { folio, index, .. } = mapped;
    let piece = pieces[usize::from(*index)]
        .get_or_insert_with(|| Arc::new(folio.copy_of_page(*index)))
        .clone();
    (*folio, *index) = (piece, 0);
}

/// Splits the huge pages that are mapped whole in a range. Swap takes them apart here; the kernel
/// may keep them whole.
pub(super) fn split_mapped(space: &AddressSpace, range: &Range<u64>) {
    for (slot, _) in space.tables.in_range(range.clone()) {
        let mapped = match &*slot.lock() {
            Level::Huge(Entry::Page(mapped)) if !mapped.folio.is_charged() => mapped.folio.clone(),
            _ => continue,
        };
        split_folio(&space.host, &mapped);
    }
}

/// Splits the huge pages of which a part only would be freed, if nobody else maps them.
pub(super) fn split_partly_freed(space: &AddressSpace, range: &Range<u64>) {
    for (slot, part) in space.tables.in_range(range.clone()) {
        let pieces = freed_in_part(&mut slot.lock(), &part);
        for folio in pieces {
            // One more is held here.
            if Arc::strong_count(&folio) == space.tables.count(&folio, None) + 1 {
                split_folio(&space.host, &folio);
            }
        }
    }
}

/// The huge pages that are mapped in a part of a table and would not be freed whole, each once.
fn freed_in_part(level: &mut Level, part: &Range<u64>) -> Vec<Arc<Folio>> {
    let entries = match level {
        Level::Empty => return Vec::new(),
        Level::Huge(_) if is_whole(part) => return Vec::new(),
        Level::Huge(entry) => std::slice::from_ref(entry),
        Level::Table(table) => &table.entries()[indices(part)],
    };
    let mut folios: Vec<Arc<Folio>> = Vec::new();
    for entry in entries {
        if let Entry::Page(mapped) = entry
            && mapped.folio.anonymous
            && mapped.folio.pages > 1
            && !folios.iter().any(|known| Arc::ptr_eq(known, &mapped.folio))
        {
            folios.push(mapped.folio.clone());
        }
    }
    folios.retain(|folio| !is_all_of(entries, folio));
    folios
}

/// Entries map a folio from its first page to its last, and are protected alike.
fn is_all_of(entries: &[Entry], folio: &Arc<Folio>) -> bool {
    let protected = entries[0].is_protected();
    let belongs = |(at, entry): (usize, &Entry)| match entry {
        Entry::Page(mapped) => {
            Arc::ptr_eq(&mapped.folio, folio)
                && usize::from(mapped.index) == at
                && entry.is_protected() == protected
        }
        _ => false,
    };
    entries.len() == usize::from(folio.pages) && entries.iter().enumerate().all(belongs)
}
