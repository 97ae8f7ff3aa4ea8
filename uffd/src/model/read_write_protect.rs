//! RWPROTECT and SET_MODE of the newest kernels: entries that let neither loads nor stores
//! through until somebody has been told.

use std::ops::Range;

use super::address_space::{AddressSpace, bits_for};
use super::context::{Context, FEATURE_RWP, FEATURE_RWP_ASYNC, Modes};
use super::folio::HUGE;
use super::page_table::{Bits, Entry, Level, indices, is_whole};
use super::vma::Vma;
use crate::abi::Errno;
use crate::features::Features;

/// RWPROTECT of a range. All of it is checked before anything is changed.
pub(super) fn read_write_protect(
    context: &Context,
    range: &Range<u64>,
    arm: bool,
) -> Result<(), Errno> {
    let space = &context.space;
    if space.is_dead() {
        return Err(Errno::ESRCH);
    }
    let map = space.map.read();
    let _no_event_begins = context.map_changing.read();
    if context.is_changing() {
        return Err(Errno::EAGAIN);
    }
    let cells = map.in_range(range);
    if cells.is_empty() {
        return Err(Errno::ENOENT);
    }
    for cell in &cells {
        let vma = cell.read();
        if !vma.modes().contains(Modes::READ_WRITE) {
            return Err(Errno::ENOENT);
        }
        let aligned = range.start.is_multiple_of(HUGE) && range.end.is_multiple_of(HUGE);
        if vma.is_hugetlb() && !aligned {
            return Err(Errno::EINVAL);
        }
    }
    for cell in &cells {
        let vma = cell.read();
        change(space, &vma, vma.intersection(range), arm);
    }
    Ok(())
}

/// Arms the entries of a part of a VMA, or disarms them. Holes stay holes.
pub(super) fn change(space: &AddressSpace, vma: &Vma, range: Range<u64>, arm: bool) {
    for (slot, part) in space.tables.in_range(range) {
        let mut level = slot.lock();
        let keeps_huge = vma.is_hugetlb() || (vma.is_anonymous() && is_whole(&part));
        if matches!(&*level, Level::Huge(_)) && !keeps_huge {
            level.split();
        }
        let set = |entry: &mut Entry| {
            if let Some(bits) = entry.bits_mut() {
                bits.set(Bits::ARMED, arm);
            }
        };
        match &mut *level {
            Level::Empty => {}
            Level::Huge(entry) => set(entry),
            Level::Table(table) => table.entries()[indices(&part)].iter_mut().for_each(set),
        }
    }
}

/// An access of an armed entry is for the userfaultfd. Where it need not be told, the entry is
/// disarmed here and now, as is a leftover of a registration that is gone.
pub(super) fn waits_for_access(vma: &Vma, entry: &mut Entry) -> bool {
    let silent = vma.owner().is_none_or(|owner| {
        owner.has(Features::from_bits_retain(FEATURE_RWP_ASYNC))
            || !vma.modes().contains(Modes::READ_WRITE)
    });
    if let (Some(bits), true) = (entry.bits_mut(), silent) {
        bits.remove(Bits::ARMED);
    }
    !silent
}

/// The bits of an entry that MOVE puts into a VMA: not protected, but armed where that is the
/// VMA's mode.
pub(super) fn moved_bits(vma: &Vma) -> Bits {
    let mut bits = bits_for(vma, false) | Bits::EXCLUSIVE;
    bits.set(Bits::ARMED, vma.modes().contains(Modes::READ_WRITE));
    bits
}

/// SET_MODE: turns RWP_ASYNC on or off.
pub(super) fn set_mode(context: &Context, enable: u64, disable: u64) -> Result<(), Errno> {
    let known = (enable | disable) & !FEATURE_RWP_ASYNC == 0;
    let negotiated = context.has(Features::from_bits_retain(FEATURE_RWP));
    if enable & disable != 0 || !known || (enable != 0 && !negotiated) {
        return Err(Errno::EINVAL);
    }
    if context.space.is_dead() {
        return Err(Errno::ESRCH);
    }
    // Faults hold their VMA, and whoever changes the map waits for them.
    let map = context.space.map.write();
    map.all().iter().for_each(|cell| drop(cell.write()));
    context.set_features(enable, disable);
    drop(map);
    if enable != 0 {
        context.faults.wake_all();
    }
    Ok(())
}
