//! The initramfs: as high as the kernel can reach it.

use std::fs::File;
use std::path::Path;

use godwit_uffd::page::Gpa;
use linux_loader::loader::KernelLoaderResult;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::image::open_file;
use crate::memory::GuestMemory;

/// Where the initramfs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initramfs {
    pub(super) gpa: Gpa,
    pub(super) bytes: u32,
}

/// Reads the initramfs into guest memory: page aligned, at the end of what the kernel can reach
/// below the hole, and not where the kernel is or unpacks itself.
pub(super) fn place(
    memory: &GuestMemory,
    path: &Path,
    loaded: &KernelLoaderResult,
) -> Result<Initramfs, BootError> {
    let mut file = open_file("the initramfs", path)?;
    let bytes = file_bytes(&file, path)?;
    let too_large = || BootError::InitramfsTooLarge {
        path: path.to_owned(),
        bytes,
        memory_mib: memory.bytes() >> 20,
    };
    let low_end = memory.regions()[0].bytes;
    let start = find(low_end, bytes, loaded).ok_or_else(too_large)?;
    let size = usize::try_from(bytes).map_err(|_| too_large())?;
    memory
        .inner()
        .read_exact_volatile_from(GuestAddress(start), &mut file, size)
        .map_err(|source| BootError::Write { what: "the initramfs", source })?;
    let bytes = u32::try_from(bytes).map_err(|_| too_large())?;
    Ok(Initramfs { gpa: Gpa(start), bytes })
}

fn file_bytes(file: &File, path: &Path) -> Result<u64, BootError> {
    let metadata = file.metadata().map_err(|source| BootError::Read {
        what: "the initramfs",
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.len())
}

/// The address for an initramfs of `bytes` in low memory that ends at `low_end`.
fn find(low_end: u64, bytes: u64, loaded: &KernelLoaderResult) -> Option<u64> {
    let (reach, kernel_end) = match &loaded.setup_header {
        Some(header) => {
            let unpacked = header.pref_address.checked_add(header.init_size.into())?;
            (u64::from(header.initrd_addr_max) + 1, loaded.kernel_end.max(unpacked))
        }
        None => (DEFAULT_REACH, loaded.kernel_end),
    };
    let start = low_end.min(reach).checked_sub(bytes)? & !PAGE_MASK;
    (start >= kernel_end).then_some(start)
}

/// Kernels that do not say how far they reach get what 32-bit boot loaders used.
const DEFAULT_REACH: u64 = 0x3800_0000;
const PAGE_MASK: u64 = godwit_uffd::page::PageSize::BASE.bytes() as u64 - 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(end: u64) -> KernelLoaderResult {
        KernelLoaderResult { kernel_end: end, ..Default::default() }
    }

    #[test]
    fn initramfs_lies_at_the_end_on_a_page() {
        assert_eq!(find(64 << 20, 5000, &kernel(16 << 20)), Some((64 << 20) - 8192));
        assert_eq!(find(3 << 30, 4096, &kernel(16 << 20)), Some(DEFAULT_REACH - 4096));
    }

    #[test]
    fn initramfs_never_overlaps_the_kernel() {
        assert_eq!(find(64 << 20, 60 << 20, &kernel(16 << 20)), None);
        assert_eq!(find(64 << 20, 65 << 20, &kernel(16 << 20)), None);
        assert_eq!(find(64 << 20, 48 << 20, &kernel(16 << 20)), Some(16 << 20));
    }
}
