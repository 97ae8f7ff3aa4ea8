//! Page tables: for each 2 MiB of an address space nothing, a table of 512 entries, or one huge
//! entry, under one lock. (The kernel may have a lock for the table and another for the entry that
//! refers to it. With one for both, a table cannot vanish between the two.)

use std::collections::BTreeMap;
use std::ops::Range;

use super::folio::{Folio, HUGE, PAGE, PAGES_PER_HUGE};
use super::sync::{Arc, Mutex, MutexGuard, Ordering, RwLock};
use super::wait_queue::Sleeper;

bitflags::bitflags! {
    /// What an entry says besides what it refers to.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Bits: u8 {
        /// The hardware lets stores through.
        const WRITE = 1;
        /// The uffd-wp bit.
        const PROTECTED = 2;
        /// The anonymous page belongs to this address space alone.
        const EXCLUSIVE = 4;
        /// The hardware lets nothing through (PROT_NONE).
        const NO_ACCESS = 8;
        /// RWPROTECT: the next access of any kind is told.
        const ARMED = 16;
    }
}

/// What is written where a page would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// W: this hole is write-protected.
    Protect,
    /// X.
    Poison {
        /// PAGEMAP_SCAN has protected it.
        protected: bool,
    },
    /// G.
    Guard {
        /// PAGEMAP_SCAN has protected it.
        protected: bool,
    },
}

/// A folio's page that an entry refers to.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    /// The folio.
    pub(super) folio: Arc<Folio>,
    /// The page of the folio; 0 in huge entries.
    pub(super) index: u16,
    /// The bits.
    pub(super) bits: Bits,
}

impl Mapped {
    /// MOVE takes the page for this address space's alone.
    pub(super) fn seems_exclusive(&self) -> bool {
        match self.folio.pages {
            1 => self.bits.contains(Bits::EXCLUSIVE),
            _ => self.folio.first_exclusive.load(Ordering::SeqCst),
        }
    }
}

/// A page that is on its way to another frame.
#[derive(Clone, Debug)]
pub(super) struct Migrating {
    /// The page, as it will be again.
    pub(super) page: Mapped,
    /// Whoever needs it sleeps on this.
    pub(super) sleeper: Arc<Sleeper>,
}

/// One entry, of a table or huge.
#[derive(Clone, Debug, Default)]
pub(super) enum Entry {
    /// N.
    #[default]
    None,
    /// P, PS, PW, F, FW; or T, TW and hugetlb if the entry is huge.
    Page(Mapped),
    /// Z, ZW; or HZ.
    Zero(Bits),
    /// W, X, G.
    Marker(Marker),
    /// S, SW: the folio is what the swap slot holds.
    Swap(Mapped),
    /// M.
    Migration(Box<Migrating>),
}

impl Marker {
    /// X, as POISON makes it.
    pub(super) const POISON: Marker = Marker::Poison { protected: false };
    /// G, as MADV_GUARD_INSTALL makes it.
    pub(super) const GUARD: Marker = Marker::Guard { protected: false };

    /// It is the marker of protection, or is protected besides.
    fn is_protected(self) -> bool {
        match self {
            Marker::Protect => true,
            Marker::Poison { protected } | Marker::Guard { protected } => protected,
        }
    }

    /// It without protection besides what it is.
    pub(super) fn bare(self) -> Marker {
        match self {
            Marker::Protect => Marker::Protect,
            Marker::Poison { .. } => Marker::POISON,
            Marker::Guard { .. } => Marker::GUARD,
        }
    }
}

impl Entry {
    /// N.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Entry::None)
    }

    /// The hardware finds something.
    pub(super) fn is_present(&self) -> bool {
        matches!(self, Entry::Page(_) | Entry::Zero(_))
    }

    /// The bits, if it has any.
    pub(super) fn bits(&self) -> Option<Bits> {
        match self {
            Entry::Page(mapped) | Entry::Swap(mapped) => Some(mapped.bits),
            Entry::Migration(migrating) => Some(migrating.page.bits),
            Entry::Zero(bits) => Some(*bits),
            Entry::None | Entry::Marker(_) => None,
        }
    }

    /// The bits, to be changed.
    pub(super) fn bits_mut(&mut self) -> Option<&mut Bits> {
        match self {
            Entry::Page(mapped) | Entry::Swap(mapped) => Some(&mut mapped.bits),
            Entry::Migration(migrating) => Some(&mut migrating.page.bits),
            Entry::Zero(bits) => Some(bits),
            Entry::None | Entry::Marker(_) => None,
        }
    }

    /// It carries the uffd-wp bit, or is the marker of it.
    pub(super) fn is_protected(&self) -> bool {
        matches!(self, Entry::Marker(marker) if marker.is_protected())
            || self.bits().is_some_and(|bits| bits.contains(Bits::PROTECTED))
    }

    /// It has a page, and RWPROTECT has made it inaccessible.
    pub(super) fn is_armed(&self) -> bool {
        self.is_present() && self.bits().is_some_and(|bits| bits.contains(Bits::ARMED))
    }

    /// A load or a store goes through without a fault.
    pub(super) fn allows(&self, write: bool) -> bool {
        let bits = match self {
            Entry::Page(mapped) => mapped.bits,
            Entry::Zero(bits) => *bits,
            _ => return false,
        };
        !bits.intersects(Bits::NO_ACCESS | Bits::ARMED) && (!write || bits.contains(Bits::WRITE))
    }
}

/// A table of 512 entries.
#[derive(Debug)]
pub(super) struct Table(Box<[Entry]>);

impl Table {
    /// A table without entries.
    pub(super) fn empty() -> Table {
        Table(vec![Entry::None; 512].into_boxed_slice())
    }

    /// The entries, from the first.
    pub(super) fn entries(&mut self) -> &mut [Entry] {
        &mut self.0
    }
}

/// What 2 MiB of an address space are mapped by.
#[derive(Debug, Default)]
pub(super) enum Level {
    /// Nothing, and there is no table.
    #[default]
    Empty,
    /// A table.
    Table(Table),
    /// One entry: a transparent huge page, or hugetlb.
    Huge(Entry),
}

impl Level {
    /// The table, made if there is nothing yet; `None` if a huge page is in its place.
    pub(super) fn table_or_new(&mut self) -> Option<&mut Table> {
        if matches!(self, Level::Empty) {
            *self = Level::Table(Table::empty());
        }
        match self {
            Level::Table(table) => Some(table),
            Level::Empty | Level::Huge(_) => None,
        }
    }

    /// The entry for `address`: a table's, or the huge one.
    pub(super) fn entry(&mut self, address: u64) -> Option<&mut Entry> {
        match self {
            Level::Empty => None,
            Level::Table(table) => Some(&mut table.0[index_in_table(address)]),
            Level::Huge(entry) => Some(entry),
        }
    }

    /// The mapping by one huge entry becomes one by 512; the folio stays whole. That of a file's
    /// page is dropped: its pages come back by faults.
    pub(super) fn split(&mut self) {
        let Level::Huge(entry) = self else { return };
        if let Entry::Page(mapped) = entry
            && !mapped.folio.anonymous
        {
            *self = Level::Empty;
            return;
        }
        let mut table = Table::empty();
        for (index, small) in (0..512).zip(table.entries()) {
            *small = match &*entry {
                Entry::Page(mapped) => {
                    Entry::Page(Mapped { folio: mapped.folio.clone(), index, bits: mapped.bits })
                }
                Entry::Zero(bits) => Entry::Zero(*bits),
                _ => Entry::None,
            };
        }
        *self = Level::Table(table);
    }
}

/// The lock of a page table, and what is under it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    level: Mutex<Level>,
}

impl Slot {
    /// Takes the page-table lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, Level> {
        self.level.lock()
    }
}

/// All page tables of an address space, by the number of their 2 MiB.
#[derive(Debug, Default)]
pub(super) struct Directory {
    slots: RwLock<BTreeMap<u64, Arc<Slot>>>,
}

impl Directory {
    /// The slot that maps `address`, if one was made.
    pub(super) fn find(&self, address: u64) -> Option<Arc<Slot>> {
        self.slots.read().get(&(address / HUGE)).cloned()
    }

    /// The slot that maps `address`.
    pub(super) fn get(&self, address: u64) -> Arc<Slot> {
        if let Some(slot) = self.find(address) {
            return slot;
        }
        self.slots.write().entry(address / HUGE).or_default().clone()
    }

    /// The slots that were made in a range, each with the part of the range that it maps.
    pub(super) fn in_range(&self, range: Range<u64>) -> Vec<(Arc<Slot>, Range<u64>)> {
        if range.is_empty() {
            return Vec::new();
        }
        let slots = self.slots.read();
        slots
            .range(range.start / HUGE..=(range.end - 1) / HUGE)
            .map(|(number, slot)| {
                let start = range.start.max(number * HUGE);
                (slot.clone(), start..range.end.min((number + 1) * HUGE))
            })
            .collect()
    }

    /// Whether the table of the next level exists that `address` belongs to: something in its
    /// gigabyte is mapped.
    pub(super) fn has_upper(&self, address: u64) -> bool {
        let start = address / GIGABYTE * GIGABYTE;
        let slots = self.in_range(start..start + GIGABYTE);
        slots.iter().any(|(slot, _)| !matches!(&*slot.lock(), Level::Empty))
    }

    /// Counts the entries that map one page of a folio, or any page of it.
    pub(super) fn count(&self, folio: &Arc<Folio>, index: Option<u16>) -> usize {
        let slots: Vec<Arc<Slot>> = self.slots.read().values().cloned().collect();
        let same = |entry: &Entry, huge: bool| {
            matches!(entry, Entry::Page(mapped)
                if Arc::ptr_eq(&mapped.folio, folio)
                    && (huge || index.is_none_or(|index| mapped.index == index)))
        };
        let in_level = |level: &mut Level| match level {
            Level::Empty => 0,
            Level::Huge(entry) => usize::from(same(entry, true)),
            Level::Table(table) => table.entries().iter().filter(|one| same(one, false)).count(),
        };
        slots.iter().map(|slot| in_level(&mut slot.lock())).sum()
    }

    /// Does something with each entry, of tables and huge.
    pub(super) fn each_entry(&self, mut work: impl FnMut(&mut Entry)) {
        let slots: Vec<Arc<Slot>> = self.slots.read().values().cloned().collect();
        for slot in slots {
            match &mut *slot.lock() {
                Level::Empty => {}
                Level::Huge(entry) => work(entry),
                Level::Table(table) => table.entries().iter_mut().for_each(&mut work),
            }
        }
    }

    /// Lets go of everything.
    pub(super) fn clear(&self) {
        self.slots.write().clear();
    }
}

/// Bytes that one table of the next level maps.
const GIGABYTE: u64 = 1 << 30;

/// The position of an address's entry in its table.
pub(super) fn index_in_table(address: u64) -> usize {
    usize::try_from(address / PAGE % PAGES_PER_HUGE).expect("less than 512")
}

/// The positions of the entries of a range that one table maps.
pub(super) fn indices(range: &Range<u64>) -> Range<usize> {
    let first = index_in_table(range.start);
    first..first + usize::try_from((range.end - range.start) / PAGE).expect("at most 512")
}

/// The range is all that its table maps.
pub(super) fn is_whole(range: &Range<u64>) -> bool {
    range.end - range.start == HUGE
}

/// Both page-table locks of a move, in address order.
pub(super) enum PairGuard<'a> {
    /// Source and destination are in one table.
    One(MutexGuard<'a, Level>),
    /// Two tables.
    Two {
        /// The source's.
        source: MutexGuard<'a, Level>,
        /// The destination's.
        destination: MutexGuard<'a, Level>,
    },
}

/// Takes the locks of two page tables. The one of the lower address is taken first, so that two
/// moves in opposite directions never wait for each other; one table is locked once.
pub(super) fn lock_pair<'a>(
    source: (&'a Slot, u64),
    destination: (&'a Slot, u64),
) -> PairGuard<'a> {
    let (from, to) = (source.1 / HUGE, destination.1 / HUGE);
    if from == to {
        return PairGuard::One(source.0.lock());
    }
    if from < to {
        let source = source.0.lock();
        PairGuard::Two { source, destination: destination.0.lock() }
    } else {
        let destination = destination.0.lock();
        PairGuard::Two { source: source.0.lock(), destination }
    }
}
