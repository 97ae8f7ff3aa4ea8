//! Swap: pages are written out on request (MADV_PAGEOUT) and come back when they are touched.

use std::ops::Range;

use super::address_space::{AddressSpace, TASK_SIZE, bits_for};
use super::faults::may_reuse;
use super::folio::{Folio, PAGE};
use super::page_cache::CachePage;
use super::page_table::{Bits, Entry, Level, Mapped, Marker};
use super::sync::{Arc, Ordering};
use super::vma::Vma;

/// Brings the page of a swap entry back.
pub(super) fn fault_in(vma: &Vma, entry: &mut Entry) {
    let Entry::Swap(mapped) = entry else { return };
    let mut bits = mapped.bits;
    if may_reuse(mapped) {
        bits.insert(Bits::EXCLUSIVE);
    }
    let writable = bits_for(vma, bits.contains(Bits::PROTECTED));
    bits.remove(Bits::WRITE | Bits::NO_ACCESS);
    bits.insert(writable & Bits::NO_ACCESS);
    if bits.contains(Bits::EXCLUSIVE) {
        bits.insert(writable & Bits::WRITE);
    }
    *entry = Entry::Page(Mapped { bits, ..mapped.clone() });
}

/// Writes out what can be: pages that nobody else maps and no device has pinned.
pub(super) fn page_out(space: &AddressSpace, vma: &Vma, range: Range<u64>) {
    for (slot, part) in space.tables.in_range(range) {
        if vma.is_hugetlb() {
            continue;
        }
        let mut level = slot.lock();
        if let Level::Huge(Entry::Page(mapped)) = &*level {
            // Swap takes huge pages apart here; the kernel may keep them whole.
            let folio = mapped.folio.clone();
            level.split();
            drop(level);
            split_folio(space, &folio);
        } else {
            drop(level);
        }
        for address in part.step_by(PAGE_STEP) {
            page_out_one(space, vma, address);
        }
    }
}

const PAGE_STEP: usize = 4096;

fn page_out_one(space: &AddressSpace, vma: &Vma, address: u64) {
    // The file's cache is locked before the page table.
    let mut cache = vma.file().map(|file| file.cache());
    let Some(slot) = space.tables.find(address) else { return };
    let mut level = slot.lock();
    let Some(entry) = level.entry(address) else { return };
    let Entry::Page(mapped) = entry else { return };
    let folio = mapped.folio.clone();
    // Whoever has the page lock works on the page.
    let Some(_page_lock) = folio.lock.try_lock() else { return };
    if folio.maybe_pinned() || folio.merged.load(Ordering::SeqCst) {
        return;
    }
    if folio.anonymous {
        // This reference, and the entry's.
        if folio.pages == 1 && Arc::strong_count(&folio) == 2 {
            *entry = Entry::Swap(mapped.clone());
        }
        return;
    }
    let Some(cache) = cache.as_mut() else { return };
    // The cache's reference as well.
    if folio.pages > 1 || Arc::strong_count(&folio) != 3 {
        return;
    }
    let protected = entry.is_protected() && vma.modes().contains(super::context::Modes::PROTECT);
    *entry = if protected { Entry::Marker(Marker::Protect) } else { Entry::None };
    cache.insert(
        vma.page_at(address / PAGE * PAGE),
        CachePage { swapped: true, ..CachePage::new(folio.clone()) },
    );
}

/// Splits a huge page into pages of their own, wherever the address space maps parts of it. Pages
/// of zeros are freed and the zero page is mapped in their place. No page table may be locked. What
/// is pinned, or a file's, stays whole.
pub(super) fn split_folio(space: &AddressSpace, folio: &Arc<Folio>) {
    if folio.maybe_pinned() || !folio.anonymous {
        return;
    }
    let is_part =
        |entry: &Entry| matches!(entry, Entry::Page(mapped) if Arc::ptr_eq(&mapped.folio, folio));
    for (slot, _) in space.tables.in_range(0..TASK_SIZE) {
        let mut level = slot.lock();
        if matches!(&*level, Level::Huge(entry) if is_part(entry)) {
            level.split();
        }
        if let Level::Table(table) = &mut *level {
            table.entries().iter_mut().filter(|entry| is_part(entry)).for_each(split_off);
        }
    }
}

/// Gives an entry that maps a part of a huge page a page of its own.
fn split_off(entry: &mut Entry) {
    let Entry::Page(mapped) = entry else { return };
    if mapped.folio.page_is_zero(mapped.index) {
        let bits = mapped.bits & (Bits::PROTECTED | Bits::NO_ACCESS);
        *entry = Entry::Zero(bits);
    } else {
        mapped.folio = Arc::new(mapped.folio.copy_of_page(mapped.index));
        mapped.index = 0;
    }
}
