//! What is done to a file by its descriptor: stores, truncation, holes.

use std::ops::Range;

use super::folio::{PAGE, PAGE_BYTES};
use super::hugetlb::Pool;
use super::page_cache::{CachePage, MemoryFile};
use super::sync::Arc;
use super::zap::{Zap, zap};
use crate::abi::Errno;

/// Stores bytes at the start of a page of a file, which is in the cache from then on.
pub(super) fn store(
    file: &MemoryFile,
    pool: &Arc<Pool>,
    page: u64,
    bytes: &[u8],
) -> Result<(), Errno> {
    let (first, at) = position(file, page);
    let mut cache = file.cache();
    if let Some(cached) = cache.get_mut(&first) {
        cached.swapped = false;
        cached.folio.write(at + usize::from(cached.index) * PAGE_BYTES, bytes);
        return Ok(());
    }
    let folio = file.new_folio(pool, None, false).ok_or(Errno::ENOMEM)?;
    folio.write(at, bytes);
    cache.insert(first, CachePage::new(Arc::new(folio)));
    file.set_pages(file.pages().max(page + 1));
    Ok(())
}

/// The first byte of a page, if the cache has it.
pub(super) fn load(file: &MemoryFile, page: u64) -> Option<u8> {
    let (first, at) = position(file, page);
    let cache = file.cache();
    let cached = cache.get(&first)?;
    Some(cached.folio.load(at + usize::from(cached.index) * PAGE_BYTES))
}

/// The cached page that has a base page of the file, and where in it that is.
fn position(file: &MemoryFile, page: u64) -> (u64, usize) {
    let first = page / file.pages_per_page() * file.pages_per_page();
    (first, usize::try_from(page - first).expect("less than 512") * PAGE_BYTES)
}

/// Sets the size. What lies behind it is dropped, private copies too.
pub(super) fn truncate(file: &MemoryFile, pages: u64) {
    let mut cache = file.cache();
    let before = file.pages();
    file.set_pages(pages);
    cache.split_off(&pages);
    drop(cache);
    if pages < before {
        unmap_pages(file, &(pages..u64::MAX / PAGE), Zap::Truncate);
    }
}

/// Makes a hole.
pub(super) fn punch(file: &MemoryFile, pages: &Range<u64>) {
    drop_cached(file, pages);
    unmap_pages(file, pages, Zap::Punch);
}

/// Takes pages out of the cache.
fn drop_cached(file: &MemoryFile, pages: &Range<u64>) {
    file.cache().retain(|page, _| !pages.contains(page));
}

/// Takes pages of the file out of the page tables of everybody who maps them.
pub(super) fn unmap_pages(file: &MemoryFile, pages: &Range<u64>, why: Zap) {
    for space in file.mapped_by() {
        let map = space.map.read();
        for cell in map.all() {
            let vma = cell.read();
            if !vma.file().is_some_and(|mapped| std::ptr::eq(Arc::as_ptr(mapped), file)) {
                continue;
            }
            let vma_pages = vma.page..vma.page + (vma.end - vma.start) / PAGE;
            let first = pages.start.max(vma_pages.start);
            let end = pages.end.min(vma_pages.end);
            if first < end {
                let start = vma.start + (first - vma.page) * PAGE;
                zap(&space, &vma, start..start + (end - first) * PAGE, why);
            }
        }
    }
}
