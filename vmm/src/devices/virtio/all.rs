//! All virtio devices of a machine.

use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};

use super::interrupt::Interrupt;
use super::{DEVICE_COUNT_MAX, DeviceError, MmioPlace, Transport, build};
use crate::Error;
use crate::devices::bus::Bus;
use crate::kvm::failed;
use crate::memory::GuestMemory;
use crate::state::{StateError, VirtioState};
use crate::vm::DeviceConfig;

/// All virtio devices of a machine, in the order of their places.
pub(crate) struct VirtioDevices {
    devices: Vec<Arc<Transport>>,
    places: Vec<MmioPlace>,
}

impl VirtioDevices {
    /// Makes the devices and puts their registers on the bus. Their threads wait.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Thread`], [`Error::Kvm`].
    pub(crate) fn create(
        configs: &[DeviceConfig],
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemory>,
        bus: &mut Bus,
    ) -> Result<VirtioDevices, Error> {
        if configs.len() > DEVICE_COUNT_MAX {
            return Err(DeviceError::Count { wanted: configs.len() }.into());
        }
        let mut all = VirtioDevices { devices: Vec::new(), places: Vec::new() };
        for (number, config) in configs.iter().enumerate() {
            let place = MmioPlace::of(number);
            let interrupt = Interrupt::new(Some(Arc::clone(vm)), place.interrupt);
            let device = Transport::create(build(config)?, Arc::clone(memory), interrupt)
                .map_err(|source| Error::Thread { what: "a device", source })?;
            let device = Arc::new(device);
            // From here on the drop of `all` ends its thread.
            all.devices.push(Arc::clone(&device));
            all.places.push(place);
            let (event, offset) = device.notification();
            let address = IoEventAddress::Mmio(place.gpa.0 + offset);
            vm.register_ioevent(event, &address, NoDatamatch).map_err(failed("KVM_IOEVENTFD"))?;
            bus.place(place.gpa.0, place.bytes, device);
        }
        Ok(all)
    }

    /// Where they are.
    pub(crate) fn places(&self) -> &[MmioPlace] {
        &self.places
    }

    /// Lets requests be served.
    pub(crate) fn run(&self) {
        self.devices.iter().for_each(|device| device.run());
    }

    /// Begins no more requests, and waits for those under way, at most until the deadline.
    ///
    /// # Errors
    /// The name of a device that is still busy then.
    pub(crate) fn park(&self, deadline: Instant) -> Result<(), String> {
        self.devices.iter().for_each(|device| device.park());
        let busy = self.devices.iter().find(|device| !device.wait_idle(deadline));
        busy.map_or(Ok(()), |device| Err(device.name().to_owned()))
    }

    /// The name of a device that is busy.
    pub(crate) fn first_busy(&self) -> Option<String> {
        self.devices.iter().find(|device| device.is_busy()).map(|device| device.name().to_owned())
    }

    /// Takes what only one process may have: the disks.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn open(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| device.open())
    }

    /// Gives that back.
    pub(crate) fn close(&self) {
        self.devices.iter().for_each(|device| device.close());
    }

    /// Sees to it that what the guest was told is done is there for the next host.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| device.settle())
    }

    /// The state of each. They must be parked.
    pub(crate) fn save(&self) -> Vec<VirtioState> {
        self.devices.iter().map(|device| device.save()).collect()
    }

    /// Puts back what was saved, which is as many states as there are devices.
    ///
    /// # Errors
    /// [`StateError::Device`].
    pub(crate) fn restore(&self, states: &[VirtioState]) -> Result<(), StateError> {
        self.devices.iter().zip(states).try_for_each(|(device, state)| device.restore(state))
    }

    /// The number of devices.
    pub(crate) fn count(&self) -> usize {
        self.devices.len()
    }

    /// The threads are to end; whatever they still read has no effect.
    pub(crate) fn dismiss(&self) {
        self.devices.iter().for_each(|device| device.dismiss());
    }

    /// Waits for the end of the threads, at most until the deadline. Whoever is late ends by
    /// itself.
    pub(crate) fn join(&self, deadline: Instant) {
        self.devices.iter().for_each(|device| device.join(deadline));
    }
}

impl Drop for VirtioDevices {
    fn drop(&mut self) {
        self.dismiss();
    }
}
