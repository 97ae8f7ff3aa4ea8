//! `disk`: vCPU 0 writes the blocks of a disk and verifies them, the others do what `dirty` does.

use core::sync::atomic::Ordering::Relaxed;

use godwit_guest::page::{self, PAGE_WORDS};

use crate::guest::{DISK_INDEX, DiskPages};
use crate::machine;
use crate::vcpu::{Pass, Vcpu};
use crate::virtio::{Buffer, Device};
use crate::workload::dirty;
use crate::workload::sequential::sweep_zero;

/// Sweeps over the blocks: each is read and verified if it was written before, and its next
/// generation is written. At the end of a sweep the disk is flushed. Between the blocks, the pages
/// of the share are verified and written, one for each.
pub fn run(vcpu: &mut Vcpu) {
    if vcpu.index != 0 {
        return dirty::run(vcpu);
    }
    let mut disk = match Disk::start(vcpu) {
        Ok(disk) => disk,
        Err(why) => give_up(vcpu, "disk", why),
    };
    let mut source = vcpu.guest.config.rng.map(|start| match Source::start(vcpu, start) {
        Ok(source) => source,
        Err(why) => give_up(vcpu, "rng", why),
    });
    while let Some(mut pass) = vcpu.begin_pass() {
        let mut share = vcpu.owned_share();
        for block in 0..disk.blocks {
            if let Err(why) = disk.check_and_write(vcpu, &mut pass, block) {
                give_up(vcpu, "disk", why);
            }
            if let Some(index) = share.next() {
                dirty::check_and_write(vcpu, &mut pass, index, true);
            }
        }
        for index in share {
            dirty::check_and_write(vcpu, &mut pass, index, true);
        }
        let flushed = disk.ask(vcpu, FLUSH, 0, None);
        let random = source.as_mut().map_or(Ok(()), |source| source.take(vcpu));
        if let Err(why) = flushed.and(random) {
            give_up(vcpu, "disk or rng", why);
        }
        sweep_zero(vcpu, &mut pass, 1);
        if pass.printed {
            let (blocks, tsc) = (disk.blocks, machine::tsc());
            vcpu.line(format_args!("disk n={} blocks={blocks} tsc={tsc}", pass.number));
        }
        vcpu.end_pass(&pass);
    }
}

fn give_up(vcpu: &mut Vcpu, what: &str, why: &str) -> ! {
    vcpu.line(format_args!("error {what}: {why}"));
    machine::exit(EXIT_DEVICE)
}

/// The disk and what it holds.
struct Disk {
    device: Device,
    pages: DiskPages,
    blocks: u64,
}

impl Disk {
    fn start(vcpu: &Vcpu) -> Result<Disk, &'static str> {
        let start = vcpu.guest.config.disk.ok_or("no disk= says where it is")?;
        let pages = vcpu.guest.disk_pages.ok_or("there is no memory for it")?;
        let device = Device::start(start, BLOCK, pages.queue(), pages.queue_address())?;
        let room = device.configuration() / SECTORS;
        let blocks = room.min(vcpu.guest.config.blocks).min(PAGE_WORDS as u64);
        pages.generations().iter().for_each(|generation| generation.store(0, Relaxed));
        Ok(Disk { device, pages, blocks })
    }

    fn check_and_write(
        &mut self,
        vcpu: &mut Vcpu,
        pass: &mut Pass,
        block: u64,
    ) -> Result<(), &'static str> {
        let generation = self.pages.generations()[block as usize].load(Relaxed);
        if generation > 0 {
            // What a read that never happened would leave behind is no block.
            self.pages.data().iter().for_each(|word| word.store(0, Relaxed));
            self.ask(vcpu, READ, block, Some(true))?;
            let content = vcpu.content(DISK_INDEX + block, generation);
            vcpu.check_page(pass, self.pages.data(), &content);
        }
        let content = vcpu.content(DISK_INDEX + block, generation + 1);
        page::write(self.pages.data(), &content);
        self.ask(vcpu, WRITE, block, Some(false))?;
        self.pages.generations()[block as usize].store(generation + 1, Relaxed);
        Ok(())
    }

    /// Makes a request, with the data page for the device to write or to read.
    fn ask(
        &mut self,
        vcpu: &mut Vcpu,
        kind: u64,
        block: u64,
        data: Option<bool>,
    ) -> Result<(), &'static str> {
        let request = self.pages.request();
        request[0].store(kind, Relaxed);
        request[1].store(block * SECTORS, Relaxed);
        request[2].store(u64::MAX, Relaxed);
        let address = self.pages.request_address();
        let header = Buffer { address, bytes: 16, for_device: false };
        let status = Buffer { address: address + 16, bytes: 1, for_device: true };
        let data = data.map(|for_device| Buffer {
            address: self.pages.data_address(),
            bytes: 4096,
            for_device,
        });
        let done = match data {
            Some(data) => self.device.ask(vcpu, &[header, data, status]),
            None => self.device.ask(vcpu, &[header, status]),
        };
        match (done, request[2].load(Relaxed) & 0xff) {
            (None, _) => Err("the device has given up"),
            (Some(_), 0) => Ok(()),
            (Some(_), 0xff) => Err("a request was done and not answered"),
            (Some(_), _) => Err("a request failed"),
        }
    }
}

/// A source of random numbers.
struct Source {
    device: Device,
    pages: DiskPages,
    last: [u64; 2],
}

impl Source {
    fn start(vcpu: &Vcpu, start: u64) -> Result<Source, &'static str> {
        let pages = vcpu.guest.disk_pages.ok_or("there is no memory for it")?;
        let device = Device::start(start, RNG, pages.rng_queue(), pages.rng_queue_address())?;
        Ok(Source { device, pages, last: [0; 2] })
    }

    /// Takes 16 bytes, which are not those of the last time.
    fn take(&mut self, vcpu: &mut Vcpu) -> Result<(), &'static str> {
        let address = self.pages.request_address() + 64;
        let buffer = Buffer { address, bytes: 16, for_device: true };
        if self.device.ask(vcpu, &[buffer]) != Some(16) {
            return Err("no random bytes came");
        }
        let request = self.pages.request();
        let bytes = [request[8].load(Relaxed), request[9].load(Relaxed)];
        let same = core::mem::replace(&mut self.last, bytes) == bytes;
        if same { Err("the same random bytes came twice") } else { Ok(()) }
    }
}

const BLOCK: u32 = 2;
const RNG: u32 = 4;
const READ: u64 = 0;
const WRITE: u64 = 1;
const FLUSH: u64 = 4;
/// Sectors of a block, which is as large as a page.
const SECTORS: u64 = 8;
const EXIT_DEVICE: u8 = 5;
