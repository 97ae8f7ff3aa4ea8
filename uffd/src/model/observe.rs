//! Page tables as a privileged observer sees them, without touching the memory.

use super::address_space::{AddressSpace, locate};
use super::page_table::{Entry, Level, Marker, Slot, index_in_table};
use super::sync::Arc;

/// An entry as it is seen (section 0.1 of the specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// N.
    None,
    /// P, PS, PW, or a part of T.
    Anonymous {
        /// Mapped here and nowhere else. That is what an observer sees; whether the entry may be
        /// written to without a copy (P, not PS) is a bit of the entry that does not show.
        exclusive: bool,
        /// With the uffd-wp bit.
        protected: bool,
        /// Mapped by a huge entry.
        huge: bool,
    },
    /// Z, ZW, HZ.
    Zero {
        /// With the uffd-wp bit.
        protected: bool,
    },
    /// F, FW.
    File {
        /// With the uffd-wp bit.
        protected: bool,
    },
    /// W.
    ProtectMarker,
    /// X.
    PoisonMarker,
    /// G.
    GuardMarker,
    /// S, SW.
    Swap {
        /// With the uffd-wp bit.
        protected: bool,
    },
    /// M.
    Migration,
}

/// The entry at an address of one of the machine's address spaces.
pub(super) fn observe(
    space: &AddressSpace,
    spaces: &[Arc<AddressSpace>],
    address: u64,
) -> Observed {
    let Some(slot) = space.tables.find(address) else { return Observed::None };
    let alone = is_mapped_once(spaces, &slot, address);
    let mut level = slot.lock();
    let huge = matches!(&*level, Level::Huge(_));
    let Some(entry) = level.entry(address) else { return Observed::None };
    let protected = entry.is_protected();
    match entry {
        Entry::None => Observed::None,
        Entry::Page(mapped) if mapped.folio.anonymous => {
            Observed::Anonymous { exclusive: alone, protected, huge }
        }
        Entry::Page(_) => Observed::File { protected },
        Entry::Zero(_) => Observed::Zero { protected },
        Entry::Marker(Marker::Protect) => Observed::ProtectMarker,
        // The observer's file has no bit for it in huge entries.
        Entry::Marker(Marker::Poison { .. }) if huge => Observed::None,
        Entry::Marker(Marker::Poison { .. }) => Observed::PoisonMarker,
        Entry::Marker(Marker::Guard { .. }) => Observed::GuardMarker,
        Entry::Swap(_) => Observed::Swap { protected },
        Entry::Migration(..) => Observed::Migration,
    }
}

/// Whether no other entry of any process maps what the entry of an address does.
fn is_mapped_once(spaces: &[Arc<AddressSpace>], slot: &Slot, address: u64) -> bool {
    let (folio, index) = match &mut *slot.lock() {
        Level::Huge(Entry::Page(mapped)) => {
            (mapped.folio.clone(), index_in_table(address).try_into().expect("below 512"))
        }
        level => match level.entry(address) {
            Some(Entry::Page(mapped)) => (mapped.folio.clone(), mapped.index),
            _ => return false,
        },
    };
    // One more than the entry's is held by this function.
    let alone = Arc::strong_count(&folio) == 2;
    let count = |space: &Arc<AddressSpace>| space.tables.count(&folio, Some(index));
    let parts = || spaces.iter().map(count).sum::<usize>();
    alone || (folio.pages > 1 && parts() == 1)
}

/// The byte at an address, if the entry has a page.
pub(super) fn peek(space: &AddressSpace, address: u64) -> Option<u8> {
    let slot = space.tables.find(address)?;
    let mut level = slot.lock();
    let huge = matches!(&*level, Level::Huge(_));
    let entry = level.entry(address)?;
    if !entry.is_present() {
        return None;
    }
    let (folio, at) = locate(entry, huge, address);
    Some(folio.map_or(0, |folio| folio.load(at)))
}
