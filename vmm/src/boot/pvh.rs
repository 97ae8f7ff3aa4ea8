//! The PVH boot protocol: a start-info structure with a command line, a memory map and modules.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::initramfs::Initramfs;
use super::{BootError, layout, memory_map};
use crate::memory::GuestMemory;

/// Writes the structures to guest memory.
pub(super) fn write(memory: &GuestMemory, initramfs: Option<Initramfs>) -> Result<(), BootError> {
    let failed = |source| BootError::Write { what: "the PVH start info", source };
    let map = memory_map::build(memory);
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: initramfs.map_or(0, |_| layout::PVH_MODULES.0),
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: layout::ACPI_RSDP.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).expect("a memory map has few entries"),
        ..Default::default()
    };
    let inner = memory.inner();
    inner.write_obj(info, GuestAddress(layout::PVH_START_INFO.0)).map_err(failed)?;
    if let Some(initramfs) = initramfs {
        let module = hvm_modlist_entry {
            paddr: initramfs.gpa.0,
            size: initramfs.bytes.into(),
            ..Default::default()
        };
        inner.write_obj(module, GuestAddress(layout::PVH_MODULES.0)).map_err(failed)?;
    }
    let mut at = layout::PVH_MEMORY_MAP.0;
    for entry in map {
        let line = hvm_memmap_table_entry {
            addr: entry.gpa.0,
            size: entry.bytes,
            type_: entry.kind as u32,
            reserved: 0,
        };
        inner.write_obj(line, GuestAddress(at)).map_err(failed)?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}

const MAGIC: u32 = 0x336e_c578;

const _: () = assert!(
    layout::PVH_START_INFO.0 + size_of::<hvm_start_info>() as u64 <= layout::PVH_MODULES.0
        && layout::PVH_MODULES.0 + size_of::<hvm_modlist_entry>() as u64
            <= layout::PVH_MEMORY_MAP.0
        && layout::PVH_MEMORY_MAP.0
            + (memory_map::ENTRY_COUNT_MAX * size_of::<hvm_memmap_table_entry>()) as u64
            <= layout::ZERO_PAGE.0
);
