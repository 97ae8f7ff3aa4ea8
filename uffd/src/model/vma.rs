//! Mapped ranges, and the ordered set of them that a map is.

use std::collections::BTreeMap;
use std::ops::Range;

use super::context::{Context, Modes};
use super::folio::PAGE;
use super::hugetlb::Reservation;
use super::page_cache::{FileKind, MemoryFile};
use super::sync::{Arc, AtomicBool, AtomicU64, Ordering, RwLock};
use crate::features::Features;

/// How memory may be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `PROT_NONE`.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

/// What a VMA is made of.
#[derive(Clone, Debug)]
pub(super) enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// Anonymous memory that the kernel may drop (MAP_DROPPABLE).
    Droppable,
    /// Memory of the kernel's own, such as the vdso.
    Special,
    /// A file.
    File(Arc<MemoryFile>),
}

impl Backing {
    /// There is a file.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Backing::File(_))
    }
}

/// Who hears of the faults in a VMA, and of which.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    /// The owner.
    pub(super) context: Arc<Context>,
    /// Of which.
    pub(super) modes: Modes,
}

/// A mapped range.
#[derive(Debug)]
pub(super) struct Vma {
    /// The first byte.
    pub(super) start: u64,
    /// The byte behind the last.
    pub(super) end: u64,
    /// What it is made of.
    pub(super) backing: Backing,
    /// The page of the file at `start`; for anonymous memory the page number of the place where
    /// it was mapped first, which decides what may be merged.
    pub(super) page: u64,
    /// `MAP_SHARED`.
    pub(super) shared: bool,
    /// The rights.
    pub(super) access: Access,
    /// mprotect could make it writable.
    pub(super) may_write: bool,
    /// mlocked.
    pub(super) locked: bool,
    /// Huge pages on first touch.
    pub(super) huge: bool,
    /// Equal pages may be merged.
    pub(super) mergeable: bool,
    /// The group of VMAs that share anonymous pages; 0 before there is the first. A fork copies
    /// page tables of private memory only where there is one.
    pub(super) anon_group: AtomicU64,
    /// The group of a neighbour that it shares once it needs one; 0 if there is none to share.
    /// It is right only while it has no group, and as old as its lock was taken.
    pub(super) group_around: AtomicU64,
    /// Its pages may be those of the process that it was forked from. It then merges with none that
    /// has no group.
    pub(super) forked: bool,
    /// It or a part of it has had a guard marker (`VM_MAYBE_GUARD`).
    pub(super) guarded: AtomicBool,
    /// Its pages were counted as memory that it may need (`VM_ACCOUNT`), which they are once it is
    /// private and writable.
    pub(super) accounted: bool,
    /// Huge pages that were set aside for it.
    pub(super) reservation: Option<Arc<Reservation>>,
    /// The userfaultfd that has it.
    pub(super) registration: Option<Registration>,
}

impl Vma {
    /// Private or shared anonymous memory as the page tables see it: no file behind it.
    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous | Backing::Droppable)
    }

    /// The file.
    pub(super) fn file(&self) -> Option<&Arc<MemoryFile>> {
        match &self.backing {
            Backing::File(file) => Some(file),
            _ => None,
        }
    }

    /// The kind of the file.
    pub(super) fn kind(&self) -> Option<FileKind> {
        self.file().map(|file| file.kind)
    }

    /// Made of huge pages of the pool.
    pub(super) fn is_hugetlb(&self) -> bool {
        self.kind() == Some(FileKind::Hugetlb)
    }

    /// The registered modes; none if nobody has it.
    pub(super) fn modes(&self) -> Modes {
        self.registration.as_ref().map_or(Modes::empty(), |registration| registration.modes)
    }

    /// The owner.
    pub(super) fn owner(&self) -> Option<&Arc<Context>> {
        self.registration.as_ref().map(|registration| &registration.context)
    }

    /// Write faults on protected pages are resolved without a message.
    pub(super) fn is_async(&self) -> bool {
        self.owner().is_some_and(|context| context.has(Features::WP_ASYNC))
            && self.modes().contains(Modes::PROTECT)
    }

    /// Protecting a hole leaves a marker.
    pub(super) fn marks_holes(&self) -> bool {
        !self.is_anonymous()
            || self.owner().is_some_and(|context| context.has(Features::WP_UNPOPULATED))
    }

    /// The page of the file that `address` maps.
    pub(super) fn page_at(&self, address: u64) -> u64 {
        self.page + (address - self.start) / PAGE
    }

    /// The whole range.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// It contains all of a range.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        self.start <= range.start && range.end <= self.end
    }

    /// The part of a range that it maps.
    pub(super) fn intersection(&self, range: &Range<u64>) -> Range<u64> {
        self.start.max(range.start)..self.end.min(range.end)
    }

    /// Stores reach shared pages, or private ones.
    pub(super) fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Gives it a group for anonymous pages, if it has none: that of a neighbour that differs in
    /// its rights only, or one of its own.
    pub(super) fn prepare_anonymous(&self, next: &AtomicU64) {
        if self.anon_group.load(Ordering::SeqCst) == 0 {
            let group = match self.group_around.load(Ordering::SeqCst) {
                0 => next.fetch_add(1, Ordering::SeqCst),
                around => around,
            };
            let _ = self.anon_group.compare_exchange(0, group, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Gives it other rights. Becoming writable is counted, and forgotten only while there are no
    /// anonymous pages.
    pub(super) fn set_access(&mut self, access: Access) {
        self.access = access;
        if access == Access::ReadWrite {
            self.accounted |= !self.shared && !self.is_hugetlb();
        } else if self.is_anonymous() && self.anon_group.load(Ordering::SeqCst) == 0 {
            self.accounted = false;
        }
    }

    /// A copy.
    pub(super) fn duplicate(&self) -> Vma {
        Vma {
            backing: self.backing.clone(),
            anon_group: AtomicU64::new(self.anon_group.load(Ordering::SeqCst)),
            group_around: AtomicU64::new(0),
            guarded: AtomicBool::new(self.guarded.load(Ordering::SeqCst)),
            reservation: self.reservation.clone(),
            registration: self.registration.clone(),
            ..*self
        }
    }

    /// The VMA that follows this one directly goes on where it ends, and differs in rights and
    /// owner at most.
    fn goes_on_in(&self, next: &Vma) -> bool {
        let same_backing = match (&self.backing, &next.backing) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::File(a), Backing::File(b)) => {
                Arc::ptr_eq(a, b) && a.kind != FileKind::Hugetlb
            }
            _ => false,
        };
        self.end == next.start
            && same_backing
            && self.page + (self.end - self.start) / PAGE == next.page
            && (self.shared, self.may_write, self.modes())
                == (next.shared, next.may_write, next.modes())
            && (self.locked, self.huge, self.mergeable, self.accounted)
                == (next.locked, next.huge, next.mergeable, next.accounted)
    }

    /// The VMA that follows this one directly could be one with it.
    fn merges_with(&self, next: &Vma) -> bool {
        let same_owner = match (self.owner(), next.owner()) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let group = self.anon_group.load(Ordering::SeqCst);
        let next_group = next.anon_group.load(Ordering::SeqCst);
        self.goes_on_in(next)
            && same_owner
            && self.access == next.access
            && (group == next_group
                || (group == 0 && !next.forked)
                || (next_group == 0 && !self.forked))
    }
}

/// A VMA under its own lock.
pub(super) type VmaCell = RwLock<Vma>;

/// The VMAs of an address space, by their start.
#[derive(Debug, Default)]
pub(super) struct VmaMap {
    vmas: BTreeMap<u64, Arc<VmaCell>>,
}

impl VmaMap {
    /// The VMA that contains `address`.
    pub(super) fn find(&self, address: u64) -> Option<&Arc<VmaCell>> {
        let (_, cell) = self.vmas.range(..=address).next_back()?;
        (address < cell.read().end).then_some(cell)
    }

    /// Notes for a VMA, which the caller has locked, whose group for anonymous pages it would
    /// share (`find_mergeable_anon_vma`).
    pub(super) fn look_around(&self, vma: &Vma) {
        if vma.shared || vma.anon_group.load(Ordering::SeqCst) != 0 {
            return;
        }
        let lent = |other: &VmaCell, goes_on: &dyn Fn(&Vma) -> bool| {
            let other = other.read();
            let group = other.anon_group.load(Ordering::SeqCst);
            (group != 0 && !other.forked && goes_on(&other)).then_some(group)
        };
        let next = self.vmas.get(&vma.end);
        let before = self.vmas.range(..vma.start).next_back();
        let group = next
            .and_then(|cell| lent(cell, &|next| vma.goes_on_in(next)))
            .or_else(|| before.and_then(|(_, cell)| lent(cell, &|one| one.goes_on_in(vma))));
        vma.group_around.store(group.unwrap_or(0), Ordering::SeqCst);
    }

    /// The VMAs that intersect a range, in address order.
    pub(super) fn in_range(&self, range: &Range<u64>) -> Vec<Arc<VmaCell>> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.find(range.start).map_or(range.start, |cell| cell.read().start);
        self.vmas.range(first..range.end).map(|(_, cell)| cell.clone()).collect()
    }

    /// All VMAs, in address order.
    pub(super) fn all(&self) -> Vec<Arc<VmaCell>> {
        self.vmas.values().cloned().collect()
    }

    /// Splits the VMA that `address` is inside of.
    pub(super) fn split_at(&mut self, address: u64) {
        let Some(cell) = self.find(address) else { return };
        let mut vma = cell.write();
        if vma.start == address {
            return;
        }
        let mut upper = vma.duplicate();
        upper.page = vma.page_at(address);
        upper.start = address;
        vma.end = address;
        drop(vma);
        self.insert(upper);
    }

    /// Adds a VMA where none is.
    pub(super) fn insert(&mut self, vma: Vma) {
        let start = vma.start;
        let before = self.vmas.insert(start, Arc::new(RwLock::new(vma)));
        assert!(before.is_none(), "two VMAs start at {start:#x}");
    }

    /// Takes all VMAs out of a range, split at its ends.
    pub(super) fn remove(&mut self, range: &Range<u64>) -> Vec<Arc<VmaCell>> {
        self.split_at(range.start);
        self.split_at(range.end);
        let cells = self.in_range(range);
        for cell in &cells {
            self.vmas.remove(&cell.read().start);
        }
        cells
    }

    /// Makes one VMA of neighbours that do not differ, in and around a range.
    pub(super) fn merge_around(&mut self, range: &Range<u64>) {
        let around = range.start.saturating_sub(PAGE)..range.end.saturating_add(PAGE);
        let mut previous: Option<Arc<VmaCell>> = None;
        for cell in self.in_range(&around) {
            if let Some(lower) = previous.take() {
                let mut lower_vma = lower.write();
                let vma = cell.read();
                if lower_vma.merges_with(&vma) {
                    let group = lower_vma.anon_group.load(Ordering::SeqCst);
                    if group == 0 {
                        let group = vma.anon_group.load(Ordering::SeqCst);
                        lower_vma.anon_group.store(group, Ordering::SeqCst);
                        lower_vma.forked = vma.forked;
                    }
                    lower_vma
                        .guarded
                        .fetch_or(vma.guarded.load(Ordering::SeqCst), Ordering::SeqCst);
                    lower_vma.end = vma.end;
                    self.vmas.remove(&vma.start);
                    drop(lower_vma);
                    previous = Some(lower);
                    continue;
                }
            }
            previous = Some(cell);
        }
    }
}
