//! A bus: ranges of addresses, each with a device.

use std::sync::Arc;

use crate::vm::GuestExit;

/// A device on a bus. `offset` counts from the start of the device's range.
pub(crate) trait Device: Send + Sync {
    /// The guest reads `data.len()` bytes.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data`. Returns how the guest ended, if this ends it.
    fn write(&self, offset: u64, data: &[u8]) -> Option<GuestExit>;
}

struct Place {
    start: u64,
    bytes: u64,
    device: Arc<dyn Device>,
}

/// Ranges of addresses that do not overlap, in ascending order.
#[derive(Default)]
pub(crate) struct Bus {
    places: Vec<Place>,
}

impl Bus {
    /// Puts a device at `start`.
    ///
    /// # Panics
    /// If the range overlaps another: the map of the machine is ours to get right.
    pub(crate) fn place(&mut self, start: u64, bytes: u64, device: Arc<dyn Device>) {
        let at = self.places.partition_point(|place| place.start < start);
        let before = at.checked_sub(1).map(|index| &self.places[index]);
        assert!(before.is_none_or(|place| place.start + place.bytes <= start));
        assert!(self.places.get(at).is_none_or(|place| start + bytes <= place.start));
        self.places.insert(at, Place { start, bytes, device });
    }

    fn find(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let at = self.places.partition_point(|place| place.start <= address).checked_sub(1)?;
        let place = &self.places[at];
        let offset = address - place.start;
        (offset < place.bytes).then_some((&*place.device, offset))
    }

    /// The guest reads. Where nothing is, all bits are set.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes. Where nothing is, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Option<GuestExit> {
        let (device, offset) = self.find(address)?;
        device.write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(u8);

    impl Device for Constant {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }

        fn write(&self, _offset: u64, data: &[u8]) -> Option<GuestExit> {
            Some(GuestExit::PowerOff { code: data[0] })
        }
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn each_address_reaches_its_device() {
        let mut bus = Bus::default();
        bus.place(0x70, 2, Arc::new(Constant(0x70)));
        bus.place(0x60, 1, Arc::new(Constant(0x10)));
        let found: Vec<u8> = (0x5f..0x73).map(|address| read(&bus, address)).collect();
        assert_eq!(found[..2], [0xff, 0x10]);
        assert_eq!(found[2], 0xff);
        assert_eq!(found[0x11..], [0x70, 0x71, 0xff]);
        assert_eq!(bus.write(0x71, &[9]), Some(GuestExit::PowerOff { code: 9 }));
        assert_eq!(bus.write(0x72, &[9]), None);
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn overlap_is_a_bug() {
        let mut bus = Bus::default();
        bus.place(0x60, 4, Arc::new(Constant(0)));
        bus.place(0x63, 1, Arc::new(Constant(0)));
    }
}
