//! Swap: pages are written out on request (MADV_PAGEOUT) and come back when they are touched.

use std::ops::Range;

use super::address_space::{AddressSpace, bits_for};
use super::faults::may_reuse;
use super::folio::PAGE;
use super::page_cache::CachePage;
use super::page_table::{Bits, Entry, Mapped, Marker};
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

/// Writes out what can be: pages that nobody else maps and no device has pinned. Huge pages were
/// split before.
pub(super) fn page_out(space: &AddressSpace, vma: &Vma, range: Range<u64>) {
    for (_, part) in space.tables.in_range(range) {
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
