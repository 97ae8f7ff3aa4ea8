//! COPY, CONTINUE and POISON of memory that is made of huge pages of the pool
//! (`mfill_atomic_hugetlb`).

use super::address_space::{AddressSpace, bits_for};
use super::fill_page::takes_page;
use super::folio::{Folio, HUGE};
use super::hugetlb::Pool;
use super::hugetlb_faults::huge_entry;
use super::mfill::{Fill, Kind, Source, Stop};
use super::page_cache::CachePage;
use super::page_table::{Bits, Entry, Mapped, Marker, Slot};
use super::sync::Arc;
use super::vma::Vma;
use crate::abi::Errno;

/// Fills huge pages, one by one.
pub(super) fn fill(
    fill: &mut Fill,
    space: &AddressSpace,
    source: &Source<'_>,
    vma: &Vma,
) -> Result<(), Stop> {
    if fill.kind == Kind::Zero || !fill.dst.is_multiple_of(HUGE) || !fill.len.is_multiple_of(HUGE) {
        return Err(Errno::EINVAL.into());
    }
    while fill.done < fill.len {
        let at = fill.at();
        let slot = space.tables.get(at);
        match fill.kind {
            Kind::Copy => copy_one(fill, space, source, vma, &slot)?,
            Kind::Continue => continue_one(fill, space, vma, &slot)?,
            Kind::Poison | Kind::Zero => poison_one(&slot)?,
        }
        fill.page_done(source, HUGE)?;
    }
    Ok(())
}

fn poison_one(slot: &Slot) -> Result<(), Errno> {
    let mut level = slot.lock();
    let entry = huge_entry(&mut level);
    if !entry.is_none() {
        return Err(Errno::EEXIST);
    }
    *entry = Entry::Marker(Marker::POISON);
    Ok(())
}

fn continue_one(fill: &Fill, space: &AddressSpace, vma: &Vma, slot: &Slot) -> Result<(), Errno> {
    let file = vma.file().ok_or(Errno::EFAULT)?;
    let cache = file.cache();
    let cached = cache.get(&vma.page_at(fill.at())).ok_or(Errno::EFAULT)?;
    install(space, vma, slot, cached.folio.clone(), fill.protect)
}

fn copy_one(
    fill: &mut Fill,
    space: &AddressSpace,
    source: &Source<'_>,
    vma: &Vma,
    slot: &Slot,
) -> Result<(), Stop> {
    let file = vma.file().ok_or(Errno::EFAULT)?;
    let page = vma.page_at(fill.at());
    if !takes_page(space.profile(), huge_entry(&mut slot.lock())) {
        return Err(Errno::EEXIST.into());
    }
    if vma.shared && file.cache().contains_key(&page) {
        return Err(Errno::EEXIST.into());
    }
    if !space.host.pool.has_page(vma.reservation.as_ref()) {
        return Err(space.profile().hugetlb_pool_empty.into());
    }
    let size = usize::try_from(HUGE).expect("words have 64 bits");
    let contents = fill.source_page(source, vma, size)?;
    let folio = Pool::take(&space.host.pool, vma.reservation.as_ref(), !vma.shared, Some(contents))
        .ok_or(space.profile().hugetlb_pool_empty)?;
    let folio = Arc::new(folio);
    if !vma.shared {
        return Ok(install(space, vma, slot, folio, fill.protect)?);
    }
    let mut cache = file.cache();
    if page + super::folio::PAGES_PER_HUGE > file.pages() {
        return Err(Errno::EFAULT.into());
    }
    if cache.contains_key(&page) {
        return Err(Errno::EEXIST.into());
    }
    install(space, vma, slot, folio.clone(), fill.protect)?;
    cache.insert(page, CachePage::new(folio));
    Ok(())
}

fn install(
    space: &AddressSpace,
    vma: &Vma,
    slot: &Slot,
    folio: Arc<Folio>,
    protect: bool,
) -> Result<(), Errno> {
    let mut level = slot.lock();
    let entry = huge_entry(&mut level);
    if !takes_page(space.profile(), entry) {
        return Err(Errno::EEXIST);
    }
    let mut bits = bits_for(vma, protect);
    bits.set(Bits::EXCLUSIVE, folio.anonymous);
    bits.set(Bits::WRITE, bits.contains(Bits::WRITE) && (vma.shared || folio.anonymous));
    *entry = Entry::Page(Mapped { folio, index: 0, bits });
    Ok(())
}
