//! ACPI tables: how a stock kernel learns of the processors, of the interrupt controller, of the
//! devices and of the ways to switch the machine off.
//!
//! The machine is "hardware-reduced": nothing of ACPI's fixed hardware exists, and none of it has
//! to be waited for. A kernel then uses neither the old interrupt controller nor the old timer,
//! takes the time from kvm-clock, and asks neither for a keyboard nor for a CMOS clock.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, layout};
use crate::devices::{MmioPlace, power};
use crate::memory::GuestMemory;

/// What the tables tell of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Platform<'a> {
    /// The number of vCPUs; their local APICs are numbered from 0.
    pub(crate) cpus: u8,
    /// Where the virtio devices are, in their order.
    pub(crate) devices: &'a [MmioPlace],
}

/// Writes the tables to guest memory, the root pointer at [`layout::ACPI_RSDP`].
pub(super) fn write(memory: &GuestMemory, platform: &Platform<'_>) -> Result<(), BootError> {
    let bytes = build(platform);
    let room = layout::HIGH_MEMORY.0 - layout::ACPI_RSDP.0;
    assert!(bytes.len() as u64 <= room, "the largest machine's tables fit");
    memory
        .inner()
        .write_slice(&bytes, GuestAddress(layout::ACPI_RSDP.0))
        .map_err(|source| BootError::Write { what: "the ACPI tables", source })
}

/// All tables one behind the other, as they lie from [`layout::ACPI_RSDP`] on.
fn build(platform: &Platform<'_>) -> Vec<u8> {
    let mut placed = Placed { bytes: vec![0; Rsdp::len()] };
    let dsdt = placed.push(&dsdt(platform.devices));
    let fadt = placed.push(&fadt(dsdt));
    let madt = placed.push(&madt(platform.cpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = placed.push(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    placed.bytes[..root.len()].copy_from_slice(&root);
    placed.bytes
}

/// Tables with their places.
struct Placed {
    bytes: Vec<u8>,
}

impl Placed {
    /// Appends a table. Returns its address.
    fn push(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = layout::ACPI_RSDP.0 + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// The description of what is not processors: the devices, and what "off" is.
fn dsdt(devices: &[MmioPlace]) -> Sdt {
    let (mut table, mut code) =
        (Sdt::new(*b"DSDT", HEADER_BYTES, 2, OEM, OEM_TABLE, REVISION), Vec::new());
    let (off, zero) = (power::TYPE_OFF, aml::ZERO);
    let off_state = Package::new(vec![&off, &zero, &zero, &zero]);
    Name::new("_S5_".into(), &off_state).to_aml_bytes(&mut code);
    table.append_slice(&code);
    code.clear();
    serial_port(&mut code);
    devices.iter().zip(0..).for_each(|(place, number)| virtio_device(&mut code, *place, number));
    table.append_slice(&Scope::raw("_SB_".into(), code));
    table
}

fn serial_port(code: &mut Vec<u8>) {
    let ports = IO::new(0x3f8, 0x3f8, 0, 8);
    let line = interrupt(4);
    let resources = ResourceTemplate::new(vec![&ports, &line]);
    let id = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let number = Name::new("_UID".into(), &aml::ZERO);
    let resources = Name::new("_CRS".into(), &resources);
    Device::new("COM1".into(), vec![&id, &number, &resources]).to_aml_bytes(code);
}

fn virtio_device(code: &mut Vec<u8>, place: MmioPlace, number: u8) {
    let base = u32::try_from(place.gpa.0).expect("devices lie below 4 GiB");
    let bytes = u32::try_from(place.bytes).expect("devices lie below 4 GiB");
    let registers = Memory32Fixed::new(true, base, bytes);
    let line = interrupt(place.interrupt);
    let resources = ResourceTemplate::new(vec![&registers, &line]);
    let id = Name::new("_HID".into(), &"LNRO0005");
    let unique = Name::new("_UID".into(), &number);
    // What the device reads and writes is what the processors see.
    let coherent = Name::new("_CCA".into(), &aml::ONE);
    let resources = Name::new("_CRS".into(), &resources);
    let name: &str = &format!("VR{number:02}");
    Device::new(name.into(), vec![&id, &unique, &coherent, &resources]).to_aml_bytes(code);
}

/// An interrupt line of its own that is raised for a moment.
fn interrupt(line: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, line)
}

fn fadt(dsdt: u64) -> impl Aml {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // There are no such buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    table.reset_reg = port(power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.sleep_control_reg = port(power::SLEEP_CONTROL);
    table.sleep_status_reg = port(power::SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    table.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC_GPA);
    let mut table = MADT::new(OEM, OEM_TABLE, REVISION, local);
    for cpu in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC_GPA, 0));
    table
}

const OEM: [u8; 6] = *b"GODWIT";
const OEM_TABLE: [u8; 8] = *b"GODWITVM";
const REVISION: u32 = 1;
const HEADER_BYTES: u32 = 36;
const ALIGNMENT: usize = 64;
/// Where KVM puts its interrupt controllers.
const LOCAL_APIC_GPA: u32 = 0xfee0_0000;
const IO_APIC_GPA: u32 = 0xfec0_0000;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

#[cfg(test)]
mod tests {
    use godwit_uffd::page::Gpa;

    use super::*;
    use crate::vm::CPU_COUNT_MAX;

    fn place(number: u64) -> MmioPlace {
        let interrupt = u32::try_from(5 + number).unwrap();
        MmioPlace { gpa: Gpa(0xd000_0000 + number * 0x1000), bytes: 0x1000, interrupt }
    }

    /// The table at `address`, whose checksum is right.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_RSDP.0).unwrap();
        let length = u32::from_le_bytes(bytes[start + 4..start + 8].try_into().unwrap());
        let table = &bytes[start..start + length as usize];
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn address(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_root() {
        let devices: Vec<MmioPlace> = (0..3).map(place).collect();
        let bytes = build(&Platform { cpus: 2, devices: &devices });
        assert_eq!((&bytes[..8], sum(&bytes[..20]), sum(&bytes[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(&bytes, address(&bytes[24..]));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&bytes, address(&xsdt[36..]));
        let madt = table(&bytes, address(&xsdt[44..]));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
        let dsdt = table(&bytes, address(&fadt[140..]));
        let ids = dsdt.windows(8).filter(|id| *id == b"LNRO0005").count();
        assert_eq!((&dsdt[..4], ids), (&b"DSDT"[..], 3));
    }

    #[test]
    fn the_largest_machine_has_room() {
        let devices: Vec<MmioPlace> =
            (0..crate::devices::DEVICE_COUNT_MAX as u64).map(place).collect();
        let memory = GuestMemory::create(4 << 20, crate::memory::Backing::Anon).unwrap();
        write(&memory, &Platform { cpus: CPU_COUNT_MAX, devices: &devices }).unwrap();
    }
}
