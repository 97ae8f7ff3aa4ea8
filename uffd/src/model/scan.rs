//! PAGEMAP_SCAN: which pages of a range have what, and in the same step their protection.

use std::ops::Range;

use super::address_space::{AddressSpace, TASK_SIZE};
use super::context::Modes;
use super::folio::{HUGE, PAGE};
use super::page_table::{Entry, Level, Marker};
use super::protect;
use super::vma::Vma;
use crate::abi::Errno;

bitflags::bitflags! {
    /// Categories of a page, as the kernel's header numbers them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Categories: u64 {
        /// It could be protected: the range is registered for asynchronous protection.
        const WP_ALLOWED = 1;
        /// It is not protected.
        const WRITTEN = 2;
        /// It belongs to a file.
        const FILE = 4;
        /// It is mapped.
        const PRESENT = 8;
        /// Its entry is a swap entry or a marker.
        const SWAPPED = 0x10;
        /// It is the zero page.
        const ZERO = 0x20;
        /// It is mapped as a part of a huge page.
        const HUGE = 0x40;
        /// It has a guard marker.
        const GUARD = 0x100;
        const _ = !0;
    }
}

/// A scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Pages that are reported are protected.
    pub protect: bool,
    /// Memory that is not registered for asynchronous protection is an error.
    pub check_async: bool,
    /// Categories that a page must have to be reported.
    pub mask: Categories,
}

/// A run of pages of the same categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// What its pages have.
    pub categories: Categories,
}

/// Scans a range.
pub(super) fn scan(space: &AddressSpace, call: &Scan) -> Result<Vec<Region>, Errno> {
    if !call.start.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if call.start > call.end || call.end > TASK_SIZE {
        return Err(Errno::EFAULT);
    }
    let range = call.start..call.end.next_multiple_of(PAGE);
    let mut regions = Vec::new();
    let map = space.map.read();
    for cell in map.in_range(&range) {
        let vma = cell.read();
        let allowed = vma.is_async() && vma.marks_holes();
        if !allowed && call.check_async {
            return Err(Errno::EPERM);
        }
        if !allowed && call.protect {
            continue;
        }
        let part = vma.intersection(&range);
        let mut address = part.start;
        while address < part.end {
            let (end, categories) = scan_entry(space, &vma, address..part.end, allowed, call);
            if let Some(categories) = categories {
                add(&mut regions, address..end, categories);
            }
            address = end;
        }
    }
    Ok(regions)
}

fn add(regions: &mut Vec<Region>, range: Range<u64>, categories: Categories) {
    match regions.last_mut() {
        Some(last) if last.end == range.start && last.categories == categories => {
            last.end = range.end;
        }
        _ => regions.push(Region { start: range.start, end: range.end, categories }),
    }
}

/// Scans what the first entry of a range maps: where that ends, and its categories if it is
/// reported. It is protected under the same lock.
fn scan_entry(
    space: &AddressSpace,
    vma: &Vma,
    range: Range<u64>,
    allowed: bool,
    call: &Scan,
) -> (u64, Option<Categories>) {
    let address = range.start;
    // The entries of huge pages are in a table one level up, which others may have brought.
    let has_upper_table = vma.is_hugetlb() && space.tables.has_upper(address);
    let slot = space.tables.get(address);
    let mut level = slot.lock();
    let whole = address.is_multiple_of(HUGE) && range.end - address >= HUGE;
    let end = if is_huge(&level) && whole { address + HUGE } else { address + PAGE };
    let categories_of = |level: &mut Level| {
        let huge = is_huge(level);
        let categories = match level.entry(address) {
            Some(entry) if !(vma.is_hugetlb() && entry.is_none()) => of_entry(vma, entry, huge),
            _ if vma.is_hugetlb() && has_upper_table => Categories::HUGE,
            Some(_) => Categories::empty(),
            // Where there is no table, a hole counts as written only if it could be protected.
            None if vma.modes().contains(Modes::PROTECT) => Categories::WRITTEN,
            None => Categories::empty(),
        };
        if allowed { categories | Categories::WP_ALLOWED } else { categories }
    };
    let mut categories = categories_of(&mut level);
    let part_is_protected = call.protect && is_huge(&level) && !whole && !vma.is_hugetlb();
    if part_is_protected && categories.contains(call.mask | Categories::WRITTEN) {
        // It is reported as if it had been small before.
        level.split();
        categories = categories_of(&mut level);
    }
    if !categories.contains(call.mask) {
        return (end, None);
    }
    if call.protect {
        level.table_or_new();
        match level.entry(address) {
            // WRITEPROTECT leaves these alone.
            Some(Entry::Marker(Marker::Poison { protected } | Marker::Guard { protected })) => {
                *protected = !vma.is_hugetlb();
            }
            Some(entry) => protect::change_entry(vma, entry, true),
            None => {}
        }
    }
    (end, Some(categories))
}

fn is_huge(level: &Level) -> bool {
    matches!(level, Level::Huge(_))
}

fn of_entry(vma: &Vma, entry: &Entry, huge: bool) -> Categories {
    let mut categories = Categories::empty();
    // What is not protected counts as written, a hole too.
    categories.set(Categories::WRITTEN, !entry.is_protected());
    categories.set(Categories::PRESENT, entry.is_present());
    categories.set(Categories::HUGE, (entry.is_present() && huge) || vma.is_hugetlb());
    match entry {
        Entry::Page(mapped) => categories.set(Categories::FILE, !mapped.folio.anonymous),
        Entry::Zero(_) => categories |= Categories::ZERO,
        Entry::Marker(Marker::Guard { .. }) => {
            categories |= Categories::SWAPPED | Categories::GUARD
        }
        Entry::Swap(_) | Entry::Migration(..) | Entry::Marker(_) => {
            categories |= Categories::SWAPPED;
        }
        Entry::None => {}
    }
    categories
}
