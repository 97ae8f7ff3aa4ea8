//! PAGEMAP_SCAN: which pages of a range have what, and in the same step their protection.

use super::address_space::AddressSpace;
use super::folio::PAGE;
use super::page_table::{Entry, Level, Marker};
use super::protect;
use super::vma::{Backing, Vma};
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
    if !call.start.is_multiple_of(PAGE) || call.start > call.end {
        return Err(Errno::EINVAL);
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
            let categories = scan_page(space, &vma, address, allowed, call);
            if let Some(categories) = categories {
                add(&mut regions, address, categories);
            }
            address += PAGE;
        }
    }
    Ok(regions)
}

fn add(regions: &mut Vec<Region>, address: u64, categories: Categories) {
    match regions.last_mut() {
        Some(last) if last.end == address && last.categories == categories => last.end += PAGE,
        _ => regions.push(Region { start: address, end: address + PAGE, categories }),
    }
}

/// The categories of a page that is reported. It is protected under the same lock.
fn scan_page(
    space: &AddressSpace,
    vma: &Vma,
    address: u64,
    allowed: bool,
    call: &Scan,
) -> Option<Categories> {
    let slot =
        if call.protect { Some(space.tables.get(address)) } else { space.tables.find(address) };
    let mut level = slot.as_ref().map(|slot| slot.lock());
    let mut categories = level.as_deref_mut().map_or(Categories::empty(), |level| {
        let huge = matches!(level, Level::Huge(_));
        level.entry(address).map_or(Categories::empty(), |entry| of_entry(vma, entry, huge))
    });
    categories.set(Categories::WP_ALLOWED, allowed);
    if !categories.contains(call.mask) {
        return None;
    }
    if let (Some(level), true) = (level.as_deref_mut(), call.protect) {
        if !vma.is_hugetlb() {
            level.split();
            level.table_or_new();
        }
        if let Some(entry) = level.entry(address) {
            protect::change_entry(vma, entry, true);
        }
    }
    Some(categories)
}

fn of_entry(vma: &Vma, entry: &Entry, huge: bool) -> Categories {
    let mut categories = Categories::empty();
    categories.set(Categories::WRITTEN, !entry.is_none() && !entry.is_protected());
    categories.set(Categories::PRESENT, entry.is_present());
    categories.set(Categories::HUGE, entry.is_present() && huge);
    match entry {
        Entry::Page(mapped) => {
            let file = matches!(vma.backing, Backing::File(_)) && !mapped.folio.anonymous;
            categories.set(Categories::FILE, file);
        }
        Entry::Zero(_) => categories |= Categories::ZERO,
        Entry::Marker(Marker::Guard) => categories |= Categories::SWAPPED | Categories::GUARD,
        // Hugetlb has no swap, and its markers do not look like it.
        Entry::Marker(_) if vma.is_hugetlb() => {}
        Entry::Swap(_) | Entry::Migration(..) | Entry::Marker(_) => {
            categories |= Categories::SWAPPED;
        }
        Entry::None => {}
    }
    categories
}
