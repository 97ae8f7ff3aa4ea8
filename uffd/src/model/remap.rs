//! mremap: shrinking, growing, moving, and what becomes of the registration.

use std::ops::Range;

use super::address_space::{AddressSpace, TASK_SIZE};
use super::events::{Announced, EventMessage};
use super::folio::{HUGE, PAGE};
use super::memory_map::{place, split_at, unmap_locked};
use super::page_table::{Bits, Entry, Level, Marker, index_in_table};
use super::sync::{AtomicU64, Ordering};
use super::vma::{Vma, VmaMap};
use super::zap::free_tables;
use crate::abi::Errno;
use crate::features::Features;

/// How a mapping is moved or resized; lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remap {
    /// Its old address.
    pub from: u64,
    /// Its old length.
    pub len: u64,
    /// Its new length.
    pub new_len: u64,
    /// Its new address (`MREMAP_FIXED`).
    pub to: Option<u64>,
    /// It stays where it is too, without its pages (`MREMAP_DONTUNMAP`).
    pub dont_unmap: bool,
}

/// mremap: the new address. The events of what was done are added in the order of their delivery,
/// and are to be delivered even if a later VMA could not be moved.
pub(super) fn remap(
    space: &AddressSpace,
    call: Remap,
    events: &mut Vec<Announced>,
) -> Result<u64, Errno> {
    check(&call)?;
    let mut map = space.map.write();
    match call.to {
        Some(to) if call.len == call.new_len => move_all(space, &mut map, (&call, to), events),
        _ => remap_one(space, &mut map, call, events),
    }
}

/// Moves all VMAs of a range to where it is told, each with its distance to the one before. One
/// that somebody waits for faults of has to be the only one.
fn move_all(
    space: &AddressSpace,
    map: &mut VmaMap,
    (call, to): (&Remap, u64),
    events: &mut Vec<Announced>,
) -> Result<u64, Errno> {
    let old = call.from..call.from + call.len;
    let parts: Vec<(Range<u64>, u64, bool)> = map
        .in_range(&old)
        .iter()
        .map(|cell| {
            let vma = cell.read();
            (vma.intersection(&old), vma.end, vma.modes().is_empty())
        })
        .collect();
    if parts.first().is_none_or(|(part, ..)| part.start != old.start) {
        return Err(Errno::EFAULT);
    }
    for (number, (part, vma_end, movable)) in parts.into_iter().enumerate() {
        if !movable && (number > 0 || vma_end < old.end) {
            return Err(Errno::EFAULT);
        }
        let len = part.end - part.start;
        let target = to + (part.start - old.start);
        let one = Remap { from: part.start, len, new_len: len, to: Some(target), ..*call };
        remap_one(space, map, one, events)?;
    }
    Ok(to)
}

fn remap_one(
    space: &AddressSpace,
    map: &mut VmaMap,
    mut call: Remap,
    events: &mut Vec<Announced>,
) -> Result<u64, Errno> {
    let old = call.from..call.from + call.len;
    // Only what is kept has to be in one VMA. Nothing is changed before that is known.
    let kept = call.from..call.from + call.len.min(call.new_len);
    let Some(hugetlb) = map.find(call.from).and_then(|cell| {
        let vma = cell.read();
        vma.contains(&kept).then(|| vma.is_hugetlb())
    }) else {
        return Err(Errno::EFAULT);
    };
    let places = [call.from, call.len, call.new_len, call.to.unwrap_or(0)];
    if hugetlb && !places.iter().all(|place| place.is_multiple_of(HUGE)) {
        return Err(Errno::EINVAL);
    }
    // What was in the way is told first, then the move, then what was left behind.
    if let Some(to) = call.to {
        events.extend(unmap_locked(space, map, &(to..to + call.new_len))?);
    }
    let mut late = Vec::new();
    if call.new_len < call.len {
        let tail = call.from + call.new_len..old.end;
        late = unmap_locked(space, map, &tail)?;
        if call.to.is_some() {
            call.len = call.new_len;
        }
    }
    let may_stay = call.to.is_none() && !call.dont_unmap;
    if may_stay && (call.new_len <= call.len || grow_in_place(map, &call)) {
        events.extend(late);
        return Ok(call.from);
    }
    let to = call.to.unwrap_or_else(|| place(space, call.new_len));
    let len = call.len.min(call.new_len);
    let (remapped, unmapped) = move_mapping(space, map, &call, (to, len));
    events.extend(remapped);
    events.extend(late);
    events.extend(unmapped);
    Ok(to)
}

fn check(call: &Remap) -> Result<(), Errno> {
    let aligned = [call.from, call.len, call.new_len, call.to.unwrap_or(0)];
    if aligned.iter().any(|value| !value.is_multiple_of(PAGE)) || call.len == 0 || call.new_len == 0
    {
        return Err(Errno::EINVAL);
    }
    if call.dont_unmap && call.len != call.new_len {
        return Err(Errno::EINVAL);
    }
    if call.len.max(call.new_len) > TASK_SIZE
        || call.to.is_some_and(|to| to > TASK_SIZE - call.new_len)
    {
        return Err(Errno::EINVAL);
    }
    if call.from > TASK_SIZE - call.len {
        return Err(Errno::EFAULT);
    }
    let overlaps = |to: u64| to < call.from + call.len && call.from < to + call.new_len;
    if call.to.is_some_and(overlaps) { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Grows a mapping where it is, if it ends there and nothing is behind it.
fn grow_in_place(map: &mut VmaMap, call: &Remap) -> bool {
    let end = call.from + call.len;
    let new_end = call.from + call.new_len;
    let ends_here = map.find(call.from).is_some_and(|cell| cell.read().end == end);
    if !ends_here || !map.in_range(&(end..new_end)).is_empty() {
        return false;
    }
    if let Some(cell) = map.find(call.from) {
        cell.write().end = new_end;
    }
    map.merge_around(&(end..new_end));
    true
}

type Events = (Option<Announced>, Vec<Announced>);

/// Moves `len` bytes to a new mapping of the new length. Returns the REMAP event and the UNMAP
/// events of the old range.
fn move_mapping(
    space: &AddressSpace,
    map: &mut VmaMap,
    call: &Remap,
    (to, len): (u64, u64),
) -> Events {
    let old = call.from..call.from + len;
    let is_whole = map.find(old.start).is_some_and(|cell| cell.read().range() == old);
    if !call.dont_unmap {
        split_at(space, map, old.start);
        split_at(space, map, old.end);
    }
    let cell = map.find(old.start).expect("it was found before").clone();
    // Whoever works in the VMA is waited for, and nobody begins until the pages are moved.
    let source = cell.write();
    let moved = moved_vma(&source, old.start, to, call.new_len);
    let owner = source.owner().cloned();
    let follows = owner.as_ref().filter(|owner| owner.has(Features::EVENT_REMAP)).cloned();
    // Memory whose context has not asked for the event is ordinary at its new place.
    let forgets = owner.is_some() && follows.is_none();
    let clears = forgets && space.profile().remap_clears_protection;
    move_entries(space, &source, old.clone(), to, clears);
    drop(source);
    map.insert(moved);
    map.merge_around(&(to..to + call.new_len));
    if forgets {
        // The new mapping has become one with neighbours that are registered alike, and these are
        // forgotten with it. It does not become one with others then.
        map.find(to).expect("just inserted").write().registration = None;
    }
    let message = EventMessage::Remap { from: call.from, to, len: call.len };
    let remapped = follows.map(|context| Announced::new(context, message));
    let unmapped = if call.dont_unmap {
        // All of the VMA that it was in is not locked any more.
        let mut left = cell.write();
        left.locked = false;
        if is_whole {
            // It has no pages left that it could share.
            left.anon_group.store(0, Ordering::SeqCst);
            left.forked = false;
        }
        Vec::new()
    } else {
        unmap_locked(space, map, &old)
            .expect("a part of one VMA, in whole huge pages if it has any")
    };
    free_tables(space, map, old);
    (remapped, unmapped)
}

fn moved_vma(source: &Vma, from: u64, to: u64, new_len: u64) -> Vma {
    let mut moved = source.duplicate();
    moved.page = source.page_at(from);
    moved.start = to;
    moved.end = to + new_len;
    let touched = source.anon_group.load(Ordering::SeqCst) != 0;
    if source.is_anonymous() && !touched {
        moved.page = to / PAGE;
        moved.anon_group = AtomicU64::new(0);
    }
    moved
}

fn move_entries(space: &AddressSpace, vma: &Vma, old: Range<u64>, to: u64, clears: bool) {
    for (slot, part) in space.tables.in_range(old.clone()) {
        let target = to + (part.start - old.start);
        let mut level = slot.lock();
        if matches!(&*level, Level::Huge(_)) {
            let whole = part.end - part.start == HUGE && target.is_multiple_of(HUGE);
            if whole {
                let mut huge = std::mem::take(&mut *level);
                drop(level);
                if let Level::Huge(entry) = &mut huge {
                    clear(entry, clears);
                }
                *space.tables.get(target).lock() = huge;
                continue;
            }
            if vma.is_hugetlb() {
                continue;
            }
            level.split();
        }
        let Level::Table(table) = &mut *level else { continue };
        let first = index_in_table(part.start);
        let count = usize::try_from((part.end - part.start) / PAGE).expect("at most 512");
        let mut entries: Vec<Entry> =
            table.entries()[first..first + count].iter_mut().map(std::mem::take).collect();
        drop(level);
        // The target gets tables even for holes.
        for end in [target, target + (part.end - part.start) - PAGE] {
            space.tables.get(end).lock().table_or_new();
        }
        let mut address = target;
        for mut entry in entries.drain(..) {
            if !entry.is_none() {
                clear(&mut entry, clears);
                place_entry(space, address, entry);
            }
            address += PAGE;
        }
    }
}

fn place_entry(space: &AddressSpace, address: u64, entry: Entry) {
    let slot = space.tables.get(address);
    let mut level = slot.lock();
    if let Some(table) = level.table_or_new() {
        table.entries()[index_in_table(address)] = entry;
    }
}

/// Takes the protection off an entry on its way.
fn clear(entry: &mut Entry, clears: bool) {
    if !clears {
        return;
    }
    if matches!(entry, Entry::Marker(Marker::Protect)) {
        *entry = Entry::None;
    }
    if let Entry::Marker(marker) = entry {
        *marker = marker.bare();
    }
    if let Some(bits) = entry.bits_mut() {
        bits.remove(Bits::PROTECTED);
    }
}
