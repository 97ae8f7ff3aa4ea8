//! A userfaultfd: who it belongs to, what was negotiated, who waits on it.

use super::ContextId;
use super::address_space::AddressSpace;
use super::events::EventQueue;
use super::sync::{Arc, AtomicBool, AtomicU32, AtomicU64, Condition, Mutex, Ordering, RwLock};
use super::wait_queue::FaultQueues;
use crate::features::Features;

bitflags::bitflags! {
    /// Modes of a registration, with the bits of UFFDIO_REGISTER.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Modes: u64 {
        /// Missing pages.
        const MISSING = 1;
        /// Write-protected pages.
        const PROTECT = 2;
        /// Pages that only the page cache has.
        const MINOR = 4;
        /// Pages that may be neither read nor written (newest kernels).
        const READ_WRITE = 8;
    }
}

/// Features of the newest kernels, which [`Features`] keeps without a name: RWP.
pub(super) const FEATURE_RWP: u64 = 1 << 17;
/// RWP_ASYNC.
pub(super) const FEATURE_RWP_ASYNC: u64 = 1 << 18;
/// Set in the features once the handshake is done, as fdinfo shows it.
pub(super) const INITIALISED: u64 = 1 << 31;

/// One userfaultfd. Several descriptors may refer to it.
#[derive(Debug)]
pub(super) struct Context {
    /// Its number.
    pub(super) id: ContextId,
    /// The address space that it acts on, fixed at creation.
    pub(super) space: Arc<AddressSpace>,
    /// Faults that the kernel takes on behalf of a user are not handled.
    pub(super) user_mode_only: bool,
    /// `O_NONBLOCK`.
    pub(super) nonblocking: AtomicBool,
    /// The negotiated features, and [`INITIALISED`].
    features: AtomicU64,
    /// The last descriptor was closed.
    pub(super) released: AtomicBool,
    /// Threads that wait for pages.
    pub(super) faults: FaultQueues,
    /// Threads that wait for their event to be read.
    pub(super) events: EventQueue,
    /// Held for reading while an operation changes page tables, for writing while the counter
    /// below goes up: who raises an event waits for the operations in flight.
    pub(super) map_changing: RwLock<()>,
    /// Events that were announced and not delivered: operations answer EAGAIN.
    mmap_changing: AtomicU32,
    /// Rung when there is something to read.
    pub(super) news: Bell,
}

impl Context {
    /// A new userfaultfd for an address space.
    pub(super) fn new(
        id: ContextId,
        space: Arc<AddressSpace>,
        user_mode_only: bool,
        nonblocking: bool,
    ) -> Context {
        Context {
            id,
            space,
            user_mode_only,
            nonblocking: AtomicBool::new(nonblocking),
            features: AtomicU64::new(0),
            released: AtomicBool::new(false),
            faults: FaultQueues::default(),
            events: EventQueue::default(),
            map_changing: RwLock::new(()),
            mmap_changing: AtomicU32::new(0),
            news: Bell::default(),
        }
    }

    /// The context of a child (`userfaultfd_fork_ctx`): flags and features are the parent's.
    pub(super) fn of_child(&self, id: ContextId, space: Arc<AddressSpace>) -> Context {
        let nonblocking = self.nonblocking.load(Ordering::SeqCst);
        let child = Context::new(id, space, self.user_mode_only, nonblocking);
        child.features.store(self.features.load(Ordering::SeqCst), Ordering::SeqCst);
        child
    }

    /// The negotiated features.
    pub(super) fn features(&self) -> Features {
        Features::from_bits_retain(self.features.load(Ordering::SeqCst) & !INITIALISED)
    }

    /// A feature was negotiated.
    pub(super) fn has(&self, feature: Features) -> bool {
        self.features().contains(feature)
    }

    /// The handshake is done.
    pub(super) fn is_initialised(&self) -> bool {
        self.features.load(Ordering::SeqCst) & INITIALISED != 0
    }

    /// Installs the features, once; false if that had been done before.
    pub(super) fn initialise(&self, features: u64) -> bool {
        self.features
            .compare_exchange(0, features | INITIALISED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Turns features of an initialised context on and off.
    pub(super) fn set_features(&self, enable: u64, disable: u64) {
        self.features.fetch_or(enable, Ordering::SeqCst);
        self.features.fetch_and(!disable, Ordering::SeqCst);
    }

    /// The last descriptor was closed.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// Announces an event: from now on operations answer EAGAIN, and none is in flight.
    pub(super) fn begin_change(&self) {
        let _exclusive = self.map_changing.write();
        self.mmap_changing.fetch_add(1, Ordering::SeqCst);
    }

    /// An announced event was delivered, or nobody will read it.
    pub(super) fn end_change(&self) {
        let before = self.mmap_changing.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "an event ends that did not begin");
    }

    /// The address space is changing.
    pub(super) fn is_changing(&self) -> bool {
        self.mmap_changing.load(Ordering::SeqCst) > 0
    }
}

/// Counts messages, for threads that wait for the next.
#[derive(Debug, Default)]
pub(super) struct Bell {
    count: Mutex<u64>,
    rung: Condition,
}

impl Bell {
    /// Something has happened.
    pub(super) fn ring(&self) {
        *self.count.lock() += 1;
        self.rung.notify_all();
    }

    /// How often it was rung.
    pub(super) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Blocks a real thread until it was rung more than `seen` times.
    pub(super) fn wait_past(&self, seen: u64) {
        let mut count = self.count.lock();
        while *count <= seen {
            count = self.rung.wait(count);
        }
    }
}
