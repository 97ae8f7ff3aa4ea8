//! Drivers that mean harm, or make no sense: no panic, nothing outside memory, no end of work.

use proptest::prelude::*;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{
    AVAILABLE, DATA, DESCRIPTORS, Driver, HEADER, INDIRECT, MEMORY_BYTES, NEXT, STATUS, USED,
    WRITE, deadline, memory,
};
use super::{disk, file};
use crate::devices::bus::Device;
use crate::vm::DeviceConfig;

/// The device stops, and a reset brings it back.
fn breaks(ask: impl Fn(&mut Driver)) {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    ask(&mut driver);
    driver.wait_broken();
    driver.set_up(u64::MAX);
    assert!(!driver.needs_reset());
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_IN, 3, 512), blk::VIRTIO_BLK_S_OK);
}

#[test]
fn a_ring_that_runs_away_stops_the_device() {
    breaks(|driver| {
        driver.memory.inner().write_obj(100_u16, GuestAddress(AVAILABLE + 2)).unwrap();
        driver.set(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    });
    breaks(|driver| driver.ask(16));
    breaks(|driver| driver.ask(u16::MAX));
}

#[test]
fn buffers_outside_memory_stop_the_device() {
    let places = [MEMORY_BYTES, MEMORY_BYTES - 511, u64::MAX - 100, 0xd000_0000];
    for gpa in places {
        breaks(|driver| {
            driver.describe_disk(blk::VIRTIO_BLK_T_IN, 0, 512);
            driver.describe(1, gpa, 512, NEXT | WRITE, 2);
            driver.ask(0);
        });
    }
}

#[test]
fn requests_without_a_header_or_a_status_stop_the_device() {
    breaks(|driver| {
        driver.describe(0, HEADER, 15, NEXT, 1);
        driver.describe(1, STATUS, 1, WRITE, 0);
        driver.ask(0);
    });
    breaks(|driver| {
        driver.describe(0, HEADER, 16, 0, 0);
        driver.ask(0);
    });
    breaks(|driver| {
        driver.describe(0, DATA, 0, WRITE, 0);
        driver.ask(0);
    });
}

#[test]
fn a_table_without_end_stops_the_device() {
    breaks(|driver| {
        // As many entries as a table can have, each with a buffer.
        let table = MEMORY_BYTES / 2;
        for index in 0..1000 {
            let next = u16::try_from(index + 1).unwrap();
            driver.describe_at(table + 16 * index, DATA, 1, NEXT, next);
        }
        driver.describe(0, table, 65535 * 16, INDIRECT, 0);
        driver.ask(0);
    });
    // A loop ends by itself, and is a request like any other.
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    driver.describe_disk(blk::VIRTIO_BLK_T_OUT, 0, 512);
    driver.describe(1, DATA, 512, NEXT, 1);
    driver.describe(2, STATUS, 1, NEXT | WRITE, 2);
    driver.ask(0);
    driver.wait_broken();
}

#[test]
fn a_request_without_end_is_refused() {
    let file = file();
    file.as_file().set_len(64 << 20).unwrap();
    let mut driver = Driver::start(&disk(file.path(), false));
    driver.describe_disk(blk::VIRTIO_BLK_T_OUT, 0, 0);
    let table = MEMORY_BYTES - (1 << 20);
    driver.describe_at(table, HEADER, 16, NEXT, 1);
    for index in 1..9 {
        driver.describe_at(table + 16 * u64::from(index), DATA, 8 << 20, NEXT, index + 1);
    }
    driver.describe_at(table + 16 * 9, STATUS, 1, WRITE, 0);
    driver.describe(0, table, 160, INDIRECT, 0);
    driver.ask(0);
    driver.wait();
    assert_eq!(driver.disk_status(), blk::VIRTIO_BLK_S_IOERR);
}

#[test]
fn queues_outside_memory_are_refused() {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    let far = MEMORY_BYTES - 16;
    for (descriptors, available, used) in [
        (far, AVAILABLE, USED),
        (DESCRIPTORS, far, USED),
        (DESCRIPTORS, AVAILABLE, u64::MAX - 3),
        (DESCRIPTORS + 1, AVAILABLE, USED),
    ] {
        driver.reset_to_features(u64::MAX);
        driver.place_queue(descriptors, available, used);
        driver.set(register::VIRTIO_MMIO_STATUS, 15);
        assert!(driver.needs_reset(), "{descriptors:#x} {available:#x} {used:#x}");
        driver.set(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
    for size in [0, 3, 512, 0x1_0010] {
        driver.reset_to_features(u64::MAX);
        driver.place_queue(DESCRIPTORS, AVAILABLE, USED);
        driver.set(register::VIRTIO_MMIO_QUEUE_NUM, size);
        driver.set(register::VIRTIO_MMIO_STATUS, 15);
        assert!(driver.needs_reset(), "{size}");
    }
    driver.set_up(u64::MAX);
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_IN, 0, 512), blk::VIRTIO_BLK_S_OK);
}

#[test]
fn features_that_are_not_offered_are_not_taken() {
    let driver = Driver::create(&DeviceConfig::Rng, memory());
    driver.set(register::VIRTIO_MMIO_STATUS, 3);
    driver.set(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    driver.set(register::VIRTIO_MMIO_DRIVER_FEATURES, 0x41);
    driver.set(register::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.get(register::VIRTIO_MMIO_STATUS), 3);
    // Nor is a driver of the time before the standard.
    driver.set(register::VIRTIO_MMIO_DRIVER_FEATURES, 0);
    driver.set(register::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.get(register::VIRTIO_MMIO_STATUS), 3);
    driver.set(register::VIRTIO_MMIO_STATUS, 7);
    assert!(driver.needs_reset());
}

/// A write to a register or to memory near the rings.
#[derive(Clone, Debug)]
enum Move {
    Register(u32, u32),
    Memory(u64, Vec<u8>),
    Descriptor(u16, u64, u32, u16, u16),
    Ask(u16),
}

fn moves() -> impl Strategy<Value = Move> {
    let place = prop_oneof![Just(DATA), Just(HEADER), Just(STATUS), any::<u64>(), 0..MEMORY_BYTES];
    let bytes = prop_oneof![Just(16_u32), Just(512), Just(1), any::<u32>(), 0..70_000_u32];
    let value = prop_oneof![0..20_u32, any::<u32>()];
    prop_oneof![
        (0..0x44_u32, value).prop_map(|(register, value)| Move::Register(register * 4, value)),
        (DESCRIPTORS..STATUS + 16, proptest::collection::vec(any::<u8>(), 1..32))
            .prop_map(|(at, bytes)| Move::Memory(at, bytes)),
        (0..16_u16, place, bytes, 0..8_u16, 0..17_u16).prop_map(
            |(index, gpa, bytes, flags, next)| Move::Descriptor(index, gpa, bytes, flags, next)
        ),
        (0..17_u16).prop_map(Move::Ask),
    ]
}

fn make(driver: &mut Driver, step: &Move) {
    match step {
        Move::Register(register, value) => driver.set(*register, *value),
        Move::Memory(at, bytes) => {
            driver.memory.inner().write_slice(bytes, GuestAddress(*at)).unwrap();
        }
        Move::Descriptor(index, gpa, bytes, flags, next) => {
            driver.describe(*index, *gpa, *bytes, *flags, *next);
        }
        Move::Ask(head) => driver.ask(*head),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_driver_does_the_device_can_be_stopped_and_reset(
        steps in proptest::collection::vec(moves(), 1..60),
        wanted in any::<u64>(),
        rng in any::<bool>(),
    ) {
        let file = file();
        let config = if rng { DeviceConfig::Rng } else { disk(file.path(), false) };
        let mut driver = Driver::start(&config);
        driver.set_up(wanted | 1 << 32);
        steps.iter().for_each(|step| make(&mut driver, step));
        driver.device.park();
        assert!(driver.device.wait_idle(deadline()));
        let fresh = Driver::create(&config, memory());
        // What was saved fits, whatever the driver did.
        let state = driver.device.save();
        fresh.device.restore(&state).unwrap();
        assert_eq!(fresh.device.save(), state);
        driver.device.run();
        driver.set_up(u64::MAX);
        let mut byte = [0; 8];
        driver.device.read(0x100, &mut byte);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 64 * 512);
    }
}
