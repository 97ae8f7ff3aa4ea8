//! The map of the machine: which device answers at which address.

use std::io::Write;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::Console;
use super::bus::Bus;
use super::cmos::Cmos;
use super::debug_exit::DebugExit;
use super::i8042::I8042;
use super::power::{PORT_COUNT, PORTS_START, Power};
use super::serial::{SerialPort, SerialSnapshot};
use super::virtio::VirtioDevices;
use crate::Error;
use crate::kvm::IoDirection;
use crate::memory::GuestMemory;
use crate::state::StateError;
use crate::vm::{DeviceConfig, GuestExit};

/// All devices of a machine that are not in the kernel.
pub(crate) struct Devices {
    ports: Bus,
    mmio: Bus,
    virtio: VirtioDevices,
    serial: Arc<SerialPort>,
    console: Arc<Console>,
}

impl Devices {
    /// Builds the machine's devices.
    ///
    /// # Errors
    /// [`Error::Thread`] if the console has no thread; [`Error::Device`], [`Error::Kvm`].
    pub(crate) fn create(
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemory>,
        configs: &[DeviceConfig],
        out: Box<dyn Write + Send>,
    ) -> Result<Devices, Error> {
        let console =
            Console::create(out).map_err(|source| Error::Thread { what: "the console", source })?;
        let serial = Arc::new(SerialPort::new(Arc::clone(vm), Arc::clone(&console)));
        let mut ports = Bus::default();
        ports.place(0x60, 5, Arc::new(I8042));
        ports.place(0x70, 2, Arc::new(Cmos));
        ports.place(0xf4, 1, Arc::new(DebugExit));
        ports.place(0x3f8, 8, Arc::clone(&serial) as _);
        ports.place(PORTS_START.into(), PORT_COUNT, Arc::new(Power));
        let mut mmio = Bus::default();
        let virtio = VirtioDevices::create(configs, vm, memory, &mut mmio)?;
        Ok(Devices { ports, mmio, virtio, serial, console })
    }

    /// The guest reads or writes a port: one or more accesses of `size` bytes.
    pub(crate) fn port_io(
        &self,
        port: u16,
        size: usize,
        direction: IoDirection,
        data: &mut [u8],
    ) -> Option<GuestExit> {
        let mut ended = None;
        for access in data.chunks_mut(size.max(1)) {
            match direction {
                IoDirection::In => self.ports.read(port.into(), access),
                IoDirection::Out => ended = ended.or(self.ports.write(port.into(), access)),
            }
        }
        ended
    }

    /// The guest reads or writes an address without memory.
    pub(crate) fn mmio(&self, gpa: u64, write: bool, data: &mut [u8]) -> Option<GuestExit> {
        if write {
            return self.mmio.write(gpa, data);
        }
        self.mmio.read(gpa, data);
        None
    }

    /// The devices with threads of their own.
    pub(crate) fn virtio(&self) -> &VirtioDevices {
        &self.virtio
    }

    /// Waits while the console has more to write than it should hold, unless `give_up`.
    pub(crate) fn wait_for_console(&self, give_up: impl Fn() -> bool) {
        self.console.wait_for_space(give_up);
    }

    /// Hands everything that the guest has written to the console's writer.
    pub(crate) fn flush_console(&self) {
        self.console.flush();
    }

    pub(crate) fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Gives the guest bytes to read from its serial port. Returns how many were taken.
    pub(crate) fn console_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    pub(crate) fn save_serial(&self) -> SerialSnapshot {
        self.serial.save()
    }

    /// # Errors
    /// [`StateError`] if the snapshot is not one of a serial port.
    pub(crate) fn restore_serial(&self, snapshot: &SerialSnapshot) -> Result<(), StateError> {
        self.serial.restore(snapshot)
    }
}
