//! The memory of a machine as its users see it: files, mappings, and looking at both.

use super::advise::{Advice, Advising};
use super::events::{Announced, Delivery};
use super::file_ops;
use super::folio::PAGE;
use super::machine::Machine;
use super::memory_map::{self, NewMapping};
use super::observe::{self, Observed};
use super::page_cache::{FileKind, MemoryFile};
use super::page_table::{Entry, Level};
use super::populate::{Populate, Purpose};
use super::remap::{self, Remap};
use super::scan::{self, Region, Scan};
use super::sync::{Arc, Ordering};
use super::task::{Outcome, Progress, Task, run};
use super::vma::{Access, Backing};
use super::{FileId, Process, Thread};
use crate::abi::Errno;

/// What a mapping is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Material {
    /// Private anonymous memory; `huge` is MADV_HUGEPAGE.
    Anonymous {
        /// Huge pages on first touch.
        huge: bool,
    },
    /// Shared anonymous memory, which is shmem.
    SharedAnonymous,
    /// Private anonymous memory of huge pages of the pool.
    Hugetlb,
    /// MAP_DROPPABLE.
    Droppable,
    /// Memory of the kernel's own, such as the vdso.
    Special,
    /// A file.
    File {
        /// Which.
        file: FileId,
        /// The first page, in base pages.
        page: u64,
        /// MAP_SHARED.
        shared: bool,
        /// By a descriptor that was opened for reading only.
        read_only: bool,
    },
}

/// A mapping that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Its length in bytes.
    pub len: u64,
    /// What it is made of.
    pub material: Material,
    /// How it may be accessed.
    pub access: Access,
    /// Where (`MAP_FIXED`); otherwise where there is room.
    pub at: Option<u64>,
}

impl Machine {
    /// Makes a file of `pages` base pages, all of them holes.
    pub fn make_file(&self, kind: FileKind, pages: u64) -> FileId {
        let file = FileId(self.next_number());
        self.add_file(MemoryFile::new(file, kind, pages));
        file
    }

    /// Stores bytes at the start of a page of a file.
    ///
    /// # Errors
    /// ENOMEM if the pool of huge pages is empty.
    pub fn file_store(&self, file: FileId, page: u64, bytes: &[u8]) -> Result<(), Errno> {
        file_ops::store(&self.file(file), &self.host().pool, page, bytes)
    }

    /// The first byte of a page of a file, if the page is in the cache.
    pub fn file_load(&self, file: FileId, page: u64) -> Option<u8> {
        file_ops::load(&self.file(file), page)
    }

    /// Sets the size of a file.
    pub fn file_truncate(&self, file: FileId, pages: u64) {
        file_ops::truncate(&self.file(file), pages);
    }

    /// Punches a hole into a file.
    pub fn file_punch(&self, file: FileId, page: u64, count: u64) {
        file_ops::punch(&self.file(file), &(page..page + count));
    }

    /// Seals a memfd against writes by new mappings.
    pub fn file_seal_writes(&self, file: FileId) {
        self.file(file).write_sealed.store(true, Ordering::SeqCst);
    }

    /// mmap. Sleeps if it replaces memory whose userfaultfd wants to know.
    pub fn map(&self, thread: Thread, request: MapRequest) -> Progress {
        let mapping = self.new_mapping(&request);
        let thread = self.thread_state(thread);
        let mapped = memory_map::map(&thread.space, mapping);
        deliver(&thread, mapped)
    }

    fn new_mapping(&self, request: &MapRequest) -> NewMapping {
        let pages = request.len.div_ceil(PAGE);
        let hidden = |kind| Backing::File(self.file(self.make_file(kind, pages)));
        let (backing, page, shared, read_only) = match request.material {
            Material::Anonymous { .. } => (Backing::Anonymous, 0, false, false),
            Material::SharedAnonymous => (hidden(FileKind::Shmem), 0, true, false),
            Material::Hugetlb => (hidden(FileKind::Hugetlb), 0, false, false),
            Material::Droppable => (Backing::Droppable, 0, false, false),
            Material::Special => (Backing::Special, 0, false, false),
            Material::File { file, page, shared, read_only } => {
                (Backing::File(self.file(file)), page, shared, read_only)
            }
        };
        NewMapping {
            len: request.len,
            backing,
            page,
            shared,
            read_only,
            access: request.access,
            huge: request.material == Material::Anonymous { huge: true },
            at: request.at,
        }
    }

    /// munmap. Sleeps until the UNMAP events are read.
    pub fn unmap(&self, thread: Thread, start: u64, len: u64) -> Progress {
        let thread = self.thread_state(thread);
        let events = memory_map::unmap(&thread.space, start, len);
        deliver(&thread, events.map(|events| (0, events)))
    }

    /// mprotect.
    ///
    /// # Errors
    /// The kernel's.
    pub fn protect(
        &self,
        process: Process,
        start: u64,
        len: u64,
        access: Access,
    ) -> Result<(), Errno> {
        memory_map::protect(&self.space(process), start, len, access)
    }

    /// mremap. Sleeps until its events are read.
    pub fn remap(&self, thread: Thread, call: Remap) -> Progress {
        let thread = self.thread_state(thread);
        let mut events = Vec::new();
        let result = remap::remap(&thread.space, call, &mut events);
        run(&thread, Task::Deliver(Delivery::new(events), Outcome::Returned(result)))
    }

    /// madvise. Sleeps until a REMOVE event is read, or for pages that it populates.
    pub fn advise(&self, thread: Thread, start: u64, len: u64, advice: Advice) -> Progress {
        let thread = self.thread_state(thread);
        let range = match memory_map::check(start, len) {
            Ok(range) => range,
            Err(errno) => return Progress::Done(Outcome::Returned(Err(errno))),
        };
        let space = thread.space.clone();
        let purpose = match advice {
            Advice::PopulateRead => Purpose::Read,
            Advice::PopulateWrite => Purpose::Write,
            _ => {
                let advising = Advising::new(space, range, advice);
                return run(&thread, Task::Advise(Box::new(advising)));
            }
        };
        let populate = Populate { space, at: range.start, end: range.end, purpose };
        run(&thread, Task::Populate(populate))
    }

    /// mlock, which populates the range, or munlock.
    pub fn lock(&self, thread: Thread, start: u64, len: u64, locked: bool) -> Progress {
        let thread = self.thread_state(thread);
        let space = thread.space.clone();
        match memory_map::lock(&space, start, len, locked) {
            Ok(range) if locked => {
                let purpose = Purpose::Lock;
                let populate = Populate { space, at: range.start, end: range.end, purpose };
                run(&thread, Task::Populate(populate))
            }
            result => Progress::Done(Outcome::Returned(result.map(|_| 0))),
        }
    }

    /// Pins the page at an address for long, as a device would. The page has to be there.
    pub fn pin(&self, process: Process, address: u64) {
        self.with_entry(process, address, |entry| match entry {
            Entry::Page(mapped) => {
                mapped.folio.pins.fetch_add(1, Ordering::SeqCst);
            }
            _ => panic!("there is no page to pin at {address:#x}"),
        });
    }

    /// Gives a pin back.
    pub fn unpin(&self, process: Process, address: u64) {
        self.with_entry(process, address, |entry| match entry {
            Entry::Page(mapped) => {
                let before = mapped.folio.pins.fetch_sub(1, Ordering::SeqCst);
                assert!(before > 0, "the page at {address:#x} has no pin");
            }
            _ => panic!("there is no page to unpin at {address:#x}"),
        });
    }

    pub(super) fn with_entry<R>(
        &self,
        process: Process,
        address: u64,
        work: impl FnOnce(&mut Entry) -> R,
    ) -> R {
        let space = self.space(process);
        let slot = space.tables.get(address);
        let mut level = slot.lock();
        if matches!(&*level, Level::Empty) {
            level.table_or_new();
        }
        work(level.entry(address).expect("there is a table now"))
    }

    /// The entry at an address as a privileged observer sees it.
    pub fn observe(&self, process: Process, address: u64) -> Observed {
        observe::observe(&self.space(process), &self.spaces(), address)
    }

    /// The byte at an address if its entry has a page, looked at without raising a fault.
    pub fn peek(&self, process: Process, address: u64) -> Option<u8> {
        observe::peek(&self.space(process), address)
    }

    /// PAGEMAP_SCAN.
    ///
    /// # Errors
    /// The kernel's.
    pub fn scan(&self, process: Process, call: &Scan) -> Result<Vec<Region>, Errno> {
        scan::scan(&self.space(process), call)
    }
}

/// The progress of a call that changes the map and then tells of it.
fn deliver(
    thread: &Arc<super::faults::ThreadState>,
    result: Result<(u64, Vec<Announced>), Errno>,
) -> Progress {
    match result {
        Ok((value, events)) => {
            let outcome = Outcome::Returned(Ok(value));
            run(thread, Task::Deliver(Delivery::new(events), outcome))
        }
        Err(errno) => Progress::Done(Outcome::Returned(Err(errno))),
    }
}
