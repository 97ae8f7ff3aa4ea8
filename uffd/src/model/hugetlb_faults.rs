//! Faults of memory that is made of huge pages of the pool. An entry maps a whole huge page.

use super::address_space::bits_for;
use super::context::Modes;
use super::faults::{Failure, Request, Step, Waiting, still_missing, userfault};
use super::folio::{HUGE, PAGES_PER_HUGE};
use super::hugetlb::Pool;
use super::page_cache::{CachePage, MemoryFile};
use super::page_table::{Bits, Entry, Level, Mapped, Marker, Slot};
use super::read_write_protect::waits_for_access;
use super::sync::Arc;
use super::vma::Vma;

/// Resolves a fault, or has the thread wait.
pub(super) fn resolve(request: &Request<'_>, vma: &Vma) -> Step {
    let slot = request.space.tables.get(request.address);
    let mut level = slot.lock();
    let entry = huge_entry(&mut level);
    if entry.allows(request.write) {
        return Step::Again;
    }
    if entry.is_armed() {
        let waits = waits_for_access(vma, entry);
        drop(level);
        return if waits { userfault(request, vma, Modes::READ_WRITE) } else { Step::Again };
    }
    match entry {
        Entry::Marker(Marker::Poison { .. }) => Step::Failed(Failure::Poison),
        Entry::Marker(Marker::Guard { .. }) => Step::Failed(Failure::Segment),
        Entry::None | Entry::Marker(Marker::Protect) => {
            let protected = !entry.is_none();
            drop(level);
            missing(request, vma, &slot, protected)
        }
        Entry::Migration(migrating) => {
            Step::Parked(Waiting { sleeper: migrating.sleeper.clone(), context: None })
        }
        Entry::Page(_) | Entry::Zero(_) | Entry::Swap(_) => {
            if vma.modes().contains(Modes::PROTECT) && entry.is_protected() {
                if !vma.is_async() {
                    drop(level);
                    return userfault(request, vma, Modes::PROTECT);
                }
                entry.bits_mut().expect("present").remove(Bits::PROTECTED);
            }
            make_writable(request, vma, entry)
        }
    }
}

/// The entry of 2 MiB of hugetlb memory. There is never a table in its place.
pub(super) fn huge_entry(level: &mut Level) -> &mut Entry {
    if !matches!(level, Level::Huge(_)) {
        *level = Level::Huge(Entry::None);
    }
    match level {
        Level::Huge(entry) => entry,
        Level::Empty | Level::Table(_) => unreachable!("it was made huge above"),
    }
}

fn make_writable(request: &Request<'_>, vma: &Vma, entry: &mut Entry) -> Step {
    let Entry::Page(mapped) = entry else { return Step::Again };
    let own = mapped.folio.anonymous
        && (mapped.bits.contains(Bits::EXCLUSIVE) || Arc::strong_count(&mapped.folio) == 1);
    if own || (vma.shared && !mapped.folio.anonymous) {
        mapped.bits.insert(Bits::WRITE);
        mapped.bits.set(Bits::EXCLUSIVE, mapped.folio.anonymous);
        return Step::Again;
    }
    let Some(copy) =
        Pool::take(&request.space.host.pool, None, true, Some(mapped.folio.contents()))
    else {
        return Step::Failed(Failure::Bus);
    };
    request.space.prepare_anonymous(vma);
    let bits = bits_for(vma, false) | Bits::EXCLUSIVE;
    *entry = Entry::Page(Mapped { folio: Arc::new(copy), index: 0, bits });
    Step::Again
}

fn missing(request: &Request<'_>, vma: &Vma, slot: &Slot, protected: bool) -> Step {
    let Some(file) = vma.file() else { return Step::Failed(Failure::Bus) };
    let page = vma.page_at(request.address / HUGE * HUGE);
    let mut cache = file.cache();
    let cached = cache.get(&page).map(|cached| cached.folio.clone());
    let reason = if cached.is_some() { Modes::MINOR } else { Modes::MISSING };
    if cached.is_none() && page + PAGES_PER_HUGE > file.pages() {
        return Step::Failed(Failure::Bus);
    }
    if vma.modes().contains(reason) {
        drop(cache);
        return userfault(request, vma, reason);
    }
    let Some(folio) = cached.or_else(|| new_page(request, vma, file)) else {
        return Step::Failed(Failure::Bus);
    };
    if vma.shared {
        cache.entry(page).or_insert_with(|| CachePage::new(folio.clone()));
    }
    let mut level = slot.lock();
    let entry = huge_entry(&mut level);
    if !still_missing(entry, protected) {
        return Step::Again;
    }
    let mut bits = bits_for(vma, protected);
    bits.set(Bits::EXCLUSIVE, folio.anonymous);
    bits.set(Bits::WRITE, bits.contains(Bits::WRITE) && (vma.shared || folio.anonymous));
    *entry = Entry::Page(Mapped { folio, index: 0, bits });
    Step::Again
}

fn new_page(
    request: &Request<'_>,
    vma: &Vma,
    file: &Arc<MemoryFile>,
) -> Option<Arc<super::folio::Folio>> {
    if !vma.shared {
        request.space.prepare_anonymous(vma);
    }
    file.new_folio(&request.space.host.pool, vma.reservation.as_ref(), !vma.shared).map(Arc::new)
}
