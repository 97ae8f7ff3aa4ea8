//! What lies where below 1 MiB when a kernel begins. Nothing of it but the ACPI tables is needed
//! once it runs.

use godwit_uffd::page::Gpa;

/// The descriptor table.
pub const GDT: Gpa = Gpa(0x500);

/// Bytes of the descriptor table.
pub const GDT_BYTES: u16 = 8 * 6;

/// Selector of the 64-bit code segment, as the Linux boot protocol wants it.
pub const CODE64: u16 = 0x10;

/// Selector of the data segment, as the Linux boot protocol wants it.
pub const DATA: u16 = 0x18;

/// Selector of the 32-bit code segment.
pub const CODE32: u16 = 0x20;

/// Selector of the task state segment.
pub const TASK: u16 = 0x28;

/// PVH: `hvm_start_info`.
pub const PVH_START_INFO: Gpa = Gpa(0x6000);

/// PVH: the list of modules.
pub const PVH_MODULES: Gpa = Gpa(0x6040);

/// PVH: the memory map.
pub const PVH_MEMORY_MAP: Gpa = Gpa(0x6100);

/// 64-bit Linux boot protocol: the zero page.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);

/// The top page table: one page, followed by one page of the next level and four of the third,
/// which map the first 4 GiB to themselves.
pub const PML4: Gpa = Gpa(0x9000);

/// The command line.
pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);

/// Where low memory ends for the guest: the extended BIOS data area of a PC.
pub const LOW_MEMORY_END: Gpa = Gpa(0x9_fc00);

/// The root pointer of the ACPI tables, with the tables behind it: in the area that PCs reserve for
/// firmware, where old kernels look for it.
pub const ACPI_RSDP: Gpa = Gpa(0xe_0000);

/// Where memory goes on, and the lowest place for a kernel.
pub const HIGH_MEMORY: Gpa = Gpa(0x10_0000);
