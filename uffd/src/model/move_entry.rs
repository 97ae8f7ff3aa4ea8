//! What MOVE does to one entry, under both page-table locks.

use super::address_space::bits_for;
use super::folio::Folio;
use super::page_table::{Bits, Entry, Mapped};
use super::sync::Arc;
use super::vma::Vma;
use super::wait_queue::Sleeper;
use crate::abi::Errno;

/// What came of one entry.
pub(super) enum Moved {
    /// It is at its new place, or there was a hole that counts as moved.
    Done,
    /// It cannot be moved.
    Failed(Errno),
    /// It is a part of a huge page, which is split first.
    Large(Arc<Folio>),
    /// Somebody works on the page: wait for the page lock without the page tables'.
    Contended(Arc<Folio>),
    /// The page is being migrated: wait for the end of that.
    Migrating(Arc<Sleeper>),
    /// A table is no longer one.
    Changed,
}

/// Moves one entry. The destination is looked at before the source.
pub(super) fn move_one(vma: &Vma, holes: bool, target: &mut Entry, source: &mut Entry) -> Moved {
    if !target.is_none() {
        return Moved::Failed(Errno::EEXIST);
    }
    match source {
        Entry::None if holes => Moved::Done,
        Entry::None => Moved::Failed(Errno::ENOENT),
        Entry::Page(mapped) => {
            let result = move_present(vma, target, mapped);
            if matches!(result, Moved::Done) {
                *source = Entry::None;
            }
            result
        }
        // The zero page is put there anew, so a protection is lost (`move_zeropage_pte`).
        Entry::Zero(_) => {
            *target = Entry::Zero(bits_for(vma, false) - Bits::WRITE);
            *source = Entry::None;
            Moved::Done
        }
        Entry::Swap(mapped) => {
            if !mapped.bits.contains(Bits::EXCLUSIVE) || mapped.folio.pages > 1 {
                return Moved::Failed(Errno::EBUSY);
            }
            // The entry keeps its bits, the protection too (`move_swap_pte`).
            *target = std::mem::take(source);
            Moved::Done
        }
        Entry::Migration(_, sleeper) => Moved::Migrating(sleeper.clone()),
        Entry::Marker(_) => Moved::Failed(Errno::EFAULT),
    }
}

/// Moves a page: it has to be this address space's alone, and no device's. The new entry is
/// writable and not protected.
fn move_present(vma: &Vma, target: &mut Entry, mapped: &Mapped) -> Moved {
    let folio = mapped.folio.clone();
    if !folio.anonymous || !mapped.bits.contains(Bits::EXCLUSIVE) {
        return Moved::Failed(Errno::EBUSY);
    }
    let Some(_page_lock) = folio.lock.try_lock() else {
        return Moved::Contended(folio.clone());
    };
    if folio.maybe_pinned() {
        return Moved::Failed(Errno::EBUSY);
    }
    if folio.pages > 1 {
        return Moved::Large(folio.clone());
    }
    let bits = bits_for(vma, false) | Bits::EXCLUSIVE;
    *target = Entry::Page(Mapped { folio: folio.clone(), index: mapped.index, bits });
    Moved::Done
}
