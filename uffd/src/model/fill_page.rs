//! What the fills do to one entry.

use super::address_space::{AddressSpace, bits_for};
use super::contents::Contents;
use super::folio::{Folio, PAGE};
use super::mfill::{Fill, Kind, Source, Stop};
use super::page_cache::CachePage;
use super::page_table::{Bits, Entry, Marker, Slot, index_in_table};
use super::profile::Profile;
use super::sync::Arc;
use super::vma::Vma;
use crate::abi::Errno;

/// The page lies behind the end of the file (`mfill_file_over_size`). A page that straddles the
/// end does not.
fn is_over_size(vma: &Vma, address: u64) -> bool {
    vma.file().is_some_and(|file| vma.page_at(address) >= file.pages())
}

/// An entry that a page may be put into.
pub(super) fn takes_page(profile: &Profile, entry: &Entry) -> bool {
    match entry {
        Entry::None | Entry::Marker(Marker::Protect | Marker::Poison { .. }) => true,
        Entry::Marker(Marker::Guard { .. }) => !profile.fill_respects_guard,
        _ => false,
    }
}

/// Puts a page into an entry (`mfill_atomic_install_pte`). A marker of protection that was there
/// is forgotten: only `protect` counts.
fn install(
    profile: &Profile,
    vma: &Vma,
    (entry, address): (&mut Entry, u64),
    page: &CachePage,
    protect: bool,
) -> Result<(), Errno> {
    if is_over_size(vma, address) {
        return Err(Errno::EFAULT);
    }
    if !takes_page(profile, entry) {
        return Err(Errno::EEXIST);
    }
    let mut bits = bits_for(vma, protect);
    bits.set(Bits::EXCLUSIVE, page.folio.anonymous);
    if !page.folio.anonymous && !vma.shared {
        bits.remove(Bits::WRITE);
    }
    *entry = Entry::Page(page.mapped(bits));
    Ok(())
}

/// As [`install`], under the page-table lock.
fn install_locked(
    space: &AddressSpace,
    vma: &Vma,
    (slot, address): (&Slot, u64),
    page: &CachePage,
    protect: bool,
) -> Result<(), Errno> {
    let mut level = slot.lock();
    // A huge page took the table's place.
    let table = level.table_or_new().ok_or(Errno::EAGAIN)?;
    let entry = &mut table.entries()[index_in_table(address)];
    install(space.profile(), vma, (entry, address), page, protect)
}

/// Installs a new page, of bytes or of zeros: an anonymous one in private memory
/// (`mfill_atomic_pte_copy`, `mfill_atomic_pte_zeroed_folio`), one of the page cache in shared
/// memory.
pub(super) fn put(
    space: &AddressSpace,
    vma: &Vma,
    at: (&Slot, u64),
    contents: Contents,
    protect: bool,
) -> Result<(), Errno> {
    let new = |anonymous| CachePage::new(Arc::new(Folio::new(anonymous, contents)));
    let Some(file) = vma.file().filter(|_| vma.shared) else {
        return install_locked(space, vma, at, &new(true), protect);
    };
    let page = vma.page_at(at.1);
    let mut cache = file.cache();
    if is_over_size(vma, at.1) {
        return Err(Errno::EFAULT);
    }
    if cache.contains_key(&page) {
        return Err(Errno::EEXIST);
    }
    let new = new(false);
    install_locked(space, vma, at, &new, protect)?;
    cache.insert(page, new);
    Ok(())
}

/// Maps the pages that the cache has (`mfill_atomic_pte_continue`), as far as one table goes.
pub(super) fn continue_run(
    fill: &mut Fill,
    (space, source): (&AddressSpace, &Source<'_>),
    vma: &Vma,
    (slot, end): (&Slot, u64),
) -> Result<(), Stop> {
    let file = vma.file().ok_or(Errno::EINVAL)?;
    let mut cache = file.cache();
    let mut cached = cache.range_mut(vma.page_at(fill.at())..);
    let mut level = slot.lock();
    let table = level.table_or_new().ok_or(Errno::EAGAIN)?;
    let first = index_in_table(fill.at());
    for entry in &mut table.entries()[first..] {
        let at = fill.at();
        if at == end {
            break;
        }
        if is_over_size(vma, at) {
            return Err(space.profile().continue_past_end.into());
        }
        let (page, cached) = cached.next().ok_or(Errno::EFAULT)?;
        if *page != vma.page_at(at) {
            return Err(Errno::EFAULT.into());
        }
        cached.swapped = false;
        install(space.profile(), vma, (entry, at), cached, fill.protect)?;
        fill.page_done(source, PAGE)?;
    }
    Ok(())
}

/// Writes what needs no page into entries of one table, under its lock: the zero page
/// (`mfill_atomic_pte_zeropage`) or poison (`mfill_atomic_pte_poison`). Only empty entries take
/// either.
pub(super) fn mark_run(
    fill: &mut Fill,
    source: &Source<'_>,
    vma: &Vma,
    (slot, end): (&Slot, u64),
) -> Result<(), Stop> {
    let zero = bits_for(vma, false) - Bits::WRITE;
    let mut level = slot.lock();
    let table = level.table_or_new().ok_or(Errno::EAGAIN)?;
    let first = index_in_table(fill.at());
    for entry in &mut table.entries()[first..] {
        if fill.at() == end {
            break;
        }
        if is_over_size(vma, fill.at()) {
            return Err(Errno::EFAULT.into());
        }
        if !entry.is_none() {
            return Err(Errno::EEXIST.into());
        }
        *entry = match fill.kind {
            Kind::Poison => Entry::Marker(Marker::POISON),
            _ => Entry::Zero(zero),
        };
        fill.page_done(source, PAGE)?;
    }
    Ok(())
}
