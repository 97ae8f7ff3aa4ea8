//! The calls that change a map: mmap, munmap, mprotect, mlock.

use std::ops::Range;

use super::address_space::{AddressSpace, TASK_SIZE, bits_for};
use super::context::Context;
use super::events::{Announced, EventMessage};
use super::folio::{HUGE, PAGE};
use super::hugetlb::Reservation;
use super::page_cache::{FileKind, MemoryFile};
use super::page_table::{Bits, Entry, Level, indices, is_whole};
use super::populate::populate_now;
use super::sync::{Arc, AtomicBool, AtomicU64, Ordering};
use super::vma::{Access, Backing, Vma, VmaMap};
use super::zap::{Zap, free_tables, zap};
use crate::abi::Errno;
use crate::features::Features;

/// What is to be mapped.
#[derive(Debug)]
pub(super) struct NewMapping {
    /// Its length in bytes.
    pub(super) len: u64,
    /// What it is made of.
    pub(super) backing: Backing,
    /// The first page of the file.
    pub(super) page: u64,
    /// `MAP_SHARED`.
    pub(super) shared: bool,
    /// The descriptor of the file was opened for reading only.
    pub(super) read_only: bool,
    /// The rights.
    pub(super) access: Access,
    /// Huge pages on first touch.
    pub(super) huge: bool,
    /// Where (`MAP_FIXED`).
    pub(super) at: Option<u64>,
}

/// mmap: the address, and the events of what was unmapped for it.
pub(super) fn map(
    space: &Arc<AddressSpace>,
    new: NewMapping,
) -> Result<(u64, Vec<Announced>), Errno> {
    let may_write = may_write(&new)?;
    let step = if matches!(&new.backing, Backing::File(f) if f.kind == FileKind::Hugetlb) {
        HUGE
    } else {
        PAGE
    };
    if new.len == 0
        || !new.len.is_multiple_of(step)
        || new.at.is_some_and(|at| !at.is_multiple_of(step))
    {
        return Err(Errno::EINVAL);
    }
    if new.len > TASK_SIZE || new.at.is_some_and(|at| at > TASK_SIZE - new.len) {
        return Err(Errno::ENOMEM);
    }
    let reservation = match &new.backing {
        Backing::File(file) => prepare_file(space, file, &new)?,
        _ => None,
    };
    let start = new.at.unwrap_or_else(|| place(space, new.len));
    let range = start..start + new.len;
    let mut map = space.map.write();
    let events = unmap_locked(space, &mut map, &range)?;
    let mut vma = Vma {
        start,
        end: range.end,
        page: if new.backing.is_file() { new.page } else { start / PAGE },
        backing: new.backing,
        shared: new.shared,
        access: new.access,
        may_write,
        locked: false,
        huge: new.huge,
        mergeable: false,
        anon_group: AtomicU64::new(0),
        group_around: AtomicU64::new(0),
        forked: false,
        guarded: AtomicBool::new(false),
        accounted: false,
        reservation,
        registration: None,
    };
    vma.set_access(new.access);
    map.insert(vma);
    map.merge_around(&range);
    Ok((start, events))
}

/// Whether mprotect may make it writable, if the rights that are asked for are allowed at all.
fn may_write(new: &NewMapping) -> Result<bool, Errno> {
    let Backing::File(file) = &new.backing else { return Ok(true) };
    if !new.shared {
        return Ok(true);
    }
    let sealed = file.write_sealed.load(Ordering::SeqCst);
    match new.access {
        Access::ReadWrite if new.read_only => Err(Errno::EACCES),
        Access::ReadWrite if sealed => Err(Errno::EPERM),
        _ => Ok(!new.read_only && !sealed),
    }
}

/// What a mapping of a file does to the file, and what is reserved for it.
fn prepare_file(
    space: &Arc<AddressSpace>,
    file: &Arc<MemoryFile>,
    new: &NewMapping,
) -> Result<Option<Arc<Reservation>>, Errno> {
    file.add_mapping(space);
    if file.kind == FileKind::Hugetlb {
        if !new.page.is_multiple_of(HUGE / PAGE) {
            return Err(Errno::EINVAL);
        }
        let end = new.page + new.len / PAGE;
        if new.shared && new.access == Access::ReadWrite && end > file.pages() {
            // Mapping a hugetlb file for writing makes it as long as the mapping.
            file.set_pages(end);
        }
        let cached = if new.shared { file.cache().range(new.page..end).count() as u64 } else { 0 };
        let pages = (new.len / HUGE).saturating_sub(cached);
        let reservation = Reservation::new(&space.host.pool, pages).ok_or(Errno::ENOMEM)?;
        return Ok(Some(Arc::new(reservation)));
    }
    Ok(None)
}

/// An address with room around it.
pub(super) fn place(space: &AddressSpace, len: u64) -> u64 {
    let room = len.next_multiple_of(HUGE) + 2 * HUGE;
    space.next_address.fetch_add(room, Ordering::SeqCst) + HUGE
}

/// The range of a call that changes the map.
pub(super) fn check(start: u64, len: u64) -> Result<Range<u64>, Errno> {
    if !start.is_multiple_of(PAGE) || len == 0 || start >= TASK_SIZE || len > TASK_SIZE - start {
        return Err(Errno::EINVAL);
    }
    Ok(start..start + len.next_multiple_of(PAGE))
}

/// munmap.
pub(super) fn unmap(space: &AddressSpace, start: u64, len: u64) -> Result<Vec<Announced>, Errno> {
    let range = check(start, len)?;
    unmap_locked(space, &mut space.map.write(), &range)
}

/// Unmaps a range; the events are announced and to be delivered once the map is unlocked
/// (`userfaultfd_unmap_ctx`).
pub(super) fn unmap_locked(
    space: &AddressSpace,
    map: &mut VmaMap,
    range: &Range<u64>,
) -> Result<Vec<Announced>, Errno> {
    let mut told: Vec<Arc<Context>> = Vec::new();
    for cell in map.in_range(range) {
        let vma = cell.read();
        let part = vma.intersection(range);
        if vma.is_hugetlb() && (!part.start.is_multiple_of(HUGE) || !part.end.is_multiple_of(HUGE))
        {
            return Err(Errno::EINVAL);
        }
        if let Some(owner) = vma.owner()
            && owner.has(Features::EVENT_UNMAP)
            && !told.iter().any(|other| Arc::ptr_eq(other, owner))
        {
            told.push(owner.clone());
        }
    }
    let message = EventMessage::Unmap { start: range.start, end: range.end };
    let events = told.into_iter().map(|owner| Announced::new(owner, message.clone())).collect();
    split_at(space, map, range.start);
    split_at(space, map, range.end);
    for cell in map.remove(range) {
        // Whoever works in the VMA is waited for.
        let vma = cell.write();
        zap(space, &vma, vma.range(), Zap::Unmap);
    }
    free_tables(space, map, range.clone());
    Ok(events)
}

/// Changes the VMAs of a range up to the first hole, split where the range ends in them. Each that
/// is changed is merged with its neighbours if it can be; those that are `as_asked` already stay as
/// they are, even beside others that do not differ from them any more (after a fork, for example).
/// One of hugetlb pages is split between pages only.
pub(super) fn update(
    space: &AddressSpace,
    range: &Range<u64>,
    as_asked: impl Fn(&Vma) -> Result<bool, Errno>,
    mut change: impl FnMut(&mut Vma),
) -> Result<(), Errno> {
    let mut map = space.map.write();
    let mut at = range.start;
    let mut result = Ok(());
    for cell in map.in_range(range) {
        let (part, asked) = {
            let vma = cell.read();
            let part = vma.intersection(range);
            let cut = vma.is_hugetlb()
                && !(part.start.is_multiple_of(HUGE) && part.end.is_multiple_of(HUGE));
            let asked = match as_asked(&vma) {
                Ok(false) if cut => Err(Errno::EINVAL),
                asked => asked,
            };
            (part, asked)
        };
        if part.start != at {
            break;
        }
        at = part.end;
        match asked {
            Ok(true) => continue,
            Ok(false) => {}
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
        split_at(space, &mut map, part.start);
        split_at(space, &mut map, part.end);
        let cell = map.find(part.start).expect("it was split here").clone();
        change(&mut cell.write());
        map.merge_around(&part);
    }
    result.and(if at < range.end { Err(Errno::ENOMEM) } else { Ok(()) })
}

/// Splits the VMA that `address` is inside of, and the huge page that it is inside of.
pub(super) fn split_at(space: &AddressSpace, map: &mut VmaMap, address: u64) {
    let Some(cell) = map.find(address).cloned() else { return };
    let (inside, hugetlb) = {
        let vma = cell.read();
        (vma.start < address, vma.is_hugetlb())
    };
    if !inside {
        return;
    }
    map.split_at(address);
    if !hugetlb
        && !address.is_multiple_of(HUGE)
        && let Some(slot) = space.tables.find(address)
    {
        slot.lock().split();
    }
}

/// mprotect.
pub(super) fn protect(
    space: &Arc<AddressSpace>,
    start: u64,
    len: u64,
    access: Access,
) -> Result<(), Errno> {
    let range = check(start, len)?;
    let as_asked = |vma: &Vma| match access {
        Access::ReadWrite if !vma.may_write => Err(Errno::EACCES),
        _ => Ok(vma.access == access),
    };
    let mut populated = Vec::new();
    let result = update(space, &range, as_asked, |vma| {
        vma.set_access(access);
        set_rights(space, vma);
        if access == Access::ReadWrite && vma.locked && !vma.shared {
            populated.push(vma.range());
        }
    });
    // Locked private memory gets its own pages as soon as it can be written to.
    for range in populated {
        populate_now(space, range);
    }
    result
}

/// Gives the entries of a VMA its rights. The uffd-wp bit stays.
fn set_rights(space: &AddressSpace, vma: &Vma) {
    for (slot, part) in space.tables.in_range(vma.range()) {
        let mut level = slot.lock();
        if matches!(&*level, Level::Huge(_)) && !vma.is_hugetlb() && !is_whole(&part) {
            level.split();
        }
        match &mut *level {
            Level::Empty => {}
            Level::Huge(entry) => set_rights_of(vma, entry),
            Level::Table(table) => {
                for entry in &mut table.entries()[indices(&part)] {
                    set_rights_of(vma, entry);
                }
            }
        }
    }
}

fn set_rights_of(vma: &Vma, entry: &mut Entry) {
    if !entry.is_present() {
        return;
    }
    let rights = bits_for(vma, entry.is_protected());
    let own = match entry {
        Entry::Page(mapped) if mapped.folio.anonymous => mapped.bits.contains(Bits::EXCLUSIVE),
        Entry::Page(_) => vma.shared,
        _ => false,
    };
    let bits = entry.bits_mut().expect("it is present");
    bits.set(Bits::NO_ACCESS, rights.contains(Bits::NO_ACCESS));
    bits.set(Bits::WRITE, rights.contains(Bits::WRITE) && own);
}

/// mlock and munlock, but for the populating.
pub(super) fn lock(
    space: &AddressSpace,
    start: u64,
    len: u64,
    locked: bool,
) -> Result<Range<u64>, Errno> {
    let range = check(start, len)?;
    let as_asked = |vma: &Vma| Ok(vma.locked == locked || vma.is_hugetlb());
    update(space, &range, as_asked, |vma| vma.locked = locked)?;
    Ok(range)
}
