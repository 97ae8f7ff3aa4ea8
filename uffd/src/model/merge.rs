//! Merging of equal pages (KSM): they become one page that nobody may write to.

use super::address_space::AddressSpace;
use super::folio::Folio;
use super::page_table::{Bits, Entry, Level, Mapped, indices};
use super::sync::{Arc, Ordering};

/// Merges the equal pages of all memory of an address space that was advised so.
pub(super) fn merge_equal_pages(space: &AddressSpace) {
    let mut seen: Vec<(Arc<Folio>, u16)> = Vec::new();
    let map = space.map.read();
    for cell in map.all() {
        let vma = cell.read();
        if !vma.mergeable || !vma.is_anonymous() {
            continue;
        }
        for (slot, part) in space.tables.in_range(vma.range()) {
            let mut level = slot.lock();
            let Level::Table(table) = &mut *level else { continue };
            for entry in &mut table.entries()[indices(&part)] {
                let Entry::Page(mapped) = entry else { continue };
                if mapped.folio.anonymous && mapped.folio.pages == 1 && !mapped.folio.maybe_pinned()
                {
                    merge(&mut seen, mapped);
                }
            }
        }
    }
    drop(map);
    seal(space);
}

fn merge(seen: &mut Vec<(Arc<Folio>, u16)>, mapped: &mut Mapped) {
    let equal = seen.iter().find(|(folio, index)| {
        !Arc::ptr_eq(folio, &mapped.folio) && folio.page_equals(*index, &mapped.folio, mapped.index)
    });
    match equal {
        Some((folio, index)) => {
            folio.merged.store(true, Ordering::SeqCst);
            (mapped.folio, mapped.index) = (folio.clone(), *index);
        }
        None => seen.push((mapped.folio.clone(), mapped.index)),
    }
}

/// Takes the rights of their first owner from pages that were merged.
fn seal(space: &AddressSpace) {
    for (slot, _) in space.tables.in_range(0..super::address_space::TASK_SIZE) {
        let Level::Table(table) = &mut *slot.lock() else { continue };
        for entry in table.entries() {
            if let Entry::Page(mapped) = entry
                && mapped.folio.merged.load(Ordering::SeqCst)
            {
                mapped.bits.remove(Bits::WRITE | Bits::EXCLUSIVE);
            }
        }
    }
}
