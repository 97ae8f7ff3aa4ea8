//! fork: a copy of the map and of those page tables that cannot be made anew, and contexts of its
//! own for the child's memory.

use super::ContextId;
use super::address_space::AddressSpace;
use super::context::{Context, Modes};
use super::events::{Announced, EventMessage};
use super::folio::Folio;
use super::hugetlb::Pool;
use super::page_table::{Bits, Entry, Level, Mapped, Marker, Slot, indices};
use super::sync::{Arc, AtomicU64, Ordering};
use super::vma::{Registration, Vma};
use crate::features::Features;

/// Copies the address space of a process to that of its child. The events are announced, one for
/// each context that has asked for them, and to be delivered once the child is complete.
pub(super) fn fork(
    parent: &AddressSpace,
    child: &Arc<AddressSpace>,
    mut next_context: impl FnMut() -> ContextId,
) -> Vec<Announced> {
    let mut events: Vec<Announced> = Vec::new();
    let next_address = parent.next_address.load(Ordering::SeqCst);
    child.next_address.store(next_address, Ordering::SeqCst);
    let parent_map = parent.map.write();
    let mut child_map = child.map.write();
    for cell in parent_map.all() {
        let vma = cell.write();
        let mut copy = vma.duplicate();
        copy.locked = false;
        if copy.anon_group.load(Ordering::SeqCst) != 0 {
            // Each VMA of a child has a group of its own.
            copy.anon_group = AtomicU64::new(0);
            copy.prepare_anonymous(&child.host.next_group);
            copy.forked = true;
        }
        if !copy.shared {
            copy.reservation = None;
        }
        copy.registration = vma.registration.as_ref().and_then(|registration| {
            inherited(registration, child, &mut events, &mut next_context)
        });
        if let Some(file) = copy.file() {
            file.add_mapping(child);
        }
        copy_tables(parent, child, &vma, &copy);
        child_map.insert(copy);
    }
    events
}

/// The child's registration (`userfaultfd_fork_ctx`): one new context for each of the parent's.
fn inherited(
    registration: &Registration,
    child: &Arc<AddressSpace>,
    events: &mut Vec<Announced>,
    next_context: &mut impl FnMut() -> ContextId,
) -> Option<Registration> {
    let owner = &registration.context;
    if !owner.has(Features::EVENT_FORK) {
        return None;
    }
    let known = events.iter().find(|event| Arc::ptr_eq(&event.context, owner));
    let context = match known.map(|event| &event.message) {
        Some(EventMessage::Fork(context)) => context.clone(),
        _ => {
            let context: Arc<Context> = Arc::new(owner.of_child(next_context(), child.clone()));
            let message = EventMessage::Fork(context.clone());
            events.push(Announced::new(owner.clone(), message));
            context
        }
    };
    Some(Registration { context, modes: registration.modes })
}

fn copy_tables(parent: &AddressSpace, child: &AddressSpace, vma: &Vma, copy: &Vma) {
    // What has a file behind it comes back by a fault, unless there are private pages, guards or
    // protection.
    let has_own = vma.anon_group.load(Ordering::SeqCst) != 0 || vma.guarded.load(Ordering::SeqCst);
    if !has_own && !copy.modes().contains(Modes::PROTECT) {
        return;
    }
    let pool = &parent.host.pool;
    for (slot, part) in parent.tables.in_range(vma.range()) {
        let target = child.tables.get(part.start);
        let mut level = slot.lock();
        if let Level::Huge(Entry::Page(mapped)) = &*level
            && mapped.folio.maybe_pinned()
            && !vma.is_hugetlb()
        {
            level.split();
        }
        match &mut *level {
            Level::Empty => {}
            Level::Huge(entry) => {
                *target.lock() = Level::Huge(copy_entry((vma, copy), pool, entry));
            }
            Level::Table(table) => {
                let range = indices(&part);
                let entries = &mut table.entries()[range.clone()];
                copy_entries((vma, copy), pool, entries, &target, range.start);
            }
        }
    }
}

fn copy_entries(
    vmas: (&Vma, &Vma),
    pool: &Arc<Pool>,
    entries: &mut [Entry],
    target: &Slot,
    first: usize,
) {
    let mut level = target.lock();
    let Some(table) = level.table_or_new() else { return };
    for (entry, new) in entries.iter_mut().zip(&mut table.entries()[first..]) {
        *new = copy_entry(vmas, pool, entry);
    }
}

/// The child's entry. Private pages are shared from now on, and neither may write to them.
fn copy_entry((vma, copy): (&Vma, &Vma), pool: &Arc<Pool>, entry: &mut Entry) -> Entry {
    let keeps_protection = copy.modes().contains(Modes::PROTECT);
    if let Entry::Page(mapped) = entry
        && mapped.folio.anonymous
        && mapped.folio.maybe_pinned()
    {
        // The parent's page has to stay where it is, and the parent's.
        let mut bits = mapped.bits;
        bits.set(Bits::PROTECTED, bits.contains(Bits::PROTECTED) && keeps_protection);
        // Without a free huge page a fork of the kernel's fails; here the child has none there.
        let Some(folio) = private_copy(mapped, pool) else { return Entry::None };
        return Entry::Page(Mapped { folio: Arc::new(folio), index: 0, bits });
    }
    match entry {
        Entry::Marker(Marker::Protect) if !keeps_protection => return Entry::None,
        Entry::None => return Entry::None,
        Entry::Marker(marker) => return Entry::Marker(marker.bare()),
        Entry::Page(_) | Entry::Zero(_) | Entry::Swap(_) | Entry::Migration(..) => {}
    }
    let bits = entry.bits_mut().expect("neither a hole nor a marker");
    if !vma.shared {
        bits.remove(Bits::WRITE | Bits::EXCLUSIVE);
    }
    if let Entry::Page(Mapped { folio, index: 0, .. }) = entry {
        folio.first_exclusive.store(false, Ordering::SeqCst);
    }
    let mut new = entry.clone();
    if let Entry::Migration(migrating) = &mut new {
        // The child's threads sleep for themselves.
        migrating.sleeper = Arc::default();
    }
    if let (Some(bits), false) = (new.bits_mut(), keeps_protection) {
        bits.remove(Bits::PROTECTED);
    }
    new
}

fn private_copy(mapped: &Mapped, pool: &Arc<Pool>) -> Option<Folio> {
    if mapped.folio.is_charged() {
        Pool::take(pool, None, true, Some(mapped.folio.contents()))
    } else {
        Some(mapped.folio.copy_of_page(mapped.index))
    }
}
