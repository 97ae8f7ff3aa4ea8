//! [`Staging`]: memory that is populated before it is needed, to be moved into a guest.
//!
//! A page that is copied into a guest is allocated, accounted and filled while the guest waits. A
//! page that was received into staging memory has all of that behind it: UFFDIO_MOVE changes two
//! page-table entries, and the page becomes the guest's.

// UNSAFETY: maps memory, and hands out disjoint parts of it.
#![expect(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A mapping of this value's own.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// Bytes from the start that have their pages.
    populated: AtomicUsize,
    /// Bytes from the start that were handed out; never more than are populated.
    taken: AtomicUsize,
}

// SAFETY: the mapping is shared memory; parts of it are handed out once each, see `Staging::take`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and what was handed out is gone.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Populated memory, handed out from its start to its end, each byte once.
#[derive(Debug)]
pub struct Staging {
    mapping: Arc<Mapping>,
}

/// Populates the memory of a [`Staging`], on any thread.
#[derive(Debug)]
pub struct Populator {
    mapping: Arc<Mapping>,
}

impl Staging {
    /// Maps `bytes` of memory, whole pages, none of them populated.
    ///
    /// # Errors
    ///
    /// The kernel's: no address space.
    pub fn new(bytes: usize) -> io::Result<(Staging, Populator)> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) }?;
        let start = NonNull::new(start.cast()).expect("a mapping is not at zero");
        let mapping = Arc::new(Mapping {
            start,
            bytes,
            populated: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
        });
        // Pages of the guest's size, that no child shares, and out of core dumps. A kernel that
        // does not know one of these has no need of it.
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: none of these changes what memory holds.
            let _ = unsafe { madvise(start.as_ptr().cast(), bytes, advice) };
        }
        let populator = Populator { mapping: Arc::clone(&mapping) };
        Ok((Staging { mapping }, populator))
    }

    /// The next `bytes`, if they are populated.
    pub fn take(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let taken = self.mapping.taken.load(Ordering::Relaxed);
        let end = taken.checked_add(bytes)?;
        if end > self.mapping.populated.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: inside the mapping; each byte is handed out once, and this borrow of the only
        // `Staging` ends before the next. Populating does not change pages that are there.
        let part =
            unsafe { slice::from_raw_parts_mut(self.mapping.start.as_ptr().add(taken), bytes) };
        self.mapping.taken.store(end, Ordering::Release);
        Some(part)
    }
}

impl Populator {
    /// Bytes that are populated and not handed out.
    pub fn ahead(&self) -> usize {
        // In this order, so that what is handed out in between cannot make it less than none.
        let taken = self.mapping.taken.load(Ordering::Acquire);
        self.mapping.populated.load(Ordering::Acquire) - taken
    }

    /// Populates the next `bytes`, fewer at the end. False if there was nothing left.
    ///
    /// # Errors
    ///
    /// The kernel's: no memory, or a kernel before 5.14.
    pub fn populate(&mut self, bytes: usize) -> io::Result<bool> {
        let begin = self.mapping.populated.load(Ordering::Relaxed);
        let bytes = bytes.min(self.mapping.bytes - begin);
        if bytes == 0 {
            return Ok(false);
        }
        // SAFETY: inside the mapping, and pages that are there keep what they hold.
        unsafe {
            madvise(
                self.mapping.start.as_ptr().add(begin).cast(),
                bytes,
                Advice::LinuxPopulateWrite,
            )
        }?;
        self.mapping.populated.store(begin + bytes, Ordering::Release);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Features;
    use crate::kernel::tests::{Memory, open};
    use crate::uffd::{Installed, Uffd, Wake};

    const PAGE: usize = 4096;

    #[test]
    fn only_populated_memory_is_handed_out_and_each_byte_once() {
        let (mut staging, mut populator) = Staging::new(4 * PAGE).unwrap();
        assert!(staging.take(PAGE).is_none());
        assert!(populator.populate(3 * PAGE).unwrap());
        let first = staging.take(2 * PAGE).unwrap().as_ptr() as usize;
        assert_eq!(staging.take(PAGE).unwrap().as_ptr() as usize, first + 2 * PAGE);
        assert!(staging.take(PAGE).is_none() && populator.ahead() == 0);
        assert!(populator.populate(3 * PAGE).unwrap() && populator.ahead() == PAGE);
        assert!(!populator.populate(PAGE).unwrap());
        assert!(staging.take(usize::MAX).is_none());
    }

    #[test]
    fn staged_pages_become_the_pages_of_the_memory() {
        let Some(uffd) = open() else { return };
        if !uffd.offered().contains(Features::MOVE) {
            return println!("skipped: this kernel has no UFFDIO_MOVE");
        }
        let memory = Memory::anonymous(3);
        memory.register(&uffd);
        let (mut staging, mut populator) = Staging::new(3 * PAGE).unwrap();
        populator.populate(3 * PAGE).unwrap();
        let staged = staging.take(3 * PAGE).unwrap();
        staged[..PAGE].fill(7);
        staged[PAGE..].fill(8);
        let start = memory.range().start;
        let moved = uffd.move_in(start, &mut staged[..2 * PAGE], Wake::Now).unwrap();
        assert_eq!(moved, Installed::All);
        let again = uffd.move_in(start, &mut staged[2 * PAGE..], Wake::Now).unwrap();
        assert_eq!((again, staged[2 * PAGE], staged[0]), (Installed::AlreadyPresent, 8, 0));
        uffd.unregister(memory.range()).unwrap();
        assert_eq!(memory.bytes_of_pages(), [7, 8, 0]);
    }
}
