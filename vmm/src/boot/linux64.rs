//! The 64-bit Linux boot protocol: the zero page.

use linux_loader::loader::KernelLoaderResult;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::initramfs::Initramfs;
use super::{BootError, layout, memory_map};
use crate::memory::GuestMemory;

/// Writes the zero page to guest memory.
pub(super) fn write(
    memory: &GuestMemory,
    loaded: &KernelLoaderResult,
    initramfs: Option<Initramfs>,
    command_line_bytes: usize,
) -> Result<(), BootError> {
    let mut page = boot_params::default();
    match loaded.setup_header {
        Some(header) => page.hdr = header,
        None => {
            page.hdr.boot_flag = BOOT_FLAG;
            page.hdr.header = HEADER_MAGIC;
            page.hdr.kernel_alignment = KERNEL_ALIGNMENT;
        }
    }
    page.hdr.type_of_loader = UNDEFINED_LOADER;
    page.hdr.cmd_line_ptr = low(layout::COMMAND_LINE.0);
    page.hdr.cmdline_size = low(command_line_bytes as u64);
    if let Some(initramfs) = initramfs {
        page.hdr.ramdisk_image = low(initramfs.gpa.0);
        page.hdr.ramdisk_size = initramfs.bytes;
    }
    page.acpi_rsdp_addr = layout::ACPI_RSDP.0;
    let map = memory_map::build(memory);
    page.e820_entries = u8::try_from(map.len()).expect("a memory map has few entries");
    for (line, entry) in page.e820_table.iter_mut().zip(&map) {
        *line = boot_e820_entry { addr: entry.gpa.0, size: entry.bytes, r#type: entry.kind as u32 };
    }
    memory
        .inner()
        .write_obj(page, GuestAddress(layout::ZERO_PAGE.0))
        .map_err(|source| BootError::Write { what: "the zero page", source })
}

/// What lies below the hole has addresses of 32 bits.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("boot structures lie below 4 GiB")
}

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
const UNDEFINED_LOADER: u8 = 0xff;

const _: () = assert!(size_of::<boot_params>() == 4096);
