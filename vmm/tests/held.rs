//! A guest whose first writes wait until they are allowed, while it runs.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::puppet::{Copy, LOW_PAGES, ORDERS, PAGE, Puppet, alone, bare, open_descriptors};
use godwit_migration::driver::{DirtyLog, DirtyTracking, WriteGuard};
use godwit_migration::page::PageSet;
use godwit_uffd::kernel::doors;
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_vmm::memory::{Backing, HeldWrites};
use godwit_vmm::vm::{GuestExit, Vm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Calls `test` for each kind of memory.
fn on_both(test: impl Fn(Backing)) {
    let _alone = alone();
    if !common::have_kvm() {
        return;
    }
    let doors = doors();
    if doors.device.is_err() && doors.system_call.is_err() {
        return println!("skipped: no userfaultfd is to be had");
    }
    [Backing::Anon, Backing::Memfd].into_iter().for_each(test);
}

fn hold(vm: &Vm) -> HeldWrites {
    vm.memory().hold_writes().unwrap()
}

/// The pages that writers wait for, after a while if there is none.
fn waiting(guard: &impl WriteGuard, within: Duration) -> Vec<PageIndex> {
    let mut fds = [PollFd::new(guard, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(within).unwrap())).unwrap();
    let mut pages = Vec::new();
    guard.waiting(&mut pages).unwrap();
    pages
}

const MOMENT: Duration = Duration::from_millis(5);
const MINUTE: Duration = Duration::from_secs(60);

/// Allows one page after the other as it is asked for, until `over`. Returns them.
fn allow_until(guard: &impl WriteGuard, over: &AtomicBool) -> Vec<u32> {
    let mut seen = Vec::new();
    while !over.load(Ordering::Acquire) {
        for page in waiting(guard, MOMENT) {
            seen.push(page.0);
            guard.allow(PageRun::one(page)).unwrap();
        }
    }
    seen
}

#[test]
fn a_running_guest_is_copied_as_it_was_when_the_guard_began() {
    on_both(|backing| {
        let (vm, screen) = bare(backing, "workload=dirty passes=6 seed=3");
        vm.start();
        while !screen.text().contains("end tsc") {
            assert!(!common::ends_within(&vm, MOMENT), "{}", screen.text());
        }
        vm.pause().unwrap();
        let before = Copy::of(&vm);
        let guard = hold(&vm);
        vm.resume().unwrap();
        let mut copy = Copy(vec![0; before.0.len()]);
        let mut left = PageSet::full(vm.memory().page_count());
        let mut send = |left: &mut PageSet, run: PageRun| {
            let mut pages = PageSet::empty(left.page_count());
            pages.insert_run(run);
            copy.update(&vm, &pages);
            guard.allow(run).unwrap();
            left.remove_run(run);
        };
        let mut faults = 0;
        // First what somebody waits for, then the next pages in order.
        while !left.is_empty() {
            for page in waiting(&guard, MOMENT) {
                if left.contains(page) {
                    faults += 1;
                    send(&mut left, PageRun::one(page));
                }
            }
            let next = left.runs().next();
            if let Some(next) = next {
                send(&mut left, next.first_pages(next.count.min(16)));
            }
        }
        assert_eq!(copy.differing(&before), [0; 0], "{backing:?}");
        assert!(faults > 100, "{faults} faults");
        drop(guard);
        assert_eq!(common::wait_for_end(&vm), GuestExit::PowerOff { code: 0 });
        assert!(vm.drain_console(Duration::from_secs(10)));
        assert!(!screen.text().contains("corrupt vcpu"), "{}", screen.text());
        assert!(!copy.differing(&Copy::of(&vm)).is_empty(), "the guest has written nothing");
    });
}

#[test]
fn each_page_is_asked_for_once_and_reads_go_on() {
    on_both(|backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        // Some of the pages are there, in huge ones if the host has them, and some are not.
        puppet.write(0x1000, 0x1000, 1);
        let guard = hold(&puppet.vm);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let server = scope.spawn(|| allow_until(&guard, &over));
            let mut wanted = BTreeSet::new();
            for (first, count, stride) in [(0x1800, 40, 3), (0x1ff0, 32, 1), (0x1800, 40, 3)] {
                wanted.extend(puppet.write(first, count, stride));
            }
            // Nobody waits to read.
            common::read(&puppet.vm, 0x3000 * PAGE);
            over.store(true, Ordering::Release);
            let mut seen = server.join().unwrap();
            seen.retain(|&page| page >= LOW_PAGES);
            let once: BTreeSet<u32> = seen.iter().copied().collect();
            assert_eq!(once, wanted, "{backing:?}");
            // The page of the orders has two writers.
            assert!(seen.len() <= wanted.len() + 1, "{seen:?}");
        });
    });
}

/// A guest that has met a page that it may not write, and the guard.
fn stuck(backing: Backing) -> (Puppet, HeldWrites) {
    let puppet = Puppet::create(64 << 20, backing);
    puppet.vm.start();
    puppet.vm.pause().unwrap();
    common::write(&puppet.vm, ORDERS, &[1, 0, 0x1000 * PAGE, 1, 1]);
    let guard = hold(&puppet.vm);
    puppet.vm.resume().unwrap();
    assert!(!waiting(&guard, MINUTE).is_empty(), "the guest writes nothing");
    (puppet, guard)
}

#[test]
fn whoever_waits_goes_on_when_the_guard_ends() {
    on_both(|backing| {
        let (mut puppet, guard) = stuck(backing);
        assert_eq!(common::read(&puppet.vm, ORDERS + 8), 0);
        drop(guard);
        puppet.round = 1;
        puppet.write(0x1000, 10, 1);
    });
}

#[test]
fn a_guest_that_is_answered_can_be_paused() {
    on_both(|backing| {
        let (puppet, guard) = stuck(backing);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                guard.allow(PageRun { first: PageIndex(0), count: 0x2000 }).unwrap();
                allow_until(&guard, &over)
            });
            let saved = puppet.vm.pause().and_then(|()| puppet.vm.save());
            over.store(true, Ordering::Release);
            saved.unwrap();
        });
    });
}

#[test]
fn a_guest_that_nobody_answers_can_be_shut_down() {
    on_both(|backing| {
        let (puppet, guard) = stuck(backing);
        let (tell, told) = mpsc::channel();
        let ending = thread::spawn(move || {
            puppet.vm.shutdown();
            tell.send(vcpu_threads()).unwrap();
            puppet
        });
        let left = told.recv_timeout(MINUTE).expect("the shutdown hangs");
        assert_eq!(left, 0, "vcpu threads are left behind");
        drop(guard);
        drop(ending.join().unwrap());
    });
}

fn vcpu_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("vcpu"))).count()
}

#[test]
fn memory_is_protected_by_one_at_a_time() {
    on_both(|backing| {
        let puppet = Puppet::create(64 << 20, backing);
        let vm = &puppet.vm;
        let guard = hold(vm);
        let error = vm.memory().hold_writes().err().expect("a second guard");
        assert!(error.to_string().contains("already"), "{error}");
        let error = DirtyLog::start(vm, DirtyTracking::WriteProtect).err().unwrap();
        assert!(error.contains("already") || error.contains("WP_ASYNC"), "{error}");
        // The log of KVM has nothing to do with it.
        DirtyLog::start(vm, DirtyTracking::KvmLog).unwrap();
        DirtyLog::stop(vm);
        assert!(vm.memory().may_wait());
        drop(guard);
        assert!(!vm.memory().may_wait());
    });
}

#[test]
fn guards_leave_nothing_behind() {
    on_both(|backing| {
        let mut puppet = Puppet::create(64 << 20, backing);
        puppet.vm.start();
        puppet.write(0x1000, 0x1000, 1);
        let look = |puppet: &Puppet| (open_descriptors(), puppet.of_mapping("VmFlags:"));
        let before = look(&puppet);
        for _ in 0..100 {
            let guard = hold(&puppet.vm);
            waiting(&guard, Duration::ZERO);
            drop(guard);
            puppet.write(0x1000, 20, 7);
        }
        assert_eq!(look(&puppet), before, "{backing:?}");
    });
}
