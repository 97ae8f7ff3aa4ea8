//! The pages that a guest writes, followed while it runs: by KVM's dirty log and by asynchronous
//! write-protection, on both kinds of memory.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::puppet::{Copy, LOW_PAGES, ORDERS_PAGE, PAGE, PAGE_TABLES_OF_GIB, Puppet};
use common::puppet::{alone, bare, open_descriptors};
use godwit_migration::driver::{DirtyLog, DirtyTracking};
use godwit_migration::page::PageSet;
use godwit_uffd::Features;
use godwit_uffd::kernel::doors;
use godwit_vmm::memory::{Backing, HOLE_END, HOLE_START};
use godwit_vmm::vm::{GuestExit, Vm};
use vm_memory::{Bytes, GuestAddress};

const WAYS: [DirtyTracking; 2] = [DirtyTracking::KvmLog, DirtyTracking::WriteProtect];
const BACKINGS: [Backing; 2] = [Backing::Anon, Backing::Memfd];
/// Pages that KVM may tell beyond those written: what one large page of the guest has.
const KVM_ADDS_MAX: usize = 512;

/// Whether this way is to be had. Prints why not; where the kernel offers it, it has to work.
fn have(tracking: DirtyTracking) -> bool {
    if tracking == DirtyTracking::KvmLog {
        return true;
    }
    let doors = doors();
    let offered = doors.device.or(doors.system_call).unwrap_or(Features::empty());
    if !offered.contains(Features::WP_ASYNC) {
        println!("skipped: no userfaultfd with WP_ASYNC is to be had");
    }
    offered.contains(Features::WP_ASYNC)
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

fn pages_of(dirty: &PageSet) -> BTreeSet<u32> {
    dirty.runs().flat_map(|run| run.pages()).map(|page| page.0).collect()
}

/// Collects, and checks that exactly `wanted` was written: all of it in any case, and nothing else
/// where the way is exact. KVM may add pages that were read, and neighbours of those written.
#[track_caller]
fn expect(vm: &Vm, tracking: DirtyTracking, wanted: &BTreeSet<u32>) {
    let mut found = pages_of(&collect(vm));
    found.retain(|&page| page >= LOW_PAGES);
    let missed: Vec<_> = wanted.difference(&found).collect();
    assert!(missed.is_empty(), "{tracking:?}: {missed:?} were written and not told");
    let added: Vec<_> = found.difference(wanted).collect();
    let most = if tracking == DirtyTracking::WriteProtect { 0 } else { KVM_ADDS_MAX };
    assert!(added.len() <= most, "{tracking:?}: {added:?} were told and not written");
}

#[test]
fn each_round_reports_what_was_written_in_it() {
    each_way(|tracking, backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        // Pages are there, and have been written, before they are followed.
        puppet.write(0x1000, 0x3000, 1);
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        let mut prng = common::Prng(7);
        for _ in 0..50 {
            let [first, stride] = [0x1000 + prng.below(0x2000), 1 + prng.below(40)];
            let count = 1 + prng.below(100).min((0x3fff - first) / stride);
            let wanted = puppet.write(first, count, stride);
            expect(&puppet.vm, tracking, &wanted);
        }
        // A guest that only reads has written nothing.
        expect(&puppet.vm, tracking, &BTreeSet::new());
        DirtyLog::stop(&puppet.vm);
    });
}

#[test]
fn pages_that_were_not_there_are_reported_when_they_are_written() {
    each_way(|tracking, backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        puppet.vm.start();
        for (first, count, stride) in [(0x1000, 40, 3), (0x2000, 512, 1), (0x3000, 7, 512)] {
            let wanted = puppet.write(first, count, stride);
            expect(&puppet.vm, tracking, &wanted);
        }
    });
}

#[test]
fn of_a_huge_page_only_what_was_written_is_reported() {
    each_way(|tracking, backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        puppet.write(0x1000, 0x3000, 1);
        let huge_kib = puppet.of_mapping("AnonHugePages:");
        if backing == Backing::Anon && huge_kib.iter().all(|kib| kib == "0 kB") {
            println!("skipped: this host gives guests no huge pages");
        }
        for _ in 0..3 {
            DirtyLog::start(&puppet.vm, tracking).unwrap();
            // In the middle of each, at their ends, and two of one.
            for (first, count, stride) in [(0x1080, 20, 512), (0x11ff, 20, 512), (0x1300, 2, 100)] {
                let wanted = puppet.write(first, count, stride);
                expect(&puppet.vm, tracking, &wanted);
            }
            DirtyLog::stop(&puppet.vm);
        }
    });
}

#[test]
fn what_this_process_writes_is_reported() {
    each_way(|tracking, backing| {
        let puppet = Puppet::create(64 << 20, backing);
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        let inner = puppet.vm.memory().inner();
        let at = |page: u64, offset: u64| GuestAddress(page * PAGE + offset);
        inner.write_slice(&[1; 2], at(0x1000, PAGE - 1)).unwrap();
        inner.write_obj(7_u64, at(0x3fff, 8)).unwrap();
        let zeros = &mut std::fs::File::open("/dev/zero").unwrap();
        inner.read_exact_volatile_from(at(0x2000, 0), zeros, 4 * 4096).unwrap();
        inner.read_obj::<u64>(at(0x1800, 0)).unwrap();
        let wanted = [0x1000, 0x1001, 0x2000, 0x2001, 0x2002, 0x2003, 0x3fff].into();
        expect(&puppet.vm, tracking, &wanted);
        expect(&puppet.vm, tracking, &BTreeSet::new());
    });
}

#[test]
fn pages_behind_the_hole_have_their_numbers() {
    each_way(|tracking, backing| {
        let high = 16 << 20;
        let mut puppet = Puppet::create(HOLE_START + high, backing);
        // The guest's page tables end at 4 GiB: one more, with large pages.
        let table = 0x30_0000;
        common::write(&puppet.vm, PAGE_TABLES_OF_GIB + 4 * 8, &[table | 3]);
        let large = |page: u64| (HOLE_END + (page << 21)) | 0x83;
        common::write(&puppet.vm, table, &(0..high >> 21).map(large).collect::<Vec<_>>());
        puppet.vm.start();
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        let behind = u32::try_from(HOLE_START / PAGE).unwrap();
        for (first, count, stride) in [(0, 10, 3), (0xfff, 1, 1), (0x800, 512, 1)] {
            let low = puppet.write(HOLE_END / PAGE + first, count, stride);
            let pages = (0..count).map(|i| behind + u32::try_from(first + i * stride).unwrap());
            assert_eq!(low.len() as u64, count + 1);
            let table_page = u32::try_from(table / PAGE).unwrap();
            let mut wanted: BTreeSet<u32> = pages.chain([ORDERS_PAGE]).collect();
            let mut found = pages_of(&collect(&puppet.vm));
            // The processor marks what it uses of the table.
            found.retain(|&page| page >= LOW_PAGES && page != table_page);
            if tracking == DirtyTracking::KvmLog {
                wanted.extend(found.iter().take(KVM_ADDS_MAX));
            }
            assert_eq!(found, wanted, "{tracking:?} {backing:?}");
        }
    });
}

#[test]
fn a_copy_that_follows_the_writes_of_a_running_guest_misses_none() {
    each_way(|tracking, backing| {
        for workload in ["dirty", "smp"] {
            let (vm, screen) = bare(backing, &format!("workload={workload} passes=12 seed=3"));
            DirtyLog::start(&vm, tracking).unwrap();
            let mut copy = Copy::of(&vm);
            vm.start();
            let (mut rounds, mut told) = (0, 0);
            // Each round that finds the guest paused is checked at once.
            while !common::ends_within(&vm, Duration::from_millis(20)) {
                rounds += 1;
                let paused = rounds % 5 == 0 && vm.pause().is_ok();
                let dirty = collect(&vm);
                told += dirty.len();
                copy.update(&vm, &dirty);
                if paused {
                    let missed = copy.differing(&Copy::of(&vm));
                    assert_eq!(missed, [0; 0], "{tracking:?} {backing:?}, round {rounds}");
                    let _ = vm.resume();
                }
            }
            // One vCPU has ended the guest; this waits for the other.
            vm.pause().unwrap();
            copy.update(&vm, &collect(&vm));
            assert_eq!(copy.differing(&Copy::of(&vm)), [0; 0], "{tracking:?} {backing:?}, end");
            assert_eq!(common::wait_for_end(&vm), GuestExit::PowerOff { code: 0 });
            assert!(vm.drain_console(Duration::from_secs(10)));
            assert!(!screen.text().contains("corrupt vcpu"), "{}", screen.text());
            println!("{tracking:?} {backing:?} {workload}: {rounds} rounds, {told} pages");
            assert!(rounds > 5 && told > 1000, "{rounds} rounds, {told} pages");
        }
    });
}

#[test]
fn starts_and_stops_leave_nothing_behind() {
    each_way(|tracking, backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        puppet.write(0x1000, 0x1000, 1);
        let look = |puppet: &Puppet| (open_descriptors(), puppet.of_mapping("VmFlags:"));
        let before = look(&puppet);
        for _ in 0..100 {
            DirtyLog::start(&puppet.vm, tracking).unwrap();
            let wanted = puppet.write(0x1000, 50, 7);
            expect(&puppet.vm, tracking, &wanted);
            DirtyLog::stop(&puppet.vm);
            puppet.write(0x1000, 200, 3);
        }
        assert_eq!(look(&puppet), before, "{tracking:?} {backing:?}");
        DirtyLog::start(&puppet.vm, tracking).unwrap();
        expect(&puppet.vm, tracking, &BTreeSet::new());
        drop(puppet);
    });
}

#[test]
fn calls_out_of_order_are_refused() {
    each_way(|tracking, backing| {
        let puppet = Puppet::create(64 << 20, backing);
        let vm = &puppet.vm;
        let collect = |vm: &Vm| vm.collect(&mut PageSet::empty(vm.memory().page_count()));
        DirtyLog::stop(vm);
        assert!(collect(vm).unwrap_err().contains("not being tracked"));
        DirtyLog::start(vm, tracking).unwrap();
        for second in WAYS {
            assert!(DirtyLog::start(vm, second).err().unwrap().contains("already"));
        }
        collect(vm).unwrap();
        DirtyLog::stop(vm);
        DirtyLog::stop(vm);
        collect(vm).unwrap_err();
    });
}
