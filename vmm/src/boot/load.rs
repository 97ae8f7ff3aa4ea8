//! One door for every kind of kernel.

use std::io::{Read, Seek};
use std::path::Path;

use godwit_migration::provider::GuestRam;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, ReadVolatile};

use super::image::{Kind, Source};
use super::{
    BootError, COMMAND_LINE_BYTES_MAX, KernelImage, Platform, acpi, initramfs, layout, linux64,
    pvh, tables,
};
use crate::arch::x86_64::Entry;
use crate::memory::GuestMemory;

/// Loads a kernel and what it is told into guest memory. Returns where it begins.
///
/// # Errors
/// [`BootError`], which names the file.
pub(crate) fn load(
    memory: &GuestMemory,
    kernel: &KernelImage,
    initramfs: Option<&Path>,
    command_line: &str,
    platform: &Platform<'_>,
) -> Result<Entry, BootError> {
    let (mut source, kind) = kernel.open()?;
    let loaded = load_kernel(memory, &mut source, kind).map_err(|source| BootError::Load {
        image: kernel.name(),
        memory_mib: memory.bytes() >> 20,
        source,
    })?;
    write_command_line(memory, command_line, &loaded)?;
    let initramfs = initramfs.map(|path| initramfs::place(memory, path, &loaded)).transpose()?;
    tables::write(memory)?;
    acpi::write(memory, platform)?;
    let command_line_bytes = command_line.len();
    match (kind, loaded.pvh_boot_cap) {
        (Kind::Elf, PvhBootCapability::PvhEntryPresent(rip)) => {
            pvh::write(memory, initramfs)?;
            Ok(Entry::Pvh { rip: rip.raw_value() })
        }
        (Kind::Elf, _) => {
            linux64::write(memory, &loaded, initramfs, command_line_bytes)?;
            Ok(Entry::Linux64 { rip: loaded.kernel_load.raw_value() })
        }
        (Kind::BzImage, _) => {
            linux64::write(memory, &loaded, initramfs, command_line_bytes)?;
            // The 64-bit entry is 512 bytes behind the 32-bit one.
            Ok(Entry::Linux64 { rip: loaded.kernel_load.raw_value() + 0x200 })
        }
    }
}

fn load_kernel(
    memory: &GuestMemory,
    source: &mut Source,
    kind: Kind,
) -> Result<KernelLoaderResult, linux_loader::loader::Error> {
    match source {
        Source::Embedded(cursor) => load_from(memory.inner(), cursor, kind),
        Source::File(file) => load_from(memory.inner(), file, kind),
    }
}

fn load_from<F: Read + ReadVolatile + Seek>(
    memory: &GuestRam,
    source: &mut F,
    kind: Kind,
) -> Result<KernelLoaderResult, linux_loader::loader::Error> {
    let lowest = Some(GuestAddress(layout::HIGH_MEMORY.0));
    match kind {
        Kind::Elf => Elf::load(memory, None, source, lowest),
        Kind::BzImage => BzImage::load(memory, None, source, lowest),
    }
}

fn write_command_line(
    memory: &GuestMemory,
    command_line: &str,
    loaded: &KernelLoaderResult,
) -> Result<(), BootError> {
    let own = loaded.setup_header.map_or(u32::MAX, |header| header.cmdline_size);
    let limit = usize::try_from(own).unwrap_or(usize::MAX).min(COMMAND_LINE_BYTES_MAX);
    let bytes = command_line.len();
    if bytes > limit {
        return Err(BootError::CommandLineTooLong { bytes, limit });
    }
    if command_line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory
        .inner()
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE.0))
        .map_err(|source| BootError::Write { what: "the command line", source })
}
