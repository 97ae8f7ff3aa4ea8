//! What all vCPUs share: the configuration, the arena and the expected generation of each page.

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use godwit_guest::config::{BadValue, Config, Workload};
use godwit_guest::histogram::WINDOW_WORDS;
use godwit_guest::page::{PAGE_BYTES, Page};
use godwit_guest::ram::Ram;

use crate::machine::boot::{Boot, Protocol};
use crate::machine::{memory, paging};

/// The whole guest.
pub struct Guest {
    /// The command line.
    pub config: Config,
    /// How the guest was started.
    pub protocol: Protocol,
    /// Pages that are verified.
    pub arena_pages: u64,
    /// Pages of those, from the first on, that have been written; the others stay zero.
    pub owned_pages: u64,
    /// The addresses whose pages appear when they are touched.
    pub faults: paging::Window,
    /// vCPUs that have come to ring 3.
    pub online: AtomicU32,
    /// vCPUs that have filled their share.
    pub filled: AtomicU32,
    /// vCPUs that have done all of their passes.
    pub finished: AtomicU32,
    /// Pages verified in passes that have ended.
    pub verified: AtomicU64,
    /// Corrupt pages found so far.
    pub corrupt: AtomicU64,
    /// What the drivers of devices work with, if there are devices.
    pub disk_pages: Option<DiskPages>,
    arena: Ram,
    /// The windows of all vCPUs.
    windows: &'static [AtomicU64],
    /// For each owned page how often it was written, in the low 31 bits, and whether a vCPU has it.
    generations: &'static [AtomicU32],
}

/// Why the guest cannot start.
pub enum Error {
    /// The loader's information is not what its protocol says.
    NoInformation,
    /// The command line is wrong.
    BadValue(BadValue<'static>),
    /// There is too little memory behind the image.
    NoMemory {
        /// Pages that the bookkeeping and an arena of one page take.
        wanted: u64,
        /// Pages in the first range of memory.
        found: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoInformation => write!(f, "no start information"),
            Error::BadValue(bad) => bad.fmt(f),
            Error::NoMemory { wanted, found } => {
                write!(f, "{wanted} pages needed from 16 MiB on, there are {found}")
            }
        }
    }
}

impl Guest {
    /// Divides the machine's memory into bookkeeping and arena.
    ///
    /// # Errors
    /// A wrong command line, or too little memory.
    pub fn new(boot: &Boot) -> Result<Guest, Error> {
        let config = Config::parse(boot.command_line).map_err(Error::BadValue)?;
        let ram = boot.ram;
        paging::map_identity(&ram);
        let table_pages = ram.pages().min(config.span_pages).div_ceil(PAGE_BYTES / 4);
        let fault_pages = paging::Window::memory_pages(config.fault_pages);
        let window_words = windows_of_a_vcpu(&config) * WINDOW_WORDS;
        let windows_bytes = (config.vcpus * window_words) as u64 * 8;
        let windows_pages = windows_bytes.div_ceil(PAGE_BYTES);
        let disk_pages = config.disk.map_or(0, |_| DiskPages::COUNT);
        let wanted = table_pages + fault_pages + windows_pages + disk_pages;
        let mut arena = ram;
        let found = ram.ranges().first().map_or(0, |range| range.pages());
        let start = arena.take(wanted).ok_or(Error::NoMemory { wanted: wanted + 1, found })?;
        let faults_start = start + table_pages * PAGE_BYTES;
        let windows_start = faults_start + fault_pages * PAGE_BYTES;

        let arena_pages = arena.pages().min(config.span_pages);
        let owned_pages = arena_pages.min(config.fill_pages);
        Ok(Guest {
            config,
            protocol: boot.protocol,
            arena_pages,
            owned_pages,
            faults: paging::Window::new(&ram, faults_start, config.fault_pages),
            online: AtomicU32::new(0),
            filled: AtomicU32::new(0),
            finished: AtomicU32::new(0),
            verified: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            disk_pages: config.disk.map(|_| {
                let start = windows_start + windows_pages * PAGE_BYTES;
                DiskPages { ram, start }
            }),
            arena,
            windows: memory::words(&ram, windows_start, config.vcpus * window_words),
            generations: memory::half_words(&ram, start, owned_pages as usize),
        })
    }

    /// The physical address of a page of the arena.
    ///
    /// # Panics
    /// If it is not in the arena.
    #[inline]
    pub fn address(&self, index: u64) -> u64 {
        self.arena.address_of(index).expect("a page of the arena")
    }

    /// The physical address of a page of the arena, or the address of a page of the fault window.
    pub fn address_of(&self, index: u64) -> u64 {
        if let (Some(pages), true) = (&self.disk_pages, index >= DISK_INDEX) {
            return pages.data_address();
        }
        match index.checked_sub(FAULT_INDEX) {
            Some(fault) => self.faults.address(fault),
            None => self.address(index),
        }
    }

    /// The memory of a page of the arena.
    ///
    /// # Panics
    /// If it is not in the arena.
    #[inline]
    pub fn page(&self, index: u64) -> &'static Page {
        memory::page(&self.arena, self.address(index))
    }

    /// The memory for the windows of a vCPU.
    pub fn windows(&self, vcpu: usize) -> &'static [AtomicU64] {
        let words = self.windows.len() / self.config.vcpus;
        &self.windows[vcpu * words..(vcpu + 1) * words]
    }

    /// How often an owned page has been written.
    #[inline]
    pub fn generation(&self, index: u64) -> u64 {
        u64::from(self.generations[index as usize].load(Relaxed) & !LOCKED)
    }

    /// Records that an owned page has been written, and unlocks it.
    #[inline]
    pub fn set_generation(&self, index: u64, generation: u64) {
        let low = (generation as u32) & !LOCKED;
        self.generations[index as usize].store(low, Release);
    }

    /// Takes an owned page from the other vCPUs until `set_generation`; false if another has it.
    #[inline]
    pub fn try_lock(&self, index: u64) -> bool {
        self.generations[index as usize].fetch_or(LOCKED, Acquire) & LOCKED == 0
    }
}

fn windows_of_a_vcpu(config: &Config) -> usize {
    match config.workload {
        Workload::Random | Workload::Chase => config.windows as usize,
        _ => 0,
    }
}

/// The pages that drivers share with devices, and what they remember.
#[derive(Clone, Copy)]
pub struct DiskPages {
    ram: Ram,
    start: u64,
}

impl DiskPages {
    const COUNT: u64 = 5;

    fn page(&self, number: u64) -> &'static Page {
        memory::page(&self.ram, self.start + number * PAGE_BYTES)
    }

    /// The queue of the disk.
    pub fn queue(&self) -> &'static Page {
        self.page(0)
    }

    /// Where that is.
    pub fn queue_address(&self) -> u64 {
        self.start
    }

    /// The queue of the source of random numbers.
    pub fn rng_queue(&self) -> &'static Page {
        self.page(1)
    }

    /// Where that is.
    pub fn rng_queue_address(&self) -> u64 {
        self.start + PAGE_BYTES
    }

    /// The header and the status of a request, and 64 bytes on what came from the source.
    pub fn request(&self) -> &'static Page {
        self.page(2)
    }

    /// Where that is.
    pub fn request_address(&self) -> u64 {
        self.start + 2 * PAGE_BYTES
    }

    /// The block that is read or written.
    pub fn data(&self) -> &'static Page {
        self.page(3)
    }

    /// Where that is.
    pub fn data_address(&self) -> u64 {
        self.start + 3 * PAGE_BYTES
    }

    /// How often each block has been written.
    pub fn generations(&self) -> &'static Page {
        self.page(4)
    }
}

/// The blocks of a disk have indices from here on.
pub const DISK_INDEX: u64 = 1 << 41;
/// The pages of the fault window have indices from here on.
pub const FAULT_INDEX: u64 = 1 << 40;
const LOCKED: u32 = 1 << 31;
