//! Devices without a guest: what they do, what they refuse, and how they are stopped.

mod driver;
mod hostile;
mod missing;

use std::path::Path;
use std::sync::Arc;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_mmio as register;

use super::block::Block;
use super::{DeviceError, VirtioDevice};
use crate::devices::bus::Device;
use crate::state::StateError;
use crate::vm::{DeviceConfig, DiskConfig};
use driver::{DATA, Driver, NEXT, WRITE, deadline, memory};

const SECTORS: usize = 64;

/// A file in which each sector is filled with its number.
fn file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SECTORS * 512).map(|at| u8::try_from(at / 512).unwrap()).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn disk(path: &Path, readonly: bool) -> DeviceConfig {
    DeviceConfig::Disk(DiskConfig { path: path.to_owned(), readonly })
}

#[test]
fn driver_finds_what_the_device_is() {
    let file = file();
    let driver = Driver::create(&disk(file.path(), false), memory());
    assert_eq!(driver.get(register::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.get(register::VIRTIO_MMIO_DEVICE_ID), 2);
    assert_eq!(driver.get(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    driver.set(register::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.get(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.get(register::VIRTIO_MMIO_CONFIG), u32::try_from(SECTORS).unwrap());
    let mut byte = [0xff];
    driver.device.read(0x100, &mut byte);
    assert_eq!(byte, [64]);
    driver.device.read(u64::MAX, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn disk_is_read_written_and_flushed() {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_IN, 7, 1024), blk::VIRTIO_BLK_S_OK);
    assert_eq!(driver.wait(), 1025);
    assert_eq!(driver.data(1024), [[7; 512], [8; 512]].concat());
    driver.set_data(&[0xaa; 1536]);
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_OUT, 61, 1536), blk::VIRTIO_BLK_S_OK);
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_FLUSH, 0, 0), blk::VIRTIO_BLK_S_OK);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes[60 * 512..61 * 512], [60; 512]);
    assert_eq!(bytes[61 * 512..], [0xaa; 1536]);
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_GET_ID, 0, 20), blk::VIRTIO_BLK_S_OK);
    let name = file.path().file_name().unwrap().to_str().unwrap();
    assert!(driver.data(20).starts_with(&name.as_bytes()[..name.len().min(20)]));
    assert_eq!(driver.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.set(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn disk_discards_and_zeroes() {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    let segment = |sector: u64, sectors: u32, flags: u32| {
        let words = [sector.to_le_bytes().to_vec(), sectors.to_le_bytes().to_vec()].concat();
        [words, flags.to_le_bytes().to_vec()].concat()
    };
    for (flags, sector) in [(0, 3_u64), (1, 5)] {
        driver.set_data(&segment(sector, 2, flags));
        assert_eq!(driver.disk(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), blk::VIRTIO_BLK_S_OK);
    }
    driver.set_data(&segment(9, 8, 0));
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_DISCARD, 0, 16), blk::VIRTIO_BLK_S_OK);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!((bytes.len(), &bytes[2 * 512..3 * 512]), (SECTORS * 512, &[2; 512][..]));
    assert_eq!(bytes[3 * 512..7 * 512], [0; 2048]);
    assert_eq!(bytes[7 * 512..8 * 512], [7; 512]);
    driver.set_data(&segment(60, 5, 0));
    for kind in [blk::VIRTIO_BLK_T_WRITE_ZEROES, blk::VIRTIO_BLK_T_DISCARD] {
        assert_eq!(driver.disk(kind, 0, 16), blk::VIRTIO_BLK_S_IOERR);
        assert_eq!(driver.disk(kind, 0, 15), blk::VIRTIO_BLK_S_IOERR);
    }
    driver.set_data(&segment(0, 1, 2));
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_DISCARD, 0, 16), blk::VIRTIO_BLK_S_UNSUPP);
    assert_eq!(std::fs::read(file.path()).unwrap()[..512], [0; 512]);
}

#[test]
fn disk_refuses_what_it_does_not_have() {
    let file = file();
    let before = std::fs::read(file.path()).unwrap();
    let mut driver = Driver::start(&disk(file.path(), false));
    for (sector, bytes) in [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)]
    {
        for kind in [blk::VIRTIO_BLK_T_IN, blk::VIRTIO_BLK_T_OUT] {
            assert_eq!(driver.disk(kind, sector, bytes), blk::VIRTIO_BLK_S_IOERR, "{sector}");
        }
    }
    assert_eq!(driver.disk(99, 0, 512), blk::VIRTIO_BLK_S_UNSUPP);
    drop(driver);
    let mut driver = Driver::start(&disk(file.path(), true));
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_OUT, 0, 512), blk::VIRTIO_BLK_S_IOERR);
    assert_eq!(driver.disk(blk::VIRTIO_BLK_T_IN, 2, 512), blk::VIRTIO_BLK_S_OK);
    assert_eq!(driver.data(512), [2; 512]);
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}

#[test]
fn many_requests_go_round_the_ring_and_through_indirect_tables() {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    let table = DATA + 0x10_0000;
    for round in 0..200 {
        let sector = round % 64;
        driver.describe_disk(blk::VIRTIO_BLK_T_IN, sector, 512);
        for index in 0..3 {
            let gpa = [driver::HEADER, DATA, driver::STATUS][usize::from(index)];
            let (bytes, write) = [(16, 0), (512, WRITE), (1, WRITE)][usize::from(index)];
            let next = if index < 2 { NEXT } else { 0 };
            driver.describe_at(table + 16 * u64::from(index), gpa, bytes, write | next, index + 1);
        }
        driver.describe(5, table, 48, driver::INDIRECT, 0);
        driver.ask(if round % 2 == 0 { 5 } else { 0 });
        assert_eq!(driver.wait(), 513);
        assert_eq!(driver.data(512), [u8::try_from(sector).unwrap(); 512]);
    }
}

#[test]
fn rng_gives_different_bytes() {
    let mut driver = Driver::start(&DeviceConfig::Rng);
    driver.describe(0, DATA, 64, WRITE | NEXT, 1);
    driver.describe(1, DATA + 64, 64, WRITE, 0);
    driver.ask(0);
    assert_eq!(driver.wait(), 128);
    let first = driver.data(128);
    driver.ask(0);
    driver.wait();
    assert_ne!(first, driver.data(128));
}

#[test]
fn a_disk_that_is_written_has_one_user_and_one_that_is_read_has_many() {
    let file = file();
    let block = |readonly| {
        let path = file.path().to_owned();
        Block::new(&DiskConfig { path, readonly }).unwrap()
    };
    let (mut writer, mut other) = (block(false), block(false));
    let (mut reader, mut second) = (block(true), block(true));
    writer.open().unwrap();
    assert!(matches!(other.open(), Err(DeviceError::InUse { .. })));
    assert!(matches!(reader.open(), Err(DeviceError::InUse { .. })));
    writer.close();
    reader.open().unwrap();
    second.open().unwrap();
    assert!(matches!(writer.open(), Err(DeviceError::InUse { .. })));
    reader.close();
    second.close();
    other.open().unwrap();
    drop(other);
    writer.open().unwrap();
    writer.close();
    file.as_file().set_len(1024).unwrap();
    assert!(matches!(writer.open(), Err(DeviceError::SizeChanged { found: 1024, .. })));
}

#[test]
fn not_everything_is_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd");
    let look = |path: &Path| {
        Block::new(&DiskConfig { path: path.to_owned(), readonly: true }).err().unwrap()
    };
    assert!(matches!(look(&path), DeviceError::Open { .. }));
    assert!(matches!(look(dir.path()), DeviceError::NotADisk { .. }));
    assert!(matches!(look(Path::new("/dev/null")), DeviceError::NotADisk { .. }));
    std::fs::write(&path, [0; 513]).unwrap();
    assert!(matches!(look(&path), DeviceError::NotADisk { .. }));
    std::fs::write(&path, []).unwrap();
    assert!(matches!(look(&path), DeviceError::NotADisk { .. }));
}

#[test]
fn parked_device_begins_nothing_and_goes_on_where_it_was() {
    let file = file();
    let mut driver = Driver::start(&disk(file.path(), false));
    driver.disk(blk::VIRTIO_BLK_T_IN, 1, 512);
    driver.device.park();
    assert!(driver.device.wait_idle(deadline()));
    driver.describe_disk(blk::VIRTIO_BLK_T_IN, 2, 512);
    driver.ask(0);
    std::thread::yield_now();
    assert_eq!(driver.used(), 1);
    driver.device.run();
    driver.wait();
    assert_eq!(driver.data(512), [2; 512]);
}

#[test]
fn saved_device_goes_on_in_another_process() {
    let file = file();
    let config = disk(file.path(), false);
    let mut source = Driver::start(&config);
    source.disk(blk::VIRTIO_BLK_T_IN, 1, 512);
    source.device.park();
    assert!(source.device.wait_idle(deadline()));
    source.describe_disk(blk::VIRTIO_BLK_T_IN, 5, 512);
    source.ask(0);
    let state = source.device.save();
    source.device.settle().unwrap();

    // The memory moves with it; here it is the same.
    let mut destination = Driver::create(&config, Arc::clone(&source.memory));
    destination.device.restore(&state).unwrap();
    assert_eq!(destination.device.save(), state);
    destination.asked = source.asked;
    // It runs, and waits for the lock that the source still has.
    destination.device.run();
    assert!(matches!(destination.device.open(), Err(DeviceError::InUse { .. })));
    assert_eq!(destination.used(), 1);
    source.device.close();
    destination.wait();
    assert_eq!(destination.data(512), [5; 512]);
    // The source does not run, and would wait for the lock if it did.
    source.device.run();
    assert!(matches!(source.device.open(), Err(DeviceError::InUse { .. })));
}

#[test]
fn state_of_another_device_is_refused() {
    let file = file();
    let config = disk(file.path(), false);
    let driver = Driver::start(&config);
    let good = driver.device.save();
    let refused = |change: fn(&mut crate::state::VirtioState)| {
        let mut state = good.clone();
        change(&mut state);
        let fresh = Driver::create(&config, memory());
        let error = fresh.device.restore(&state).unwrap_err();
        assert!(matches!(error, StateError::Device { .. }), "{error}");
    };
    refused(|state| state.id = 4);
    refused(|state| state.config.0[0] += 1);
    refused(|state| state.queues.clear());
    refused(|state| state.driver_features |= 1 << 50);
    refused(|state| state.queues[0].size = 3);
    refused(|state| state.queues[0].size = 512);
    refused(|state| state.queues[0].used = u64::MAX - 3);
    refused(|state| state.queues[0].descriptors = driver::MEMORY_BYTES);
}
