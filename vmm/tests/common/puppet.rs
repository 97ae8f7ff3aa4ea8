//! Guests whose writes are watched: one that writes what it is told to, and one that writes all
//! the time and verifies.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_migration::page::PageSet;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::Vm;
use vm_memory::{Bytes, GuestAddress};

use super::{Protocol, Screen};

pub const PAGE: u64 = 4096;

/// Does a round of writes whenever it is told to: loads the number of the round at 2 MiB, compares
/// it with the one behind it, and if they differ stores it at as many addresses as the orders say,
/// and then behind itself.
pub const PUPPET: &[u8] = &[
    0x48, 0x8b, 0x04, 0x25, 0, 0, 0x20, 0, // begin: mov rax, [0x200000]
    0x48, 0x3b, 0x04, 0x25, 8, 0, 0x20, 0, // cmp rax, [0x200008]
    0x74, 0xee, // je begin
    0x48, 0x8b, 0x3c, 0x25, 0x10, 0, 0x20, 0, // mov rdi, [0x200010]
    0x48, 0x8b, 0x0c, 0x25, 0x18, 0, 0x20, 0, // mov rcx, [0x200018]
    0x48, 0x8b, 0x14, 0x25, 0x20, 0, 0x20, 0, // mov rdx, [0x200020]
    0x48, 0x89, 0x07, // again: mov [rdi], rax
    0x48, 0x01, 0xd7, // add rdi, rdx
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf5, // jnz again
    0x48, 0x89, 0x04, 0x25, 8, 0, 0x20, 0, // mov [0x200008], rax
    0xeb, 0xc1, // jmp begin
];
pub const ORDERS: u64 = 0x20_0000;
pub const DONE: u64 = ORDERS + 8;
/// The page of the orders: both sides write it.
pub const ORDERS_PAGE: u32 = 0x200;
/// What the processor writes unasked, the accessed and dirty bits of page tables, is below.
pub const LOW_PAGES: u32 = 0x100;
/// The page table whose entries stand for 1 GiB each.
pub const PAGE_TABLES_OF_GIB: u64 = 0xa000;

/// A guest that writes what it is told to.
pub struct Puppet {
    pub vm: Vm,
    pub round: u64,
}

impl Puppet {
    pub fn create(bytes: u64, backing: Backing) -> Puppet {
        let mut config = super::config(1, 64, backing);
        config.memory_bytes = bytes;
        let vm = Vm::create(&config, Box::new(Screen::default())).unwrap();
        vm.boot(&super::elf(PUPPET, Protocol::Linux64), None, "").unwrap();
        Puppet { vm, round: 0 }
    }

    /// Lets the guest write `count` pages, each `stride` pages behind the one before, and waits
    /// until it has. Returns the pages that are written, with that of the orders.
    pub fn write(&mut self, first: u64, count: u64, stride: u64) -> BTreeSet<u32> {
        self.round += 1;
        super::write(&self.vm, ORDERS + 16, &[first * PAGE, count, stride * PAGE]);
        super::write(&self.vm, ORDERS, &[self.round]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while super::read(&self.vm, DONE) != self.round {
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::yield_now();
        }
        let pages = (0..count).map(|i| u32::try_from(first + i * stride).unwrap());
        pages.chain([ORDERS_PAGE]).collect()
    }

    /// What the kernel says in lines of this name of the mappings that guest memory is in.
    pub fn of_mapping(&self, name: &str) -> Vec<String> {
        let region = self.vm.memory().regions()[0];
        let (first, end) = (region.hva.0, region.hva.0 + region.bytes);
        let (mut inside, mut found) = (false, Vec::new());
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let word = line.split_ascii_whitespace().next().unwrap_or_default();
            if let Some((from, to)) = word.split_once('-') {
                let address = |text| u64::from_str_radix(text, 16).unwrap();
                inside = address(from) < end && address(to) > first;
            } else if inside && word == name {
                found.push(line[name.len()..].trim().to_owned());
            }
        }
        found
    }
}

/// A guest of 64 MiB and two vCPUs that verifies what it has written, booted and not started.
pub fn bare(backing: Backing, command_line: &str) -> (Vm, Screen) {
    let screen = Screen::default();
    let vm = Vm::create(&super::config(2, 64, backing), Box::new(screen.clone())).unwrap();
    let line = format!("vcpus=2 timer=100 exit=0 {command_line}");
    vm.boot(&KernelImage::Embedded(BARE), None, &line).unwrap();
    (vm, screen)
}

/// Memory of a guest as a destination would have it.
pub struct Copy(pub Vec<u8>);

impl Copy {
    pub fn of(vm: &Vm) -> Copy {
        let mut copy = Copy(vec![0; usize::try_from(vm.memory().bytes()).unwrap()]);
        copy.update(vm, &PageSet::full(vm.memory().page_count()));
        copy
    }

    pub fn update(&mut self, vm: &Vm, pages: &PageSet) {
        for run in pages.runs() {
            let size = vm.memory().page_size();
            let (start, bytes) = (size.bytes_of(run.first.0), size.length_of(run.count));
            let at = usize::try_from(start).unwrap();
            let part = &mut self.0[at..at + bytes];
            vm.memory().inner().read_slice(part, GuestAddress(start)).unwrap();
        }
    }

    /// Pages that differ.
    pub fn differing(&self, other: &Copy) -> Vec<usize> {
        let pages = self.0.chunks(4096).zip(other.0.chunks(4096));
        pages.enumerate().filter(|(_, (mine, others))| mine != others).map(|(i, _)| i).collect()
    }
}

/// Guests that are run side by side disturb each other's times and counts of descriptors.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
