//! madvise on guest memory, and its end.

// UNSAFETY: both act on raw address ranges.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::ptr::with_exposed_provenance_mut;

use godwit_uffd::page::Hva;

use super::{Backing, MemoryError, Region};

/// The advices that keep what memory holds.
#[derive(Clone, Copy)]
pub(super) enum Advice {
    DontDump,
    HugePage,
    NoHugePage,
}

/// Gives the kernel an advice on a region.
pub(super) fn apply(region: &Region, advice: Advice) -> Result<(), MemoryError> {
    let (name, value) = match advice {
        Advice::DontDump => ("MADV_DONTDUMP", rustix::mm::Advice::LinuxDontDump),
        Advice::HugePage => ("MADV_HUGEPAGE", rustix::mm::Advice::LinuxHugepage),
        Advice::NoHugePage => ("MADV_NOHUGEPAGE", rustix::mm::Advice::LinuxNoHugepage),
    };
    let (start, bytes) = extent(region);
    // SAFETY: the range is a mapping of ours, and none of these advices changes what it holds.
    match unsafe { rustix::mm::madvise(start, bytes, value) } {
        Ok(()) => Ok(()),
        // A kernel without huge pages has nothing to switch.
        Err(rustix::io::Errno::INVAL) if !matches!(advice, Advice::DontDump) => Ok(()),
        Err(errno) => Err(MemoryError::Advise { advice: name, source: errno.into() }),
    }
}

/// Takes what a region holds away from everybody: it reads as zeros from now on, also for those who
/// wait for a page and are woken. (Memory that cannot be accessed at all would do for vCPUs, and
/// kill a thread of ours that waits.)
pub(super) fn revoke(region: &Region) -> Result<(), rustix::io::Errno> {
    use rustix::mm::{MapFlags, ProtFlags};
    let (start, bytes) = extent(region);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range is a mapping of ours, and stays one of the same size and protection. Nobody
    // holds a reference to its bytes, and the caller ends all who would believe them.
    unsafe {
        rustix::mm::mmap_anonymous(start, bytes, ProtFlags::READ | ProtFlags::WRITE, flags)?;
    }
    Ok(())
}

/// Empties `bytes` bytes of a region from `offset` on: they are missing until they are installed
/// again, or zero where the memory is not registered.
pub(super) fn empty(
    region: &Region,
    offset: u64,
    bytes: u64,
    backing: Backing,
) -> Result<(), MemoryError> {
    let part = Region { hva: Hva(region.hva.0 + offset), bytes, ..*region };
    let (start, bytes) = extent(&part);
    // Of a file the page must go, too, and not just our mapping of it.
    let (name, advice) = match backing.kind().is_file() {
        false => ("MADV_DONTNEED", rustix::mm::Advice::LinuxDontNeed),
        true => ("MADV_REMOVE", rustix::mm::Advice::LinuxRemove),
    };
    // SAFETY: the range is a part of a mapping of ours. Nobody holds a reference to its bytes, and
    // no vCPU runs on it: what it holds came from a source that sends it again.
    unsafe { rustix::mm::madvise(start, bytes, advice) }
        .map_err(|errno| MemoryError::Advise { advice: name, source: errno.into() })
}

/// Reads from every page of `bytes` bytes of a region from `offset` on, in the kernel. Waits for
/// those that are missing.
pub(super) fn populate(region: &Region, offset: u64, bytes: u64) -> Result<(), rustix::io::Errno> {
    let part = Region { hva: Hva(region.hva.0 + offset), bytes, ..*region };
    let (start, bytes) = extent(&part);
    // SAFETY: the range is a part of a mapping of ours, and what it holds does not change.
    unsafe { rustix::mm::madvise(start, bytes, rustix::mm::Advice::LinuxPopulateRead) }
}

fn extent(region: &Region) -> (*mut c_void, usize) {
    let bytes = usize::try_from(region.bytes).expect("a mapped region fits the address space");
    let start = usize::try_from(region.hva.0).expect("a host address fits a pointer");
    (with_exposed_provenance_mut(start), bytes)
}
