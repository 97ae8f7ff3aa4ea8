//! Pages that a source cannot read: the guest moves without them, and lives as long as it does not
//! touch them. The source runs in this process, where its memory can be poisoned; the destinations
//! are real.

use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use godwit_migration::driver::Records;
use godwit_tests::huge_pages::HugePages;
use godwit_tests::stage::{Node, Stage, Transport};
use godwit_tests::{Stream, require_kvm, until};
use godwit_uffd::Wake;
use godwit_uffd::guest::Filled;
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_vmm::api::Control;
use godwit_vmm::api::types::{
    GuestState, MigrateRequest, MigrationMode, MigrationState, MigrationStatus, Role,
};
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::migrate::{Controlled, End, Host, Welcome, serve};
use godwit_vmm::vm::{Vm, VmConfig};

use crate::GODWIT;

/// A page that the guest verifies again and again, and one that it never touches: its memory of
/// 64 MiB is not all its arena, which begins at 16 MiB.
const TOUCHED: u64 = 24 << 20;
const UNTOUCHED: u64 = 60 << 20;
const CMDLINE: &str = "workload=dirty vcpus=1 span=32M fill=32M";
const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// A console that the test reads.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A guest in this process, which can leave it.
struct Source {
    vm: Arc<Vm>,
    control: Controlled,
    thread: JoinHandle<std::io::Result<End>>,
}

impl Source {
    /// Launches the bare guest and pauses it as its operator once it has filled its memory.
    fn launch(stage: &Stage, backing: Backing) -> Source {
        let records = Records::open(&stage.folder().path("source.state")).expect("a folder");
        let host = Host::new(Role::Run, records, None, Welcome::default()).expect("a descriptor");
        let console = Console::default();
        let config = VmConfig { cpus: 1, memory_bytes: 64 << 20, backing, devices: Vec::new() };
        let vm = Vm::create(&config, Box::new(console.clone())).expect("a machine");
        vm.boot(&KernelImage::Embedded(BARE), None, CMDLINE).expect("the bare guest");
        let vm = Arc::new(vm);
        host.adopt(uuid::Uuid::new_v4(), Arc::clone(&vm), 0);
        vm.start();
        until("a guest that has filled its memory", || {
            let text = console.0.lock().expect("not poisoned").clone();
            String::from_utf8_lossy(&text).contains("godwit-guest: filled ").then_some(())
        });
        let control = Controlled(Arc::clone(&host));
        control.pause().expect("a guest that runs");
        let thread = std::thread::spawn(move || serve(&host));
        Source { vm, control, thread }
    }

    /// Poisons the page at `gpa`, as a move would. None where the kernel cannot.
    fn poison(&self, gpa: u64) -> Option<()> {
        let memory = self.vm.memory();
        let page = gpa / memory.page_size().bytes() as u64;
        let run = PageRun::one(PageIndex(u32::try_from(page).expect("a small guest")));
        memory.empty(run).expect("memory of ours");
        let uffd = memory.register_missing().expect("require_kvm has looked");
        let poisoned = uffd.poison(run, Wake::Now);
        uffd.unregister_all().expect("it was registered");
        memory.set_complete().expect("madvise");
        match poisoned {
            Ok(filled) => assert_eq!(filled, Filled::All),
            Err(error) => {
                godwit_tests::device::say_skipped(&error.to_string());
                return None;
            }
        }
        Some(())
    }

    fn migrate(&self, to: &Node, mode: MigrationMode, bandwidth: Option<u64>) {
        let request = MigrateRequest::new(to.address().clone(), mode);
        let request = MigrateRequest { bandwidth_bytes_per_s: bandwidth, ..request };
        self.control.migrate(request).expect("begins");
    }

    fn migration(&self) -> MigrationStatus {
        self.control.status().migration.expect("a migration")
    }

    /// Waits until the guest has moved away, and for the end of what served it.
    fn until_moved(self) -> MigrationStatus {
        until("a migration that has ended", || self.migration().state.is_final().then_some(()));
        let migration = self.migration();
        assert_eq!(migration.state, MigrationState::Completed, "{migration:?}");
        let end = self.thread.join().expect("no panic").expect("it can poll");
        assert_eq!(end, End::Moved);
        migration
    }
}

/// One page is lost, and is said to be at `gpa`.
fn lost_one(node: &Node, migration: &MigrationStatus, gpa: u64) {
    assert_eq!((migration.pages.poisoned, migration.pages.remaining), (1, 0), "{migration:?}");
    assert_eq!(migration.classes.poisoned.pages, 1);
    let line = node.wait_log("cannot be read at the source");
    assert!(line.contains(&format!("{gpa:#x}")), "{line}");
}

#[test]
fn a_guest_goes_on_without_a_page_that_it_does_not_touch_from_host_to_host() {
    require_kvm!();
    let ways = [
        (MigrationMode::Postcopy, Backing::Anon),
        (MigrationMode::Hybrid, Backing::Anon),
        (MigrationMode::Precopy, Backing::Memfd),
    ];
    for (mode, backing) in ways {
        let stage = Stage::new(GODWIT);
        let source = Source::launch(&stage, backing);
        if source.poison(UNTOUCHED).is_none() {
            return;
        }
        source.control.resume().expect("it was paused");
        let nodes = [stage.receive("b", Transport::Tcp), stage.receive("c", Transport::Tcp)];
        source.migrate(&nodes[0], mode, None);
        let migration = source.until_moved();
        assert_eq!((migration.pages.poisoned, migration.classes.poisoned.pages), (1, 1));
        let status = nodes[0].until_migration(MigrationState::Completed);
        lost_one(&nodes[0], &status.migration.expect("just seen"), UNTOUCHED);
        assert_eq!(nodes[0].verdict_from_now(1).corrupt, 0);

        let request = MigrateRequest::new(nodes[1].address().clone(), mode);
        nodes[0].client().migrate(&request).expect("begins");
        let status = nodes[1].until_migration(MigrationState::Completed);
        lost_one(&nodes[1], &status.migration.expect("just seen"), UNTOUCHED);
        assert_eq!(nodes[1].verdict_from_now(1).corrupt, 0);
    }
}

/// The guest is stopped at `node`, and its last words name where it touched what is `lost`.
fn stopped(mut node: Node, lost: Range<u64>) {
    let line = node.wait_log("is poisoned: it could not be read");
    let named = line.split_once("page at guest address 0x").expect("an address").1;
    let digits = named.split(' ').next().expect("digits");
    let gpa = u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    assert!(lost.contains(&gpa) && line.contains("crashed"), "{line}");
    assert_eq!(node.process.wait().code(), Some(1), "{}", node.process.failure("goes on"));
    // It has not gone on with something else in the page's place.
    let corrupt = node.process.text(Stream::Stdout).contains("godwit-guest: corrupt");
    assert!(!corrupt, "{}", node.process.failure("has corrupt pages"));
}

#[test]
fn a_guest_that_touches_the_page_is_stopped_with_its_address() {
    require_kvm!();
    for backing in [Backing::Anon, Backing::Memfd] {
        let stage = Stage::new(GODWIT);
        let source = Source::launch(&stage, backing);
        if source.poison(TOUCHED).is_none() {
            return;
        }
        let node = stage.receive("receiver", Transport::Tcp);
        source.migrate(&node, MigrationMode::Postcopy, None);
        source.until_moved();
        let status = node.until_migration(MigrationState::Completed);
        lost_one(&node, &status.migration.expect("just seen"), TOUCHED);
        assert_eq!(status.guest, GuestState::Paused);
        node.client().resume().expect("it was paused");
        stopped(node, TOUCHED..TOUCHED + PAGE);
    }
}

/// Of memory in pages of 2 MiB a whole one is lost, and nothing else.
#[test]
fn a_guest_of_huge_pages_is_stopped_if_it_touches_any_part_of_the_lost_one() {
    require_kvm!();
    // Room for the guest at both ends, and to try at both what userfaultfd can do.
    let Some(_pages) = HugePages::take(2 * 32 + 2 * 5) else { return };
    for (mode, backing, gpa) in [
        (MigrationMode::Hybrid, Backing::HugetlbAnon, UNTOUCHED),
        (MigrationMode::Postcopy, Backing::HugetlbMemfd, UNTOUCHED),
        (MigrationMode::Postcopy, Backing::HugetlbAnon, TOUCHED),
        (MigrationMode::Precopy, Backing::HugetlbMemfd, TOUCHED),
    ] {
        let stage = Stage::new(GODWIT);
        let source = Source::launch(&stage, backing);
        if source.poison(gpa).is_none() {
            return;
        }
        let node = stage.receive("receiver", Transport::Tcp);
        source.migrate(&node, mode, None);
        source.until_moved();
        let status = node.until_migration(MigrationState::Completed);
        lost_one(&node, &status.migration.expect("just seen"), gpa);
        node.client().resume().expect("it was paused");
        if gpa == TOUCHED {
            stopped(node, gpa..gpa + HUGE_PAGE);
        } else {
            assert_eq!(node.verdict_from_now(1).corrupt, 0);
        }
    }
}

/// The page is asked for by a vCPU that waits for it, long before the push comes to it.
#[test]
fn a_guest_that_asks_for_the_page_is_stopped_with_its_address() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let source = Source::launch(&stage, Backing::Anon);
    if source.poison(TOUCHED).is_none() {
        return;
    }
    let node = stage.receive("receiver", Transport::Tcp);
    source.migrate(&node, MigrationMode::Postcopy, Some(1 << 20));
    node.until("a guest that is here", |status| status.owner.owns);
    node.client().resume().expect("it was paused");
    stopped(node, TOUCHED..TOUCHED + PAGE);
    until("an end of the migration", || {
        let state = source.migration().state;
        (state.is_final() || state.is_interrupted()).then_some(())
    });
    source.control.shutdown(true).expect("by force");
    source.thread.join().expect("no panic").expect("it can poll");
}
