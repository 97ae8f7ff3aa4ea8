//! What the kernel does about an access that the hardware has refused: find out why, resolve it,
//! or let the thread wait for a userfaultfd (the table of section 3.2 of the specification).

use super::address_space::{AddressSpace, bits_for};
use super::context::{Context, Modes};
use super::file_faults;
use super::folio::{Folio, HUGE};
use super::hugetlb_faults;
use super::page_table::{Bits, Entry, Level, Mapped, Marker, Slot};
use super::read_write_protect::waits_for_access;
use super::swap;
use super::sync::{Arc, AtomicBool, MutexGuard, Ordering, yield_now};
use super::vma::{Access, Backing, Vma};
use super::wait_queue::{FaultWaiter, Sleeper};
use crate::features::Features;

/// A thread.
#[derive(Debug)]
pub(super) struct ThreadState {
    /// Its id, as messages show it.
    pub(super) id: u32,
    /// It may trace any process (CAP_SYS_PTRACE).
    pub(super) privileged: bool,
    /// Its address space.
    pub(super) space: Arc<AddressSpace>,
    /// It was killed and only has to notice.
    pub(super) fatal: AtomicBool,
}

impl ThreadState {
    /// It was killed.
    pub(super) fn is_dying(&self) -> bool {
        self.fatal.load(Ordering::SeqCst)
    }
}

/// An access that the hardware has refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// Who.
    pub(super) thread: &'a ThreadState,
    /// In which address space.
    pub(super) space: &'a Arc<AddressSpace>,
    /// Where, to the byte.
    pub(super) address: u64,
    /// A store.
    pub(super) write: bool,
    /// By user code; otherwise by the kernel for user code.
    pub(super) user: bool,
    /// The caller does not want to wait: no message is queued.
    pub(super) no_wait: bool,
}

/// Why an access fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not mapped, not allowed, or a guard.
    Segment,
    /// No page can be had.
    Bus,
    /// The page is poisoned.
    Poison,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Step {
    /// Try the access again.
    Again,
    /// It cannot be done.
    Failed(Failure),
    /// The thread sleeps, then tries again.
    Parked(Waiting),
    /// The thread would sleep and does not want to.
    WouldWait,
}

/// A sleep of a thread, and the queue that it is in.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The sleep.
    pub(super) sleeper: Arc<Sleeper>,
    /// The userfaultfd, unless it waits for a migration.
    pub(super) context: Option<Arc<Context>>,
}

impl Waiting {
    /// The thread sleeps no more, for whatever reason.
    pub(super) fn leave(&self) {
        if let Some(context) = &self.context {
            context.faults.remove(&self.sleeper);
        }
    }
}

/// Resolves one fault, or has the thread wait.
pub(super) fn resolve(request: &Request<'_>) -> Step {
    request.space.with_vma(request.address, |vma| {
        let Some(vma) = vma else { return Step::Failed(Failure::Segment) };
        let allowed = match vma.access {
            Access::None => false,
            Access::Read => !request.write,
            Access::ReadWrite => true,
        };
        if !allowed {
            return Step::Failed(Failure::Segment);
        }
        if vma.is_hugetlb() {
            return hugetlb_faults::resolve(request, vma);
        }
        in_vma(request, vma)
    })
}

fn in_vma(request: &Request<'_>, vma: &Vma) -> Step {
    let slot = request.space.tables.get(request.address);
    let mut level = slot.lock();
    let block = request.address / HUGE * HUGE;
    let takes_huge = vma.huge && vma.is_anonymous() && vma.contains(&(block..block + HUGE));
    if matches!(&*level, Level::Empty) && takes_huge {
        drop(level);
        return missing_huge(request, vma, &slot);
    }
    if matches!(&*level, Level::Huge(_)) {
        return present_huge(request, vma, level);
    }
    if matches!(&*level, Level::Empty) && vma.backing.is_file() {
        // Its table is made when there is something to put in.
        drop(level);
        return missing(request, vma, &slot, false);
    }
    let Some(table) = level.table_or_new() else { return Step::Again };
    let entry = &mut table.entries()[super::page_table::index_in_table(request.address)];
    if entry.allows(request.write) {
        return Step::Again;
    }
    if entry.is_armed() {
        let waits = waits_for_access(vma, entry);
        drop(level);
        return if waits { userfault(request, vma, Modes::READ_WRITE) } else { Step::Again };
    }
    match entry {
        Entry::None => {
            drop(level);
            missing(request, vma, &slot, false)
        }
        Entry::Marker(Marker::Poison { .. }) => Step::Failed(Failure::Poison),
        Entry::Marker(Marker::Guard { .. }) => Step::Failed(Failure::Segment),
        Entry::Marker(Marker::Protect) if vma.modes().contains(Modes::PROTECT) => {
            drop(level);
            missing(request, vma, &slot, true)
        }
        Entry::Marker(Marker::Protect) => {
            // A leftover of a registration that is gone.
            *entry = Entry::None;
            Step::Again
        }
        Entry::Swap(_) => {
            swap::fault_in(vma, entry);
            Step::Again
        }
        Entry::Migration(migrating) => {
            Step::Parked(Waiting { sleeper: migrating.sleeper.clone(), context: None })
        }
        Entry::Page(_) | Entry::Zero(_) => {
            if waits_for_write(vma, entry) {
                drop(level);
                return userfault(request, vma, Modes::PROTECT);
            }
            make_writable(request.space, vma, entry);
            Step::Again
        }
    }
}

/// The entry is protected, and a write of it is for a userfaultfd. In the asynchronous mode the
/// protection is taken off here and now.
fn waits_for_write(vma: &Vma, entry: &mut Entry) -> bool {
    if !vma.modes().contains(Modes::PROTECT) || !entry.is_protected() {
        return false;
    }
    if !vma.is_async() {
        return true;
    }
    if let Some(bits) = entry.bits_mut() {
        bits.remove(Bits::PROTECTED);
    }
    false
}

/// Lets stores through: to the page itself where it may be changed, or to a copy.
pub(super) fn make_writable(space: &AddressSpace, vma: &Vma, entry: &mut Entry) {
    let copy = match entry {
        Entry::Page(mapped) if !mapped.folio.anonymous && vma.shared => None,
        Entry::Page(mapped) if may_reuse(mapped) => {
            mapped.bits.insert(Bits::EXCLUSIVE);
            None
        }
        Entry::Page(mapped) => Some(mapped.folio.copy_of_page(mapped.index)),
        _ => Some(Folio::zeroed(true)),
    };
    match (copy, entry) {
        (Some(folio), entry) => {
            space.prepare_anonymous(vma);
            *entry = Entry::Page(Mapped {
                folio: Arc::new(folio),
                index: 0,
                bits: bits_for(vma, false) | Bits::EXCLUSIVE,
            });
        }
        // What is left of an old registration stays, harmless.
        (None, entry) => entry.bits_mut().expect("a page").insert(Bits::WRITE),
    }
}

/// The anonymous page is nobody else's, so a store needs no copy.
pub(super) fn may_reuse(mapped: &Mapped) -> bool {
    mapped.folio.anonymous
        && !mapped.folio.merged.load(Ordering::SeqCst)
        && (mapped.bits.contains(Bits::EXCLUSIVE)
            || (mapped.folio.pages == 1 && Arc::strong_count(&mapped.folio) == 1))
}

/// There is no page. `protected`: its marker says that it comes write-protected.
fn missing(request: &Request<'_>, vma: &Vma, slot: &Slot, protected: bool) -> Step {
    if let Backing::File(file) = &vma.backing {
        return file_faults::missing(request, vma, file, protected);
    }
    if request.write {
        // Before anybody waits; it shows when VMAs merge and when the process forks.
        request.space.prepare_anonymous(vma);
    }
    if vma.modes().contains(Modes::MISSING) {
        return userfault(request, vma, Modes::MISSING);
    }
    let mut level = slot.lock();
    let Some(entry) = level.entry(request.address) else { return Step::Again };
    if !still_missing(entry, protected) {
        return Step::Again;
    }
    let bits = bits_for(vma, protected);
    *entry = if request.write {
        let folio = Arc::new(Folio::zeroed(true));
        Entry::Page(Mapped { folio, index: 0, bits: bits | Bits::EXCLUSIVE })
    } else {
        Entry::Zero(bits - Bits::WRITE)
    };
    Step::Again
}

/// Nobody has put a page there since the entry was looked at.
pub(super) fn still_missing(entry: &Entry, protected: bool) -> bool {
    match entry {
        Entry::None => !protected,
        Entry::Marker(Marker::Protect) => protected,
        _ => false,
    }
}

fn missing_huge(request: &Request<'_>, vma: &Vma, slot: &Slot) -> Step {
    request.space.prepare_anonymous(vma);
    if vma.modes().contains(Modes::MISSING) {
        return userfault(request, vma, Modes::MISSING);
    }
    let mut level = slot.lock();
    if !matches!(&*level, Level::Empty) {
        return Step::Again;
    }
    let bits = bits_for(vma, false);
    *level = Level::Huge(if request.write {
        new_huge(request.space, vma)
    } else {
        Entry::Zero(bits - Bits::WRITE)
    });
    Step::Again
}

fn new_huge(space: &AddressSpace, vma: &Vma) -> Entry {
    space.prepare_anonymous(vma);
    let folio = Arc::new(Folio::zeroed_huge(true));
    Entry::Page(Mapped { folio, index: 0, bits: bits_for(vma, false) | Bits::EXCLUSIVE })
}

/// A write to a huge page that does not let it through.
fn present_huge(request: &Request<'_>, vma: &Vma, mut level: MutexGuard<'_, Level>) -> Step {
    let Level::Huge(entry) = &mut *level else { return Step::Again };
    if entry.allows(request.write) {
        return Step::Again;
    }
    if entry.is_armed() {
        let waits = waits_for_access(vma, entry);
        drop(level);
        return if waits { userfault(request, vma, Modes::READ_WRITE) } else { Step::Again };
    }
    if vma.modes().contains(Modes::PROTECT) && entry.is_protected() {
        if vma.is_async() {
            // Only the page that is written loses its protection.
            level.split();
            return Step::Again;
        }
        drop(level);
        return userfault(request, vma, Modes::PROTECT);
    }
    match entry {
        Entry::Zero(_) => *entry = new_huge(request.space, vma),
        Entry::Page(mapped) if mapped.bits.contains(Bits::EXCLUSIVE) => {
            mapped.bits.insert(Bits::WRITE);
        }
        Entry::Page(mapped) if Arc::strong_count(&mapped.folio) == 1 => {
            mapped.bits.insert(Bits::WRITE | Bits::EXCLUSIVE);
            mapped.folio.first_exclusive.store(true, Ordering::SeqCst);
        }
        Entry::Migration(migrating) => {
            return Step::Parked(Waiting { sleeper: migrating.sleeper.clone(), context: None });
        }
        _ => level.split(),
    }
    Step::Again
}

/// Has the thread wait for the userfaultfd that has the VMA (`handle_userfault`).
pub(super) fn userfault(request: &Request<'_>, vma: &Vma, reason: Modes) -> Step {
    let context = match prepare(request, vma, reason) {
        Ok(context) => context,
        Err(step) => return step,
    };
    let waiting = queue(request, vma, &context, reason);
    // A resolver that came between the fault and the queue found nobody to wake.
    if must_wait(request, vma, reason) {
        return Step::Parked(waiting);
    }
    waiting.leave();
    Step::Again
}

/// The cases in which nobody waits, in the kernel's order.
fn prepare(request: &Request<'_>, vma: &Vma, reason: Modes) -> Result<Arc<Context>, Step> {
    assert!(vma.modes().contains(reason), "nobody registered for {reason:?}");
    if request.thread.is_dying() {
        return Err(Step::Failed(Failure::Bus));
    }
    let Some(context) = vma.owner() else { return Err(Step::Failed(Failure::Bus)) };
    if context.has(Features::SIGBUS) || (context.user_mode_only && !request.user) {
        return Err(Step::Failed(Failure::Bus));
    }
    if request.no_wait {
        return Err(Step::WouldWait);
    }
    if context.is_released() {
        // Whoever closes it is about to take it off the VMA.
        yield_now();
        return Err(Step::Again);
    }
    Ok(context.clone())
}

fn queue(request: &Request<'_>, vma: &Vma, context: &Arc<Context>, reason: Modes) -> Waiting {
    let size = if vma.is_hugetlb() { HUGE } else { super::folio::PAGE };
    let exact = context.has(Features::EXACT_ADDRESS);
    let sleeper = Arc::new(Sleeper::default());
    context.faults.push(FaultWaiter {
        sleeper: sleeper.clone(),
        flags: u64::from(request.write) | message_flag(reason),
        address: if exact { request.address } else { request.address / size * size },
        ptid: if context.has(Features::THREAD_ID) { request.thread.id } else { 0 },
    });
    context.news.ring();
    Waiting { sleeper, context: Some(context.clone()) }
}

fn message_flag(reason: Modes) -> u64 {
    match reason {
        Modes::PROTECT => 2,
        Modes::MINOR => 4,
        Modes::READ_WRITE => 8,
        _ => 0,
    }
}

/// The entry is still as the fault found it.
fn must_wait(request: &Request<'_>, vma: &Vma, reason: Modes) -> bool {
    let Some(slot) = request.space.tables.find(request.address) else { return true };
    let mut level = slot.lock();
    let Some(entry) = level.entry(request.address) else { return true };
    match entry {
        Entry::None | Entry::Marker(Marker::Protect | Marker::Poison { .. }) => true,
        Entry::Marker(Marker::Guard { .. }) => {
            vma.is_hugetlb() || request.space.profile().waits_on_guard
        }
        Entry::Page(_) | Entry::Zero(_) => match reason {
            Modes::PROTECT => !entry.allows(true),
            Modes::READ_WRITE => entry.is_armed(),
            _ => false,
        },
        Entry::Swap(_) | Entry::Migration(..) => false,
    }
}
