//! The pages that a guest writes, followed while it runs: by KVM's dirty log and by asynchronous
//! write-protection, on both kinds of memory.

mod common;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Protocol, Screen};
use godwit_migration::driver::{DirtyLog, DirtyTracking};
use godwit_migration::page::PageSet;
use godwit_uffd::page::PageIndex;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
const WAYS: [DirtyTracking; 2] = [DirtyTracking::KvmLog, DirtyTracking::WriteProtect];
const BACKINGS: [Backing; 2] = [Backing::Anon, Backing::Memfd];

/// Does a round of writes whenever it is told to: loads the number of the round at 2 MiB, compares
/// it with the one behind it, and if they differ stores it `count` times, `stride` bytes apart from
/// `first` on, and then behind itself.
const PUPPET: &[u8] = &[
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
const ORDERS: u64 = 0x20_0000;
const DONE: u64 = ORDERS + 8;
/// The page of the orders: both sides write it.
const ORDERS_PAGE: u32 = 0x200;
/// What the processor writes unasked, the accessed and dirty bits of page tables, is below.
const LOW_PAGES: u32 = 0x100;

/// A guest that writes what it is told to.
struct Puppet {
    vm: Vm,
    round: u64,
}

impl Puppet {
    fn create(bytes: u64, backing: Backing) -> Puppet {
        let mut config = common::config(1, 64, backing);
        config.memory_bytes = bytes;
        let vm = Vm::create(&config, Box::new(Screen::default())).unwrap();
        vm.boot(&common::elf(PUPPET, Protocol::Linux64), None, "").unwrap();
        Puppet { vm, round: 0 }
    }

    /// Lets the guest store into `count` addresses and waits until it has.
    fn write(&mut self, first: u64, count: u64, stride: u64) {
        self.round += 1;
        common::write(&self.vm, ORDERS + 16, &[first, count, stride]);
        common::write(&self.vm, ORDERS, &[self.round]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while common::read(&self.vm, DONE) != self.round {
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::yield_now();
        }
    }
}

/// Guests that are run side by side disturb each other's times and counts of descriptors.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this way is to be had. Prints why not; where the kernel offers it, it has to work.
fn have(tracking: DirtyTracking) -> bool {
    let _ = tracking;
    true
}

/// Calls `test` for each way that this host has and each kind of memory.
fn each_way(test: impl Fn(DirtyTracking, Backing)) {
    let _alone = alone();
    if !common::have_kvm() {
        return;
    }
    for tracking in WAYS.into_iter().filter(|&way| have(way)) {
        BACKINGS.into_iter().for_each(|backing| test(tracking, backing));
    }
}

/// What was written since the last collection.
fn collect(vm: &Vm) -> PageSet {
    let mut dirty = PageSet::empty(vm.memory().page_count());
    vm.collect(&mut dirty).unwrap();
    dirty
}

/// The pages of a set without the low ones.
fn high_pages(dirty: &PageSet) -> BTreeSet<u32> {
    let pages = dirty.runs().flat_map(|run| run.pages()).map(|page| page.0);
    pages.filter(|&page| page >= LOW_PAGES).collect()
}

#[test]
fn each_round_reports_what_was_written_in_it() {
    each_way(|tracking, backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        // Pages are there, and have been read and written, before they are followed.
        puppet.write(16 << 20, 4096, PAGE);
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        let mut prng = common::Prng(7);
        for round in 0..50 {
            let first = 0x1000 + u32::try_from(prng.below(0x2000)).unwrap();
            let stride = 1 + u32::try_from(prng.below(40)).unwrap();
            let count = 1 + u32::try_from(prng.below(100)).unwrap().min((0x3fff - first) / stride);
            puppet.write(u64::from(first) * PAGE, count.into(), u64::from(stride) * PAGE);
            let mut wanted: BTreeSet<u32> = (0..count).map(|i| first + i * stride).collect();
            wanted.insert(ORDERS_PAGE);
            let found = high_pages(&collect(&puppet.vm));
            assert!(found.is_superset(&wanted), "{tracking:?} {backing:?} round {round}");
            println!("{tracking:?} {backing:?} {} {}", found.len(), wanted.len());
        }
        puppet.vm.stop();
    });
}
