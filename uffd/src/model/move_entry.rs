//! What MOVE does to one entry, under both page-table locks.

use super::folio::Folio;
use super::page_table::{Bits, Entry, Mapped};
use super::read_write_protect::moved_bits;
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
            if let Err(moved) = may_move(mapped) {
                return moved;
            }
            mapped.bits = moved_bits(vma);
            *target = std::mem::take(source);
            Moved::Done
        }
        // The zero page is put there anew, so a protection is lost (`move_zeropage_pte`).
        Entry::Zero(_) => {
            *target = Entry::Zero(moved_bits(vma) - Bits::WRITE - Bits::EXCLUSIVE);
            *source = Entry::None;
            Moved::Done
        }
        Entry::Swap(mapped) => {
            if !mapped.bits.contains(Bits::EXCLUSIVE) || mapped.folio.pages > 1 {
                return Moved::Failed(Errno::EBUSY);
            }
            // The entry keeps its bits, the protection too (`move_swap_pte`).
            mapped.bits |= moved_bits(vma) & Bits::ARMED;
            *target = std::mem::take(source);
            Moved::Done
        }
        Entry::Migration(migrating) => Moved::Migrating(migrating.sleeper.clone()),
        Entry::Marker(_) => Moved::Failed(Errno::EFAULT),
    }
}

/// A page can be moved if it is this address space's alone, and no device's. Whoever has the page
/// lock is waited for (`folio_trylock`). It need not be taken: who gets it now can do nothing to
/// the entry before the page-table locks are given back.
fn may_move(mapped: &Mapped) -> Result<(), Moved> {
    let folio = &mapped.folio;
    if !folio.anonymous || !mapped.seems_exclusive() {
        return Err(Moved::Failed(Errno::EBUSY));
    }
    if folio.lock.is_held() {
        return Err(Moved::Contended(folio.clone()));
    }
    if folio.maybe_pinned() {
        return Err(Moved::Failed(Errno::EBUSY));
    }
    if folio.pages > 1 { Err(Moved::Large(folio.clone())) } else { Ok(()) }
}
