//! Memory of 2 MiB pages from the pool: what is written to it is followed and held in whole pages.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::puppet::{Copy, Puppet, alone, bare};
use godwit_migration::driver::{DirtyLog, DirtyTracking};
use godwit_migration::page::PageSet;
use godwit_tests::huge_pages::HugePages;
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use godwit_vmm::Error;
use godwit_vmm::memory::{Backing, GuestMemory, MemoryError};
use godwit_vmm::vm::{GuestExit, Vm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

const BACKINGS: [Backing; 2] = [Backing::HugetlbAnon, Backing::HugetlbMemfd];
const BYTES: u64 = 64 << 20;
const PAGES: u64 = 32;
/// Base pages in a huge one.
const UNITS: u64 = 512;

/// Calls `test` for both kinds of memory, with the huge pages for one guest and a few to try.
fn on_both(test: impl Fn(Backing)) {
    let _alone = alone();
    if !common::have_kvm() {
        return;
    }
    let Some(_pages) = HugePages::take(PAGES + 5) else { return };
    BACKINGS.into_iter().for_each(test);
}

fn huge(pages: &BTreeSet<u32>) -> BTreeSet<u32> {
    pages.iter().map(|page| page / 512).collect()
}

/// What was written since the last collection, but for the page with the page tables.
fn collect(vm: &Vm) -> BTreeSet<u32> {
    let mut dirty = PageSet::empty(vm.memory().page_count());
    vm.collect(&mut dirty).unwrap();
    dirty.runs().flat_map(|run| run.pages()).map(|page| page.0).filter(|&page| page > 0).collect()
}

#[test]
fn a_page_is_told_as_written_if_any_part_of_it_was() {
    on_both(|backing| {
        for tracking in [DirtyTracking::KvmLog, DirtyTracking::WriteProtect] {
            let mut puppet = Puppet::create(BYTES, backing);
            assert_eq!(u64::from(puppet.vm.memory().page_count()), PAGES);
            puppet.vm.start();
            puppet.write(8 * UNITS, 8 * UNITS, 1);
            DirtyLog::start(&puppet.vm, tracking).unwrap();
            // The first and the last base page of some, one in the middle, and pages that are new.
            for (first, count, stride) in [
                (9 * UNITS, 3, 2 * UNITS),
                (9 * UNITS - 1, 3, 2 * UNITS),
                (12 * UNITS + 77, 2, 3),
                (20 * UNITS, 4, UNITS + 1),
            ] {
                let wanted = huge(&puppet.write(first, count, stride));
                assert_eq!(collect(&puppet.vm), wanted, "{backing:?} {tracking:?}");
            }
            // What this process writes counts as well.
            let at = GuestAddress(30 * PageSize::HUGE.bytes() as u64 + 4095);
            puppet.vm.memory().inner().write_obj(1u16, at).unwrap();
            assert!(collect(&puppet.vm).contains(&30), "{backing:?} {tracking:?}");
            DirtyLog::stop(&puppet.vm);
        }
    });
}

#[test]
fn a_write_waits_until_its_huge_page_is_allowed() {
    on_both(|backing| {
        let mut puppet = Puppet::create(BYTES, backing);
        puppet.vm.start();
        puppet.write(8 * UNITS, 4, UNITS);
        let guard = puppet.vm.memory().hold_writes().unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut seen = Vec::new();
                while !over.load(Ordering::Acquire) {
                    let moment = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
                    poll(&mut [PollFd::new(&guard, PollFlags::IN)], Some(&moment)).unwrap();
                    let before = seen.len();
                    guard.waiting(&mut seen).unwrap();
                    for &page in &seen[before..] {
                        guard.allow(PageRun::one(page)).unwrap();
                    }
                }
                seen
            });
            let mut wanted = BTreeSet::new();
            for (first, count, stride) in [(9 * UNITS, 5, 100), (20 * UNITS + 511, 3, UNITS)] {
                wanted.extend(huge(&puppet.write(first, count, stride)));
            }
            over.store(true, Ordering::Release);
            let seen = server.join().unwrap();
            let seen: BTreeSet<u32> = seen.iter().map(|page| page.0).filter(|&p| p > 0).collect();
            assert_eq!(seen, wanted, "{backing:?}");
        });
    });
}

#[test]
fn memory_that_is_followed_by_pages_is_copied_whole() {
    on_both(|backing| {
        for tracking in [DirtyTracking::KvmLog, DirtyTracking::WriteProtect] {
            let (vm, _screen) = bare(backing, "workload=dirty passes=3 fill=16M");
            let mut copy = Copy::of(&vm);
            DirtyLog::start(&vm, tracking).unwrap();
            vm.start();
            loop {
                let over = common::ends_within(&vm, std::time::Duration::from_millis(50));
                // After the end, too: one vCPU has ended the guest, and this waits for the other.
                if vm.pause().is_err() {
                    assert!(!over, "{backing:?} {tracking:?}");
                    continue;
                }
                let mut dirty = PageSet::empty(vm.memory().page_count());
                vm.collect(&mut dirty).unwrap();
                copy.update(&vm, &dirty);
                assert_eq!(copy.differing(&Copy::of(&vm)), [0; 0], "{backing:?} {tracking:?}");
                if over {
                    break;
                }
                let _ = vm.resume();
            }
            assert_eq!(vm.exits().take(), Some(GuestExit::PowerOff { code: 0 }));
        }
    });
}

#[test]
fn emptied_pages_are_missing_again_and_others_are_not() {
    on_both(|backing| {
        let memory = GuestMemory::create(8 << 20, backing).unwrap();
        let at = |page: u64| GuestAddress(page * PageSize::HUGE.bytes() as u64 + 5);
        (0..4).for_each(|page| memory.inner().write_obj(7u8, at(page)).unwrap());
        memory.empty(PageRun { first: PageIndex(1), count: 2 }).unwrap();
        let now = [0, 1, 2, 3].map(|page| memory.inner().read_obj::<u8>(at(page)).unwrap());
        assert_eq!(now, [7, 0, 0, 7], "{backing:?}");
    });
}

#[test]
fn a_guest_that_does_not_fit_the_pool_is_told_what_to_do() {
    let _alone = alone();
    if !common::have_kvm() {
        return;
    }
    let Some(_pages) = HugePages::take(PAGES - 1) else { return };
    for backing in BACKINGS {
        let screen = common::Screen::default();
        let error = Vm::create(&common::config(1, BYTES >> 20, backing), Box::new(screen));
        let error = error.err().unwrap();
        let Error::Memory(MemoryError::HugePages { wanted, free, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!((wanted, free), (PAGES, PAGES - 1));
    }
    // What was refused has reserved nothing.
    let fits = GuestMemory::create(BYTES - (2 << 20), Backing::HugetlbAnon);
    assert!(fits.is_ok(), "{:?}", fits.err());
}
