//! The kernel's world itself: does it park, release, observe and clean up as it says?

use godwit_uffd::abi::{Answer, Out};

use super::*;
use crate::world::{Backing, Outcome, Signal};

const MISSING: u64 = 1;
const WRITE_PROTECT: u64 = 2;
const UNPOPULATED: u64 = 1 << 13;
const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
const EXACT_ADDRESS: u64 = 1 << 11;
const THREAD_ID: u64 = 1 << 8;

fn world() -> Option<KernelWorld> {
    match KernelWorld::new() {
        Ok(world) => Some(world),
        Err(NotHere(reason)) => {
            println!("skipped: {reason}");
            None
        }
    }
}

fn anonymous(world: &mut KernelWorld, pages: u64) -> u64 {
    let access = Access::ReadWrite;
    let mapping = Mapping { pages, backing: Backing::Anonymous, access, at: None };
    world.map(world.root(), mapping).expect("a mapping")
}

fn call(world: &mut KernelWorld, fd: Fd, call: Call) -> Answer {
    match world.ioctl(world.root(), fd, call, Placement::Ordinary) {
        Step::Done(Outcome::Ioctl(answer)) => answer,
        other => panic!("{call:?}: {other:?}"),
    }
}

fn opened(world: &mut KernelWorld, features: u64) -> Fd {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = world.open(world.root(), Door::Call, flags.cast_unsigned()).expect("a userfaultfd");
    let answer = call(world, fd, Call::Api { api: 0xAA, features });
    assert_eq!(answer.result, Ok(()));
    fd
}

fn registered(world: &mut KernelWorld, features: u64, pages: u64, mode: u64) -> (Fd, u64) {
    let fd = opened(world, features);
    let start = anonymous(world, pages);
    let answer = call(world, fd, Call::Register { start, len: pages * PAGE, mode });
    assert_eq!(answer.result, Ok(()));
    (fd, start)
}

fn copy(world: &mut KernelWorld, fd: Fd, dst: u64, mode: u64) -> Answer {
    let src = anonymous(world, 1);
    assert_eq!(world.touch(world.root(), src, Touch::Store(7)), Step::Done(Outcome::Stored));
    call(world, fd, Call::Copy { dst, src, len: PAGE, mode })
}

fn parked(step: Step) -> Ticket {
    match step {
        Step::Parked(ticket) => ticket,
        Step::Done(outcome) => panic!("not parked: {outcome:?}"),
    }
}

#[test]
fn a_missing_page_parks_and_a_copy_releases() {
    let Some(mut world) = world() else { return };
    let (fd, page) = registered(&mut world, EXACT_ADDRESS | THREAD_ID, 4, MISSING);
    let ticket = parked(world.touch(world.root(), page + 5, Touch::Load));
    let ptid = world.thread_id(ticket);
    assert_eq!(world.fd_info(fd).pending, 1);
    assert_eq!(world.poll(fd), Polled::In);
    let message = RawMessage::Pagefault { flags: 0, address: page + 5, ptid };
    assert_eq!(world.read(fd, 320), Ok(vec![message]));
    assert_eq!(world.read(fd, 320), Err(Errno(libc::EAGAIN)));
    assert_eq!(world.poll_ticket(ticket), Step::Parked(ticket));
    world.interrupt(ticket);
    assert_eq!(world.poll_ticket(ticket), Step::Parked(ticket));
    assert_eq!(world.read(fd, 320), Ok(vec![message]), "a signal repeats the access");
    let answer = copy(&mut world, fd, page, 0);
    assert_eq!(answer, Answer { result: Ok(()), out: Out::Done(4096) });
    assert_eq!(world.poll_ticket(ticket), Step::Done(Outcome::Loaded(0)));
    assert_eq!(world.peek(world.root(), page), Some(7));
    assert_eq!(world.entry(world.root(), page + PAGE), Entry::None);
}

#[test]
fn the_kernel_parks_for_user_code_too() {
    let Some(mut world) = world() else { return };
    let (fd, page) = registered(&mut world, 0, 4, MISSING);
    let store = parked(world.touch(world.root(), page, Touch::KernelStore(9)));
    let load = parked(world.touch(world.root(), page + PAGE, Touch::KernelLoad));
    for at in [page, page + PAGE] {
        assert_eq!(copy(&mut world, fd, at, 0).result, Ok(()));
    }
    let one = Step::Done(Outcome::Returned(Ok(1)));
    assert_eq!(world.poll_ticket(store), one);
    assert_eq!(world.poll_ticket(load), one);
    assert_eq!(world.peek(world.root(), page), Some(9));
}

#[test]
fn accesses_end_in_their_signals() {
    let Some(mut world) = world() else { return };
    let (fd, page) = registered(&mut world, 0, 4, MISSING);
    assert_eq!(
        call(&mut world, fd, Call::Poison { start: page, len: PAGE, mode: 0 }).result,
        Ok(())
    );
    let touched = world.touch(world.root(), page + 3, Touch::Load);
    let address = page + 3;
    let expected = [Signal::BusAddress { address }, Signal::BusPoison { address }];
    let Step::Done(Outcome::Signal(signal)) = touched else { panic!("{touched:?}") };
    assert!(expected.contains(&signal), "{signal:?}");
    let nowhere = world.touch(world.root(), NOWHERE, Touch::Store(1));
    assert_eq!(nowhere, Step::Done(Outcome::Signal(Signal::Segv { address: NOWHERE })));
    let fault = Err(Errno(libc::EFAULT));
    let refused = world.touch(world.root(), NOWHERE, Touch::KernelLoad);
    assert_eq!(refused, Step::Done(Outcome::Returned(fault)));
}

#[test]
fn each_state_of_an_entry_is_told() {
    let Some(mut world) = world() else { return };
    let root = world.root();
    let (fd, page) = registered(&mut world, UNPOPULATED, 8, MISSING | WRITE_PROTECT);
    let at = |index: u64| page + index * PAGE;
    copy(&mut world, fd, at(1), 0);
    copy(&mut world, fd, at(2), WRITE_PROTECT);
    let protect = Call::WriteProtect { start: at(3), len: PAGE, mode: 1 };
    assert_eq!(call(&mut world, fd, protect).result, Ok(()));
    for (index, mode) in [(4, 0), (5, 0)] {
        let zero = Call::Zeropage { start: at(index), len: PAGE, mode };
        assert_eq!(call(&mut world, fd, zero).result, Ok(()));
    }
    let protect = Call::WriteProtect { start: at(5), len: PAGE, mode: 1 };
    assert_eq!(call(&mut world, fd, protect).result, Ok(()));
    assert_eq!(
        call(&mut world, fd, Call::Poison { start: at(6), len: PAGE, mode: 0 }).result,
        Ok(())
    );
    let guard = world.advise(root, at(7), 1, Advice::GuardInstall);
    assert_eq!(guard, Step::Done(Outcome::Returned(Ok(0))));
    let present = |protected| Entry::Anonymous { exclusive: true, protected, huge: false };
    let expected = [
        Entry::None,
        present(false),
        present(true),
        Entry::ProtectMarker,
        Entry::Zero { protected: false },
        Entry::Zero { protected: true },
        Entry::PoisonMarker,
        Entry::GuardMarker,
    ];
    assert_eq!(world.entries(root, page, 8), expected);
    let file = world.make_file(FileKind::Shmem, 1);
    assert_eq!(world.file_load(file, 0), None);
    world.file_store(file, 0, 3);
    assert_eq!(world.file_load(file, 0), Some(3));
    let backing = Backing::File { file, page: 0, shared: true, read_only_descriptor: false };
    let mapping = Mapping { pages: 1, backing, access: Access::ReadWrite, at: None };
    let start = world.map(root, mapping).expect("a mapping");
    assert_eq!(world.touch(root, start, Touch::Load), Step::Done(Outcome::Loaded(3)));
    assert_eq!(world.entry(root, start), Entry::File { protected: false });
}

#[test]
fn a_fork_waits_for_its_event_and_the_child_works() {
    let Some(mut world) = world() else { return };
    let (fd, page) = registered(&mut world, EVENT_FORK, 4, MISSING);
    let fork = parked(world.fork(world.root()));
    let messages = world.read(fd, 320).expect("an event");
    let [RawMessage::Fork { fd: child_fd }] = messages[..] else { panic!("{messages:?}") };
    let Step::Done(Outcome::Forked(child)) = world.poll_ticket(fork) else { panic!("no child") };
    let ticket = parked(world.touch(child, page, Touch::Store(1)));
    let zero = Call::Zeropage { start: page, len: PAGE, mode: 0 };
    assert_eq!(call(&mut world, Fd(child_fd), zero).result, Ok(()));
    assert_eq!(world.poll_ticket(ticket), Step::Done(Outcome::Stored));
    assert_eq!(world.entry(world.root(), page), Entry::None, "the parent's memory is its own");
    let grandchild = parked(world.fork(child));
    assert!(matches!(
        world.read(Fd(child_fd), 32).expect("an event")[..],
        [RawMessage::Fork { .. }]
    ));
    assert!(matches!(world.poll_ticket(grandchild), Step::Done(Outcome::Forked(_))));
    world.exit(child);
    let gone = call(&mut world, Fd(child_fd), zero);
    assert_eq!(gone.result, Err(Errno(libc::ESRCH)));
}

#[test]
fn calls_of_memory_management_wait_for_their_events() {
    let Some(mut world) = world() else { return };
    let (fd, page) = registered(&mut world, EVENT_REMOVE | EVENT_UNMAP, 4, MISSING);
    copy(&mut world, fd, page, 0);
    let remove = parked(world.advise(world.root(), page, 1, Advice::DontNeed));
    assert_eq!(world.peek(world.root(), page), Some(7), "it is there until the event is read");
    let events = world.read(fd, 320);
    assert_eq!(events, Ok(vec![RawMessage::Remove { start: page, end: page + PAGE }]));
    assert_eq!(world.poll_ticket(remove), Step::Done(Outcome::Returned(Ok(0))));
    assert_eq!(world.entry(world.root(), page), Entry::None);
    let unmap = parked(world.unmap(world.root(), page, 4));
    world.close(fd);
    assert_eq!(world.poll_ticket(unmap), Step::Done(Outcome::Returned(Ok(0))));
}

#[test]
fn a_process_without_privilege_has_none() {
    let Some(mut world) = world() else { return };
    if let Err(NotHere(reason)) = world.can(Ability::Unprivileged) {
        println!("skipped: {reason}");
        return;
    }
    let process = world.spawn(false);
    assert_eq!(world.open(process, Door::Call, 0), Err(Errno(libc::EPERM)));
    assert_eq!(world.open(process, Door::Device, 0), Err(Errno(libc::EACCES)));
    assert!(world.open(process, Door::Call, 1).is_ok());
    assert!(world.open(process, Door::InheritedDevice, 0).is_ok());
}

#[test]
fn many_threads_sleep_at_once_and_nothing_is_left_behind() {
    let Some(mut world) = world() else { return };
    let (_, page) = registered(&mut world, 0, 20, MISSING);
    for index in 0..20 {
        parked(world.touch(world.root(), page + index * PAGE, Touch::Load));
    }
    let Step::Done(Outcome::Forked(child)) = world.fork(world.root()) else { panic!("no child") };
    assert_eq!(world.touch(child, page, Touch::Load), Step::Done(Outcome::Loaded(0)));
    let children = world.agents.pids();
    assert_eq!(children.len(), 2);
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
    assert!(descriptors() > 3);
    drop(world);
    for pid in children {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
}

#[test]
fn huge_pages_come_from_a_pool_of_the_world() {
    let Some(mut world) = world() else { return };
    if let Err(NotHere(reason)) = world.can(Ability::Hugetlb(2)) {
        println!("skipped: {reason}");
        return;
    }
    let root = world.root();
    let file = world.make_file(FileKind::Hugetlb, 1024);
    world.file_store(file, 512, 4);
    assert_eq!(world.file_load(file, 0), None);
    assert_eq!(world.file_load(file, 512), Some(4));
    let backing = Backing::File { file, page: 0, shared: true, read_only_descriptor: false };
    let mapping = Mapping { pages: 1024, backing, access: Access::ReadWrite, at: None };
    let start = world.map(root, mapping).expect("a mapping");
    let second = start + 512 * PAGE;
    assert_eq!(world.touch(root, second, Touch::Load), Step::Done(Outcome::Loaded(4)));
    assert_eq!(world.entry(root, second), Entry::File { protected: false });
}

#[test]
fn pages_go_to_a_swap_device_of_the_world() {
    let Some(mut world) = world() else { return };
    if let Err(NotHere(reason)) = world.can(Ability::Swap) {
        println!("skipped: {reason}");
        return;
    }
    let page = anonymous(&mut world, 1);
    assert_eq!(world.touch(world.root(), page, Touch::Store(5)), Step::Done(Outcome::Stored));
    assert_eq!(
        world.advise(world.root(), page, 1, Advice::PageOut),
        Step::Done(Outcome::Returned(Ok(0)))
    );
    assert_eq!(world.entry(world.root(), page), Entry::Swap { protected: false });
    assert_eq!(world.peek(world.root(), page), None);
    assert_eq!(world.touch(world.root(), page, Touch::Load), Step::Done(Outcome::Loaded(5)));
}

#[test]
fn a_pinned_page_does_not_move() {
    let Some(mut world) = world() else { return };
    if let Err(NotHere(reason)) = world.can(Ability::Pin) {
        println!("skipped: {reason}");
        return;
    }
    let (fd, dst) = registered(&mut world, 0, 1, MISSING);
    let src = anonymous(&mut world, 1);
    assert_eq!(world.touch(world.root(), src, Touch::Store(5)), Step::Done(Outcome::Stored));
    let root = world.root();
    world.pin(root, src);
    let transfer = Call::Move { dst, src, len: PAGE, mode: 0 };
    assert_eq!(call(&mut world, fd, transfer).result, Err(Errno(libc::EBUSY)));
    world.unpin(root, src);
    assert_eq!(call(&mut world, fd, transfer).result, Ok(()));
}
