//! The pool of huge pages, and what mappings have reserved of it.

use super::contents::Contents;
use super::folio::Folio;
use super::sync::{Arc, Mutex};

/// The pool of huge pages.
#[derive(Debug)]
pub(super) struct Pool {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// Pages that are not in use.
    free: u64,
    /// How many of them belong to reservations.
    reserved: u64,
}

/// One page of the pool; it goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Charge(Arc<Pool>);

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.counts.lock().free += 1;
    }
}

/// Pages that were set aside for a mapping when it was made. A child that inherits a private
/// mapping does not inherit them.
#[derive(Debug)]
pub(super) struct Reservation {
    pool: Arc<Pool>,
    left: Mutex<u64>,
}

impl Reservation {
    /// Sets pages aside; `None` if there are too few.
    pub(super) fn new(pool: &Arc<Pool>, pages: u64) -> Option<Reservation> {
        let mut counts = pool.counts.lock();
        if counts.free - counts.reserved < pages {
            return None;
        }
        counts.reserved += pages;
        drop(counts);
        Some(Reservation { pool: pool.clone(), left: Mutex::new(pages) })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = *self.left.lock();
        self.pool.counts.lock().reserved -= left;
    }
}

impl Pool {
    /// A pool of some pages.
    pub(super) fn new(pages: u64) -> Pool {
        Pool { counts: Mutex::new(Counts { free: pages, reserved: 0 }) }
    }

    /// Pages that are neither in use nor reserved.
    pub(super) fn available(&self) -> u64 {
        let counts = self.counts.lock();
        counts.free - counts.reserved
    }

    /// A page can be taken, from the reservation or from what is available.
    pub(super) fn has_page(&self, reservation: Option<&Arc<Reservation>>) -> bool {
        reservation.is_some_and(|reservation| *reservation.left.lock() > 0) || self.available() > 0
    }

    /// Takes a page, of zeros or of these contents.
    pub(super) fn take(
        pool: &Arc<Pool>,
        reservation: Option<&Arc<Reservation>>,
        anonymous: bool,
        contents: Option<Contents>,
    ) -> Option<Folio> {
        let mut left = reservation.map(|reservation| reservation.left.lock());
        let mut counts = pool.counts.lock();
        match left.as_deref_mut() {
            Some(left) if *left > 0 => {
                *left -= 1;
                counts.reserved -= 1;
            }
            _ if counts.free > counts.reserved => {}
            _ => return None,
        }
        counts.free -= 1;
        drop(counts);
        let folio = match contents {
            Some(contents) => Folio::new(anonymous, contents),
            None => Folio::zeroed_huge(anonymous),
        };
        Some(folio.charged(Charge(pool.clone())))
    }
}
