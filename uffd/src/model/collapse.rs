//! MADV_COLLAPSE: makes huge pages of small ones.

use std::ops::Range;

use super::address_space::{AddressSpace, bits_for};
use super::context::Modes;
use super::file_ops;
use super::folio::{Folio, HUGE, PAGE_BYTES, PAGES_PER_HUGE};
use super::page_cache::{CachePage, MemoryFile};
use super::page_table::{Bits, Entry, Level, Mapped};
use super::sync::Arc;
use super::vma::Vma;
use super::zap::Zap;
use crate::abi::Errno;

/// Collapses each whole huge page of a range that one VMA maps.
pub(super) fn collapse(space: &AddressSpace, range: &Range<u64>) -> Result<(), Errno> {
    let mut block = range.start.next_multiple_of(HUGE);
    let mut result = Ok(());
    while block + HUGE <= range.end {
        let file = space.with_vma(block, |vma| {
            let vma = vma?;
            Some((vma.file()?.clone(), vma.page_at(block)))
        });
        let collapsed = match file {
            Some((file, page)) => collapse_cached(space, block, &file, page),
            None => space.with_vma(block, |vma| {
                let vma = vma.ok_or(Errno::ENOMEM)?;
                collapse_private(space, vma, block)
            }),
        };
        result = result.and(collapsed);
        block += HUGE;
    }
    result
}

fn collapse_private(space: &AddressSpace, vma: &Vma, block: u64) -> Result<(), Errno> {
    let Some(slot) = space.tables.find(block) else { return Ok(()) };
    let mut level = slot.lock();
    let Level::Table(table) = &mut *level else { return Ok(()) };
    let folio = gathered(vma, table.entries())?;
    space.prepare_anonymous(vma);
    let bits = bits_for(vma, false) | Bits::EXCLUSIVE;
    *level = Level::Huge(Entry::Page(Mapped { folio: Arc::new(folio), index: 0, bits }));
    Ok(())
}

/// A huge page with the bytes of 512 entries, if all of them may be in one.
fn gathered(vma: &Vma, entries: &[Entry]) -> Result<Folio, Errno> {
    let armed = vma.modes().intersects(Modes::MISSING | Modes::PROTECT);
    let huge = Folio::zeroed_huge(true);
    let mut page = [0; PAGE_BYTES];
    for (index, entry) in entries.iter().enumerate() {
        match entry {
            _ if entry.is_protected() => return Err(Errno::EINVAL),
            // Filling a hole would hide a fault that somebody waits for.
            Entry::None | Entry::Zero(_) if armed => return Err(Errno::EBUSY),
            Entry::None | Entry::Zero(_) => {}
            Entry::Page(mapped) if !mapped.folio.maybe_pinned() => {
                mapped.folio.read(usize::from(mapped.index) * PAGE_BYTES, &mut page);
                huge.write(index * PAGE_BYTES, &page);
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(huge)
}

/// The pages of a file become one huge page of the cache, which all who map them have to find
/// anew; who has asked for it gets it mapped.
fn collapse_cached(
    space: &AddressSpace,
    block: u64,
    file: &Arc<MemoryFile>,
    page: u64,
) -> Result<(), Errno> {
    if !page.is_multiple_of(PAGES_PER_HUGE) || page + PAGES_PER_HUGE > file.pages() {
        return Err(Errno::EINVAL);
    }
    let armed = space.with_vma(block, |vma| vma.is_none_or(|vma| !vma.modes().is_empty()));
    if armed {
        return Err(Errno::EINVAL);
    }
    let huge = Arc::new(Folio::zeroed_huge(false));
    let mut bytes = [0; PAGE_BYTES];
    let mut cache = file.cache();
    for index in 0..512 {
        let at = usize::from(index) * PAGE_BYTES;
        if let Some(cached) = cache.get(&(page + u64::from(index))) {
            cached.folio.read(usize::from(cached.index) * PAGE_BYTES, &mut bytes);
            huge.write(at, &bytes);
        }
        let new = CachePage { folio: huge.clone(), index, swapped: false };
        cache.insert(page + u64::from(index), new);
    }
    drop(cache);
    file_ops::unmap_pages(file, &(page..page + PAGES_PER_HUGE), Zap::Punch);
    space.with_vma(block, |vma| {
        let vma = vma.ok_or(Errno::ENOMEM)?;
        let mapped = Mapped { folio: huge, index: 0, bits: bits_for(vma, false) };
        *space.tables.get(block).lock() = Level::Huge(Entry::Page(mapped));
        Ok(())
    })
}
