//! Memory of this process to measure the running kernel's calls on. Nobody but userfaultfd
//! touches it, so no thread can wait for a page.

// UNSAFETY: maps memory, gives advice about it, and lends it to a userfaultfd.
#![expect(unsafe_code)]

use std::io;
use std::rc::Rc;

use godwit_uffd::abi::{Answer, Call};
use godwit_uffd::backend::Backend;
use godwit_uffd::features::Features;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::memory::MemoryKind;
use godwit_uffd::page::Hva;
use godwit_uffd::uffd::Range;

use super::files::{HUGE, MemoryFile};
use super::memory::advice_number;
use super::{PAGE, host};
use crate::costs::{Ground, HUGE_PLACE_PAGES, Layout, modes, place_bytes, source_bytes};
use crate::world::{Advice, FileKind, NotHere};

/// Memory with a userfaultfd of the running kernel.
pub struct KernelGround {
    // In this order: nothing is registered any more when it is unmapped, and the pool of huge
    // pages shrinks last.
    uffd: KernelUffd,
    layout: Layout,
    mappings: Vec<Mapping>,
    _pool: Option<Rc<host::HugePages>>,
}

impl KernelGround {
    /// Memory of a kind.
    ///
    /// # Errors
    ///
    /// If this host has no such memory, or gives this process no userfaultfd.
    pub fn new(kind: MemoryKind) -> Result<KernelGround, NotHere> {
        let not_here = |error: &dyn std::fmt::Display| NotHere(format!("{kind}: {error}"));
        let uffd = KernelUffd::open_with(Features::empty()).map_err(|error| not_here(&error))?;
        let pages = u32::try_from(HUGE_PLACE_PAGES).expect("a small pool");
        let pool = kind.is_hugetlb().then(|| host::huge_pages(pages)).transpose()?;
        let map = |kind, bytes| Mapping::new(kind, bytes).map_err(|error| not_here(&error));
        let source = map(MemoryKind::Anonymous, source_bytes(kind))?;
        source.advise(source.start, source.bytes, Advice::PopulateWrite);
        let place = map(kind, place_bytes(kind))?;
        let other = match kind {
            MemoryKind::Anonymous => Some(map(kind, place_bytes(kind))?),
            _ => None,
        };
        for mapping in std::iter::once(&place).chain(&other) {
            let range = Range { start: Hva(mapping.start), bytes: mapping.bytes };
            // SAFETY: nobody has a reference to the memory, and it lives longer than `uffd`.
            unsafe { uffd.register(range, modes(kind)) }.map_err(|error| not_here(&error))?;
        }
        let layout = Layout {
            kind,
            place: place.start,
            other: other.as_ref().map(|mapping| mapping.start),
            source: source.start,
        };
        let mappings = [source, place].into_iter().chain(other).collect();
        Ok(KernelGround { uffd, layout, mappings, _pool: pool })
    }
}

impl Ground for KernelGround {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn call(&self, call: Call) -> Answer {
        self.uffd.call(call)
    }

    fn advise(&self, start: u64, bytes: u64, advice: Advice) {
        let mapping = self.mappings.iter().find(|mapping| mapping.has(start, bytes));
        mapping.expect("memory of this ground").advise(start, bytes, advice);
    }
}

/// A mapping of this value's own, which begins where a page table does.
struct Mapping {
    start: u64,
    bytes: u64,
    /// What was mapped, with what is in front of the start and behind the end.
    whole: (*mut libc::c_void, usize),
}

impl Mapping {
    fn new(kind: MemoryKind, bytes: u64) -> io::Result<Mapping> {
        let (reach, length) = (length(bytes + HUGE), length(bytes));
        let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory wherever there is room.
        let room = unsafe { libc::mmap(std::ptr::null_mut(), reach, libc::PROT_NONE, none, -1, 0) };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = (room as u64).next_multiple_of(HUGE);
        let mapping = Mapping { start, bytes, whole: (room, reach) };
        let file = kind.is_file().then(|| MemoryFile::new(file_kind(kind), bytes / PAGE));
        let file = file.transpose()?;
        let (mut flags, descriptor) = match &file {
            Some(file) => (libc::MAP_SHARED, file.descriptor()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        if kind == MemoryKind::HugetlbAnonymous {
            flags |= libc::MAP_HUGETLB | super::memory::HUGE_2MB;
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: it replaces a part of the room that was made above, and nothing else.
        let mapped =
            unsafe { libc::mmap(mapping.pointer(start), length, access, flags, descriptor, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if !kind.is_hugetlb() && host::transparent().is_ok() {
            // Base pages are measured, whatever the host's default is.
            mapping.advise(start, bytes, Advice::NoHugePage);
        }
        Ok(mapping)
    }

    fn has(&self, start: u64, bytes: u64) -> bool {
        self.start <= start && start + bytes <= self.start + self.bytes
    }

    fn advise(&self, start: u64, bytes: u64, advice: Advice) {
        let number = i32::try_from(advice_number(advice)).expect("a small number");
        // SAFETY: the range is in this mapping, which nobody has a reference to.
        let advised = unsafe { libc::madvise(self.pointer(start), length(bytes), number) };
        assert_eq!(advised, 0, "{advice:?}: {}", io::Error::last_os_error());
    }

    /// A pointer to an address in the mapping.
    fn pointer(&self, address: u64) -> *mut libc::c_void {
        self.whole.0.wrapping_byte_add(length(address - self.whole.0 as u64))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, length) = self.whole;
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(start, length) };
    }
}

fn file_kind(kind: MemoryKind) -> FileKind {
    if kind.is_hugetlb() { FileKind::Hugetlb } else { FileKind::Shmem }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("words have 64 bits")
}
