//! Page tables as a privileged observer sees them, without touching the memory.

use super::address_space::{AddressSpace, locate};
use super::page_table::{Bits, Entry, Level, Marker};

/// An entry as it is seen (section 0.1 of the specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// N.
    None,
    /// P, PS, PW, or a part of T.
    Anonymous {
        /// P, not PS.
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

/// The entry at an address.
pub(super) fn observe(space: &AddressSpace, address: u64) -> Observed {
    let Some(slot) = space.tables.find(address) else { return Observed::None };
    let mut level = slot.lock();
    let huge = matches!(&*level, Level::Huge(_));
    let Some(entry) = level.entry(address) else { return Observed::None };
    let protected = entry.is_protected();
    match entry {
        Entry::None => Observed::None,
        Entry::Page(mapped) if mapped.folio.anonymous => {
            let exclusive = mapped.bits.contains(Bits::EXCLUSIVE);
            Observed::Anonymous { exclusive, protected, huge }
        }
        Entry::Page(_) => Observed::File { protected },
        Entry::Zero(_) => Observed::Zero { protected },
        Entry::Marker(Marker::Protect) => Observed::ProtectMarker,
        Entry::Marker(Marker::Poison) => Observed::PoisonMarker,
        Entry::Marker(Marker::Guard) => Observed::GuardMarker,
        Entry::Swap(_) => Observed::Swap { protected },
        Entry::Migration(..) => Observed::Migration,
    }
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
