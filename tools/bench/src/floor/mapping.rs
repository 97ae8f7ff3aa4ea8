//! Memory that a floor serves pages from, and memory that it installs them in.

// UNSAFETY: maps memory and registers it with userfaultfd.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::path::Path;
use std::{ptr, slice};

use godwit_uffd::guest::{GuestSpace, GuestUffd};
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{Gpa, Hva, PageSize};
use godwit_uffd::{Range, RegisterMode};
use godwit_vmm::memory::GuestMemory;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::error::Error;

/// The memory of a guest that has stopped, as the file that backs it.
pub struct Image(Mapping);

impl Image {
    /// Maps the first `bytes` of a file whose writers have all stopped.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the file cannot be opened or mapped.
    pub fn open(path: &Path, bytes: usize) -> Result<Image, Error> {
        let file = File::open(path).map_err(Error::system("opening the image"))?;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(ptr::null_mut(), bytes, ProtFlags::READ, flags, &file, 0) };
        let start = start.map_err(Error::system("mapping the image"))?;
        Ok(Image(Mapping { start, bytes }))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is this long and readable, and its writers have stopped.
        unsafe { slice::from_raw_parts(self.0.start.cast(), self.0.bytes) }
    }
}

/// Empty memory without a guest, registered for missing pages. Nothing ever reads it.
pub struct Target {
    memory: GuestUffd<KernelUffd>,
    _mapping: Mapping,
}

impl Target {
    /// Maps and registers `bytes`, a multiple of the page size.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if there is no address space, [`Error::Uffd`] if userfaultfd is not to
    /// be had.
    ///
    /// # Panics
    ///
    /// If `bytes` is not made of whole pages.
    pub fn new(bytes: usize) -> Result<Target, Error> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) };
        let start = start.map_err(Error::system("mapping the target"))?;
        let mapping = Mapping { start, bytes };
        let range = Range { start: Hva(start as u64), bytes: bytes as u64 };
        let uffd = KernelUffd::open()?;
        // SAFETY: the mapping is only ever written by installs.
        unsafe { uffd.register(range, RegisterMode::MISSING)? };
        let space = GuestSpace::new(PageSize::BASE, [(Gpa(0), range.start, range.bytes)])
            .expect("a mapping of whole pages");
        Ok(Target { memory: GuestUffd::new(uffd, space), _mapping: mapping })
    }

    /// The memory, to install pages in.
    pub fn memory(&self) -> &GuestUffd<KernelUffd> {
        &self.memory
    }
}

/// Touches as much memory and gives it up again, so that a host which has its memory from another
/// hypervisor has it at hand: a floor is about this machine, not about the one below.
///
/// # Errors
///
/// [`Error::System`] if there is not as much.
pub fn warm(bytes: usize) -> Result<(), Error> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, flags) };
    drop(Mapping { start: start.map_err(Error::system("touching memory"))?, bytes });
    Ok(())
}

/// Registers the empty memory of a guest for missing pages.
///
/// # Errors
///
/// [`Error::Vm`] if huge pages cannot be switched off, [`Error::Uffd`] if userfaultfd is not to be
/// had.
pub fn register(memory: &GuestMemory) -> Result<GuestUffd<KernelUffd>, Error> {
    memory.forbid_huge_pages().map_err(godwit_vmm::Error::from)?;
    let uffd = KernelUffd::open()?;
    let regions = memory.regions().iter().map(|region| (region.gpa, region.hva, region.bytes));
    let space = GuestSpace::new(PageSize::BASE, regions).expect("regions are in order and whole");
    for memslot in space.memslots() {
        let range = Range { start: memslot.hva, bytes: PageSize::BASE.bytes_of(memslot.count) };
        // SAFETY: guest memory is accessed through raw pointers and by the guest only.
        unsafe { uffd.register(range, RegisterMode::MISSING)? };
    }
    Ok(GuestUffd::new(uffd, space))
}

struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and whoever borrowed it is gone.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

// SAFETY: `Image` and `Target` give out shared access only, and own their mappings.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
