//! Huge pages of the pool: their count, and the faults of memory that is made of them.

use super::folio::Folio;
use super::sync::{Arc, AtomicU64, Ordering};

/// The pool of huge pages.
#[derive(Debug)]
pub(super) struct Pool {
    free: AtomicU64,
}

/// One page of the pool; it goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Charge(Arc<Pool>);

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::SeqCst);
    }
}

impl Pool {
    /// A pool of some pages.
    pub(super) fn new(pages: u64) -> Pool {
        Pool { free: AtomicU64::new(pages) }
    }

    /// Pages that nobody has.
    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::SeqCst)
    }

    /// Takes a page, of zeros or with bytes.
    pub(super) fn take(
        pool: &Arc<Pool>,
        anonymous: bool,
        bytes: Option<Box<[u8]>>,
    ) -> Option<Folio> {
        pool.free
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1))
            .ok()?;
        let folio = match bytes {
            Some(bytes) => Folio::filled(anonymous, bytes),
            None => Folio::zeroed_huge(anonymous),
        };
        Some(folio.charged(Charge(pool.clone())))
    }
}
