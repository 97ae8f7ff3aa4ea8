//! An address space: its map, its page tables, and what both are made under.

use std::sync::Weak;

use super::folio::Folio;
use super::frames::Frames;
use super::hugetlb::Pool;
use super::page_table::{Bits, Directory, Level};
use super::profile::Profile;
use super::sync::{Arc, AtomicU64, Ordering, RwLock};
use super::vma::{Access, Vma, VmaMap};

/// What all address spaces of a machine share.
#[derive(Debug)]
pub(super) struct Host {
    /// Which kernel it is.
    pub(super) profile: Profile,
    /// Its memory.
    pub(super) frames: Arc<Frames>,
    /// The pool of huge pages.
    pub(super) pool: Arc<Pool>,
    /// The next group of VMAs with common anonymous pages.
    pub(super) next_group: AtomicU64,
    /// All address spaces there are.
    pub(super) spaces: RwLock<Vec<Weak<AddressSpace>>>,
}

impl Host {
    /// The address spaces, of processes that have ended too while a call still uses them.
    pub(super) fn spaces(&self) -> Vec<Arc<AddressSpace>> {
        self.spaces.read().iter().filter_map(Weak::upgrade).collect()
    }
}

/// An address space.
#[derive(Debug)]
pub(super) struct AddressSpace {
    /// The machine.
    pub(super) host: Arc<Host>,
    /// The VMAs, under the map lock.
    pub(super) map: RwLock<VmaMap>,
    /// The page tables.
    pub(super) tables: Directory,
    /// Its process, and calls for it that others are in (`mm_users`). Nothing is mapped once there
    /// is none of them.
    users: AtomicU64,
    /// Where the next mapping without an address is put.
    pub(super) next_address: AtomicU64,
}

impl AddressSpace {
    /// An empty address space.
    pub(super) fn new(host: &Arc<Host>) -> Arc<AddressSpace> {
        let space = Arc::new(AddressSpace {
            host: host.clone(),
            map: RwLock::default(),
            tables: Directory::default(),
            users: AtomicU64::new(1),
            next_address: AtomicU64::new(FIRST_ADDRESS),
        });
        let mut spaces = host.spaces.write();
        spaces.retain(|other| other.strong_count() > 0);
        spaces.push(Arc::downgrade(&space));
        space
    }

    /// Which kernel it is.
    pub(super) fn profile(&self) -> &Profile {
        &self.host.profile
    }

    /// Its process has ended, and no call uses it any more.
    pub(super) fn is_dead(&self) -> bool {
        self.users.load(Ordering::SeqCst) == 0
    }

    /// Keeps it until the result is dropped (`mmget_not_zero`); `None` if it is dead.
    pub(super) fn keep(self: &Arc<Self>) -> Option<Kept> {
        let more = |users| (users > 0).then_some(users + 1);
        let kept = self.users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        kept.is_ok().then(|| Kept(self.clone()))
    }

    /// One user less, its process or a call. Behind the last nothing is mapped any more, and nobody
    /// is told.
    pub(super) fn let_go(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            *self.map.write() = VmaMap::default();
            self.tables.clear();
        }
    }

    /// Works with the VMA at `address`, if there is one, under its lock for readers
    /// (`uffd_lock_vma`). The map itself may change meanwhile; the VMA cannot.
    pub(super) fn with_vma<R>(&self, address: u64, work: impl FnOnce(Option<&Vma>) -> R) -> R {
        let map = self.map.read();
        let Some(cell) = map.find(address).cloned() else {
            drop(map);
            return work(None);
        };
        let vma = cell.read();
        map.look_around(&vma);
        drop(map);
        work(Some(&vma))
    }

    /// Works with the VMAs at two addresses, under their locks for readers; one VMA that has both
    /// addresses is locked once. The first may be given anonymous pages.
    pub(super) fn with_two_vmas<R>(
        &self,
        first: u64,
        second: u64,
        work: impl FnOnce(Option<&Vma>, Option<&Vma>) -> R,
    ) -> R {
        let map = self.map.read();
        let cells = [first, second].map(|address| map.find(address).cloned());
        match &cells {
            [Some(one), Some(two)] if Arc::ptr_eq(one, two) => {
                let vma = one.read();
                map.look_around(&vma);
                drop(map);
                work(Some(&vma), Some(&vma))
            }
            [one, two] => {
                let one = one.as_ref().map(|cell| cell.read());
                if let Some(vma) = &one {
                    map.look_around(vma);
                }
                let two = two.as_ref().map(|cell| cell.read());
                drop(map);
                work(one.as_deref(), two.as_deref())
            }
        }
    }

    /// What the hardware does: if the entry at `address` lets the access through, `work` gets the
    /// folio (none is the zero page) and the byte in it.
    pub(super) fn reach<R>(
        &self,
        address: u64,
        write: bool,
        work: impl FnOnce(Option<&Folio>, usize) -> R,
    ) -> Option<R> {
        let slot = self.tables.find(address)?;
        reach_in(&mut slot.lock(), address, write, work)
    }

    /// Makes sure that a VMA, which [`with_vma`](Self::with_vma) has locked, can have anonymous
    /// pages.
    pub(super) fn prepare_anonymous(&self, vma: &Vma) {
        vma.prepare_anonymous(&self.host.next_group);
    }
}

/// A call's hold on an address space.
#[derive(Debug)]
pub(super) struct Kept(Arc<AddressSpace>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// As [`AddressSpace::reach`], in what maps the address, which is locked.
pub(super) fn reach_in<R>(
    level: &mut Level,
    address: u64,
    write: bool,
    work: impl FnOnce(Option<&Folio>, usize) -> R,
) -> Option<R> {
    let huge = matches!(level, Level::Huge(_));
    let entry = level.entry(address)?;
    if !entry.allows(write) {
        return None;
    }
    let (folio, at) = locate(entry, huge, address);
    Some(work(folio, at))
}

/// The folio that a present or swapped entry refers to, and the position in it of `address`.
pub(super) fn locate(
    entry: &super::page_table::Entry,
    huge: bool,
    address: u64,
) -> (Option<&Folio>, usize) {
    use super::folio::{HUGE, PAGE, PAGE_BYTES};
    use super::page_table::Entry;
    let size = if huge { HUGE } else { PAGE };
    let offset = usize::try_from(address % size).expect("an offset in a page");
    match entry {
        Entry::Page(mapped) | Entry::Swap(mapped) => {
            (Some(&mapped.folio), usize::from(mapped.index) * PAGE_BYTES + offset)
        }
        Entry::None | Entry::Zero(_) | Entry::Marker(_) | Entry::Migration(_) => (None, offset),
    }
}

/// The bits of a new entry that shall be writable if its VMA is.
pub(super) fn bits_for(vma: &Vma, protected: bool) -> Bits {
    let mut bits = Bits::empty();
    bits.set(Bits::PROTECTED, protected);
    bits.set(Bits::WRITE, vma.access == Access::ReadWrite && !protected);
    bits.set(Bits::NO_ACCESS, vma.access == Access::None);
    bits
}

/// The end of user memory.
pub(super) const TASK_SIZE: u64 = 0x7FFF_FFFF_F000;
/// Where mappings without an address begin.
const FIRST_ADDRESS: u64 = 0x7000_0000_0000;
