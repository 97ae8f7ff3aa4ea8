//! Which memory a userfaultfd has: REGISTER, UNREGISTER, and letting go of all of it.

use std::ops::Range;

use super::address_space::TASK_SIZE;
use super::context::{Context, FEATURE_RWP, Modes};
use super::folio::{HUGE, PAGE};
use super::memory_map::split_at;
use super::page_cache::FileKind;
use super::profile::Profile;
use super::protect;
use super::read_write_protect;
use super::sync::{Arc, Ordering};
use super::vma::{Access, Backing, Registration, Vma, VmaCell, VmaMap};
use crate::abi::Errno;
use crate::features::Features;

/// The rule that each range of a call has to keep.
pub(super) fn check_range(start: u64, len: u64) -> Result<Range<u64>, Errno> {
    if !start.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    check_limits(start, len)
}

/// The part of the rule that the source of a COPY has to keep too.
pub(super) fn check_limits(start: u64, len: u64) -> Result<Range<u64>, Errno> {
    if len == 0 || start >= TASK_SIZE || len > TASK_SIZE - start {
        return Err(Errno::EINVAL);
    }
    Ok(start..start + len)
}

/// A kind of memory that takes these modes (`anon_can_userfault` and its like).
fn can_userfault(profile: &Profile, vma: &Vma, modes: Modes, wp_async: bool) -> bool {
    let kind = match &vma.backing {
        Backing::Droppable => return false,
        Backing::Special if profile.register_refuses_special => return false,
        Backing::Special => None,
        Backing::Anonymous => return !modes.contains(Modes::MINOR),
        Backing::File(file) => Some(file.kind),
    };
    match kind {
        Some(FileKind::Shmem | FileKind::Hugetlb) => true,
        Some(FileKind::GuestMemory) if profile.guest_memory_fills => true,
        None => false,
        Some(_) => wp_async && modes == Modes::PROTECT,
    }
}

/// The modes of a request, if they are known and fit together.
fn check_modes(context: &Context, mode: u64) -> Result<Modes, Errno> {
    let profile = context.space.profile();
    let modes = Modes::from_bits(mode).ok_or(Errno::EINVAL)?;
    if modes.contains(Modes::READ_WRITE)
        && (!profile.read_write_protect
            || !context.has(Features::from_bits_retain(FEATURE_RWP))
            || modes.contains(Modes::PROTECT))
    {
        return Err(Errno::EINVAL);
    }
    if modes.is_empty() { Err(Errno::EINVAL) } else { Ok(modes) }
}

/// The VMAs of a range, of which there is one at least. Where the first has huge pages the range
/// begins with one.
fn vmas_in(map: &VmaMap, range: &Range<u64>) -> Result<Vec<Arc<VmaCell>>, Errno> {
    let cells = map.in_range(range);
    let first = cells.first().ok_or(Errno::EINVAL)?;
    if first.read().is_hugetlb() && !range.start.is_multiple_of(HUGE) {
        return Err(Errno::EINVAL);
    }
    Ok(cells)
}

/// REGISTER: the mask of the calls that work on the range.
pub(super) fn register(
    context: &Arc<Context>,
    start: u64,
    len: u64,
    mode: u64,
) -> Result<u64, Errno> {
    let modes = check_modes(context, mode)?;
    let range = check_range(start, len)?;
    let space = &context.space;
    if space.is_dead() {
        return Err(Errno::ENOMEM);
    }
    let mut map = space.map.write();
    let cells = vmas_in(&map, &range)?;
    let mut hugetlb = false;
    for cell in &cells {
        let vma = cell.read();
        may_register(context, &vma, modes, &range)?;
        hugetlb |= vma.is_hugetlb();
    }
    for cell in cells {
        let (part, has_all) = {
            let vma = cell.read();
            (vma.intersection(&range), vma.modes().contains(modes))
        };
        // Memory that has all the modes keeps those that it has besides.
        if has_all {
            continue;
        }
        split_at(&context.space, &mut map, part.start);
        split_at(&context.space, &mut map, part.end);
        let cell = map.find(part.start).expect("it was split here").clone();
        cell.write().registration = Some(Registration { context: context.clone(), modes });
        map.merge_around(&part);
    }
    Ok(ioctls(modes, hugetlb))
}

fn may_register(
    context: &Arc<Context>,
    vma: &Vma,
    modes: Modes,
    range: &Range<u64>,
) -> Result<(), Errno> {
    let profile = context.space.profile();
    if !can_userfault(profile, vma, modes, context.has(Features::WP_ASYNC)) {
        return Err(Errno::EINVAL);
    }
    if modes.contains(Modes::READ_WRITE) && vma.access == Access::None {
        return Err(Errno::EINVAL);
    }
    if !vma.may_write {
        return Err(Errno::EPERM);
    }
    if vma.is_hugetlb() && range.end <= vma.end && !range.end.is_multiple_of(HUGE) {
        return Err(Errno::EINVAL);
    }
    let Some(registration) = &vma.registration else { return Ok(()) };
    let kept = (Modes::PROTECT | Modes::READ_WRITE) & registration.modes;
    if !Arc::ptr_eq(&registration.context, context)
        || (profile.register_keeps_protection && !modes.contains(kept))
    {
        return Err(Errno::EBUSY);
    }
    Ok(())
}

/// The calls that REGISTER says work on the range. It looks at the modes of the request only, and
/// at whether there is hugetlb memory.
fn ioctls(modes: Modes, hugetlb: bool) -> u64 {
    const WAKE_COPY_POISON: u64 = 1 << 2 | 1 << 3 | 1 << 8;
    const ZEROPAGE_MOVE: u64 = 1 << 4 | 1 << 5;
    let mut mask = WAKE_COPY_POISON;
    if !hugetlb {
        mask |= ZEROPAGE_MOVE;
    }
    for (mode, number) in [(Modes::PROTECT, 6), (Modes::MINOR, 7), (Modes::READ_WRITE, 9)] {
        if modes.contains(mode) {
            mask |= 1 << number;
        }
    }
    mask
}

/// UNREGISTER.
pub(super) fn unregister(context: &Arc<Context>, start: u64, len: u64) -> Result<(), Errno> {
    let range = check_range(start, len)?;
    let space = &context.space;
    if space.is_dead() {
        return Err(Errno::ENOMEM);
    }
    let mut map = space.map.write();
    let cells = vmas_in(&map, &range)?;
    let wp_async = context.has(Features::WP_ASYNC);
    for cell in &cells {
        let vma = cell.read();
        let foreign = vma.owner().is_some_and(|owner| !Arc::ptr_eq(owner, context));
        let splits_huge =
            vma.is_hugetlb() && range.end <= vma.end && !range.end.is_multiple_of(HUGE);
        if foreign || splits_huge || !can_userfault(space.profile(), &vma, vma.modes(), wp_async) {
            return Err(Errno::EINVAL);
        }
    }
    for cell in cells {
        let (part, registration) = {
            let vma = cell.read();
            (vma.intersection(&range), vma.registration.clone())
        };
        let Some(registration) = registration else { continue };
        if registration.modes.contains(Modes::MISSING) {
            registration.context.faults.wake(&part);
        }
        split_at(&context.space, &mut map, part.start);
        split_at(&context.space, &mut map, part.end);
        let cell = map.find(part.start).expect("it was split here").clone();
        detach(context, &mut cell.write());
        map.merge_around(&part);
    }
    Ok(())
}

/// Makes a VMA ordinary memory: its protection is taken off.
fn detach(context: &Context, vma: &mut Vma) {
    if vma.modes().contains(Modes::PROTECT) {
        protect::change(&context.space, vma, vma.range(), false);
    }
    if vma.modes().contains(Modes::READ_WRITE) {
        read_write_protect::change(&context.space, vma, vma.range(), false);
    }
    vma.registration = None;
}

/// Nobody will ever read of this fork: the child's memory has no owner. What was protected stays
/// so until it is written.
pub(super) fn forget(context: &Arc<Context>) {
    context.released.store(true, Ordering::SeqCst);
    for cell in context.space.map.write().all() {
        let mut vma = cell.write();
        if vma.owner().is_some_and(|owner| Arc::ptr_eq(owner, context)) {
            // It is not made one with neighbours that it does not differ from any more.
            vma.registration = None;
        }
    }
}

/// Makes all VMAs of a context ordinary memory, which then may be one with their neighbours.
fn detach_all(context: &Arc<Context>, map: &mut VmaMap) {
    for cell in map.all() {
        let mut vma = cell.write();
        if vma.owner().is_some_and(|owner| Arc::ptr_eq(owner, context)) {
            detach(context, &mut vma);
            let range = vma.range();
            drop(vma);
            map.merge_around(&range);
        }
    }
}

/// The last descriptor is closed: all its memory becomes ordinary, and whoever waits goes on.
pub(super) fn release(context: &Arc<Context>) {
    context.released.store(true, Ordering::SeqCst);
    let mut map = context.space.map.write();
    detach_all(context, &mut map);
    drop(map);
    context.faults.wake_all();
    for child in context.events.abandon() {
        forget(&child);
    }
    context.news.ring();
}
