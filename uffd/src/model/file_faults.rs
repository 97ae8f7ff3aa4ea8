//! Faults of memory that has a file behind it: the page cache is asked before anybody waits.

use super::address_space::bits_for;
use super::context::Modes;
use super::faults::{Failure, Request, Step, still_missing, userfault};
use super::folio::{Folio, HUGE, PAGE};
use super::page_cache::{Cache, CachePage, MemoryFile};
use super::page_table::{Bits, Entry, Mapped};
use super::sync::Arc;
use super::vma::Vma;

/// There is no entry, or the marker of a protected one.
pub(super) fn missing(
    request: &Request<'_>,
    vma: &Vma,
    file: &Arc<MemoryFile>,
    protected: bool,
) -> Step {
    let page = vma.page_at(request.address);
    if request.write && !vma.shared {
        request.space.prepare_anonymous(vma);
    }
    let mut cache = file.cache();
    let around =
        !request.write && !protected && !vma.modes().intersects(Modes::PROTECT | Modes::MINOR);
    if around && map_around(request, vma, &cache) {
        return Step::Again;
    }
    if page >= file.pages() {
        return Step::Failed(Failure::Bus);
    }
    let cached = cache.contains_key(&page);
    let reason = if cached { Modes::MINOR } else { Modes::MISSING };
    if vma.modes().contains(reason) {
        drop(cache);
        return userfault(request, vma, reason);
    }
    if page >= file.pages() {
        return Step::Again;
    }
    let cached =
        cache.entry(page).or_insert_with(|| CachePage::new(Arc::new(Folio::zeroed(false))));
    cached.swapped = false;
    let slot = request.space.tables.get(request.address);
    let mut level = slot.lock();
    level.table_or_new();
    let Some(entry) = level.entry(request.address) else { return Step::Again };
    if !still_missing(entry, protected) {
        return Step::Again;
    }
    *entry = mapping_of(request, vma, cached, protected);
    Step::Again
}

fn mapping_of(request: &Request<'_>, vma: &Vma, cached: &CachePage, protected: bool) -> Entry {
    let bits = bits_for(vma, protected);
    if vma.shared {
        return Entry::Page(cached.mapped(bits));
    }
    if request.write {
        let folio = Arc::new(cached.folio.copy_of_page(cached.index));
        return Entry::Page(Mapped { folio, index: 0, bits: bits | Bits::EXCLUSIVE });
    }
    Entry::Page(cached.mapped(bits - Bits::WRITE))
}

/// A read maps the cached pages around it, before its own page is looked for, where that cannot
/// hide a fault that somebody waits for. Whether its own page is mapped then.
fn map_around(request: &Request<'_>, vma: &Vma, cache: &Cache) -> bool {
    let block = request.address / HUGE * HUGE;
    let start = (request.address / AROUND * AROUND).max(vma.start).max(block);
    let end = (start + AROUND).min(vma.end).min(block + HUGE);
    let last = vma.file().map_or(0, |file| file.pages());
    let pages = vma.page_at(start)..vma.page_at(end).min(last);
    if pages.is_empty() || cache.range(pages).all(|(_, cached)| cached.swapped) {
        // There is nothing to map, and no table is made for it.
        return false;
    }
    let slot = request.space.tables.get(request.address);
    let mut level = slot.lock();
    level.table_or_new();
    let mut address = start;
    while address < end {
        let page = vma.page_at(address);
        let in_file = vma.file().is_some_and(|file| page < file.pages());
        if let (Some(cached), Some(entry), true) = (cache.get(&page), level.entry(address), in_file)
            && entry.is_none()
            && !cached.swapped
        {
            let mut bits = bits_for(vma, false);
            bits.set(Bits::WRITE, bits.contains(Bits::WRITE) && vma.shared);
            *entry = Entry::Page(cached.mapped(bits));
        }
        address += PAGE;
    }
    level.entry(request.address).is_some_and(|entry| entry.is_present())
}

/// How much is mapped around a read fault: `fault_around_bytes`.
const AROUND: u64 = 64 << 10;
