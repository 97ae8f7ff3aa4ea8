//! Guest ranges over the running kernel, and over a backend that answers what it is told.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;

use super::*;
use crate::abi::{Answer, Call, Errno, Out, RawMessage};
use crate::backend::Backend;
use crate::error::Error;
use crate::event::FaultKind;
use crate::features::{Features, RegisterMode};
use crate::kernel::tests::{
    Memory, next_event, next_fault, nothing_waits, open, source_errno, wait_readable,
};
use crate::kernel::{KernelUffd, Staging, trials};
use crate::memory::MemoryKind;
use crate::page::{Gpa, Hva, PageIndex, PageRun, PageSize};
use crate::trial::{Operation, Trial, Trials};
use crate::uffd::{Holes, Mode, Range, Uffd, Wake};

const PAGE: usize = 4096;
const HIGH: u64 = 1 << 32;

fn run(first: u32, count: u32) -> PageRun {
    PageRun { first: PageIndex(first), count }
}

fn region(gpa: u64, memory: &Memory) -> Region {
    let Range { start: hva, bytes } = memory.range();
    Region { gpa: Gpa(gpa), hva, bytes, memory: memory.kind() }
}

/// A guest of two memories with a hole between them, registered for `mode`.
fn guest_of(low: &Memory, high: &Memory, mode: RegisterMode) -> Option<GuestUffd<KernelUffd>> {
    open()?;
    let wanted = Features::EVENT_REMOVE | Features::WP_UNPOPULATED;
    let uffd = KernelUffd::open_with(wanted).unwrap();
    let space = GuestSpace::of([region(0, low), region(HIGH, high)]).unwrap();
    low.lend(&uffd);
    high.lend(&uffd);
    let enabled = uffd.enabled();
    Some(GuestUffd::register(uffd, space, mode, enabled, trials).unwrap())
}

/// A guest of four pages and, behind a hole, two more.
fn guest() -> Option<(GuestUffd<KernelUffd>, Memory, Memory)> {
    let (low, high) = (Memory::anonymous(4), Memory::memfd(2));
    Some((guest_of(&low, &high, RegisterMode::MISSING)?, low, high))
}

/// Each page filled with its number, from `first` on.
fn numbered(first: u8, count: u8) -> Vec<u8> {
    (first..first + count).flat_map(|number| [number; PAGE]).collect()
}

fn lacks(operation: Operation) -> bool {
    let lacking = trials(MemoryKind::Anonymous).get(operation) != Trial::Works;
    if lacking {
        println!("skipped: the kernel lacks {}", operation.name());
    }
    lacking
}

#[test]
fn a_run_spans_memslots() {
    let Some((guest, low, high)) = guest() else { return };
    assert_eq!(guest.copy(run(2, 4), &numbered(2, 4), Wake::Now).unwrap(), Filled::All);
    assert_eq!(guest.zero(run(0, 2), Wake::Now).unwrap(), Filled::All);
    assert_eq!(low.bytes_of_pages(), [0, 0, 2, 3]);
    assert_eq!(high.bytes_of_pages(), [4, 5]);
}

#[test]
fn a_run_over_memslots_wakes_the_waiters_of_both() {
    let Some((guest, low, high)) = guest() else { return };
    thread::scope(|scope| {
        let readers = [scope.spawn(|| low.read(3)), scope.spawn(|| high.read(0))];
        let mut events = Vec::new();
        while events.len() < readers.len() {
            wait_readable(guest.uffd());
            guest.read_events(&mut events).unwrap();
        }
        assert_eq!(guest.copy(run(2, 3), &numbered(2, 3), Wake::Now).unwrap(), Filled::All);
        assert_eq!(readers.map(|reader| reader.join().unwrap()), [3, 4]);
        assert!(nothing_waits(guest.uffd()));
    });
}

#[test]
fn a_page_already_there_is_told_with_the_pages_before_it() {
    let Some((guest, _low, high)) = guest() else { return };
    assert_eq!(guest.zero(run(5, 1), Wake::Now).unwrap(), Filled::All);
    let filled = guest.copy(run(1, 5), &numbered(1, 5), Wake::Now).unwrap();
    assert_eq!(filled, Filled::AlreadyPresent { done: 4 });
    assert_eq!(high.bytes_of_pages(), [4, 0]);
    let filled = guest.copy(run(1, 1), &numbered(9, 1), Wake::Now).unwrap();
    assert_eq!(filled, Filled::AlreadyPresent { done: 0 });
}

#[test]
fn pages_outside_of_the_guest_and_wrong_lengths_are_refused() {
    let Some((guest, ..)) = guest() else { return };
    for run in [run(6, 1), run(5, 2), run(u32::MAX, 1), run(0, u32::MAX)] {
        let error = guest.zero(run, Wake::Now).unwrap_err();
        assert!(matches!(error, Error::OutsideGuest { pages: 6, .. }), "{error}");
        assert!(guest.wake(run).is_err());
    }
    let error = guest.copy(run(0, 2), &[0; PAGE], Wake::Now).unwrap_err();
    assert!(matches!(error, Error::WrongLength { needed: 8192, given: 4096, .. }), "{error}");
}

#[test]
fn memory_is_ordinary_after_unregistering() {
    let Some((guest, low, high)) = guest() else { return };
    guest.unregister_all().unwrap();
    assert_eq!(low.bytes_of_pages(), [0; 4]);
    assert_eq!(high.bytes_of_pages(), [0; 2]);
    let error = guest.zero(run(0, 1), Wake::Now).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::ENOENT), "{error}");
}

#[test]
fn pages_of_the_page_cache_are_mapped_where_there_is_one() {
    let Some((guest, _low, high)) = guest() else { return };
    high.store_in_cache(0, 6);
    high.store_in_cache(1, 7);
    assert_eq!(guest.map_cached(run(4, 2), Wake::Now).unwrap(), Filled::All);
    assert_eq!(high.bytes_of_pages(), [6, 7]);
    let error = guest.map_cached(run(3, 1), Wake::Now).unwrap_err();
    let Error::Stopped { gpa, done: 0, source } = error else { panic!("{error}") };
    assert_eq!(gpa, Gpa(3 * PAGE as u64));
    assert!(matches!(*source, Error::NoMethod { operation: "CONTINUE", .. }), "{source}");
}

#[test]
fn poisoned_pages_are_not_zero_and_not_missing() {
    let Some((guest, low, high)) = guest() else { return };
    if lacks(Operation::Poison) {
        return;
    }
    assert_eq!(guest.poison(run(3, 2), Wake::Now).unwrap(), Filled::All);
    let again = guest.poison(run(4, 1), Wake::Now).unwrap();
    assert_eq!(again, Filled::AlreadyPresent { done: 0 });
    assert_eq!(guest.copy(run(3, 2), &numbered(3, 2), Wake::Now).unwrap(), Filled::All);
    assert_eq!((low.read(3), high.read(0)), (3, 4));
}

#[test]
fn a_write_to_a_protected_guest_page_is_reported() {
    let (low, high) = (Memory::anonymous(2), Memory::memfd(2));
    let mode = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
    let Some(guest) = guest_of(&low, &high, mode) else { return };
    let protected = Mode::protected(Wake::Now);
    assert_eq!(guest.copy(run(0, 1), &numbered(1, 1), protected).unwrap(), Filled::All);
    assert_eq!(guest.copy(run(1, 2), &numbered(2, 2), Wake::Now).unwrap(), Filled::All);
    assert_eq!(guest.protect(run(1, 2)).unwrap(), Protected::All);
    for (memory, page, index) in [(&low, 0, 0), (&low, 1, 1), (&high, 0, 2)] {
        thread::scope(|scope| {
            let writer = scope.spawn(move || memory.write(page, 9));
            let fault = next_fault(guest.uffd());
            assert_eq!(fault.kind, FaultKind::WriteProtect);
            assert_eq!(guest.space().page_at(fault.address), Some(PageIndex(index)));
            assert_eq!(guest.unprotect(run(index, 1), Wake::Now).unwrap(), Protected::All);
            writer.join().unwrap();
        });
    }
    assert_eq!((low.bytes_of_pages(), high.read(0)), (vec![9, 9], 9));
}

#[test]
fn protection_wants_memory_that_is_registered_for_it() {
    let Some((guest, ..)) = guest() else { return };
    let refused = |error: Error| {
        let needed = RegisterMode::WRITE_PROTECT;
        assert!(
            matches!(error, Error::NotRegisteredFor { gpa: Gpa(HIGH), needed: n } if n == needed)
        );
    };
    refused(guest.protect(run(4, 1)).unwrap_err());
    refused(guest.unprotect(run(4, 1), Wake::Now).unwrap_err());
    refused(guest.copy(run(4, 1), &numbered(1, 1), Mode::protected(Wake::Now)).unwrap_err());
}

/// A kernel that cannot mark holes gets something to protect; no write slips through.
#[test]
fn holes_are_protected_with_and_without_marks() {
    for marks in [Features::WP_UNPOPULATED, Features::empty()] {
        if open().is_none() {
            return;
        }
        let uffd = KernelUffd::open_with(marks).unwrap();
        let memory = Memory::anonymous(3);
        memory.lend(&uffd);
        let space = GuestSpace::of([region(0, &memory)]).unwrap();
        let (mode, enabled) = (RegisterMode::WRITE_PROTECT, uffd.enabled());
        let guest = GuestUffd::register(uffd, space, mode, enabled, trials).unwrap();
        memory.write(1, 5);
        assert_eq!(guest.protect(run(0, 3)).unwrap(), Protected::All);
        assert_eq!(memory.bytes_of_pages(), [0, 5, 0]);
        thread::scope(|scope| {
            let writer = scope.spawn(|| memory.write(2, 6));
            assert_eq!(next_fault(guest.uffd()).kind, FaultKind::WriteProtect);
            assert_eq!(guest.unprotect(run(0, 3), Wake::Now).unwrap(), Protected::All);
            writer.join().unwrap();
        });
        assert_eq!(memory.bytes_of_pages(), [0, 5, 6]);
    }
}

#[test]
fn pages_move_between_memslots_that_are_cut_elsewhere() {
    if lacks(Operation::Move) {
        return;
    }
    let (low, high) = (Memory::anonymous(5), Memory::anonymous(3));
    let Some(guest) = guest_of(&low, &high, RegisterMode::MISSING) else { return };
    assert_eq!(guest.copy(run(4, 3), &numbered(4, 3), Wake::Now).unwrap(), Filled::All);
    // From one page of the first memslot and two of the second, to three of the first.
    let moved = guest.move_pages(run(1, 3), run(4, 3), Holes::Refused, Wake::Now);
    assert_eq!(moved.unwrap(), Filled::All);
    assert_eq!([1, 2, 3].map(|page| low.read(page)), [4, 5, 6]);
    // Nothing is left where they were.
    assert_eq!(guest.zero(run(4, 3), Wake::Now).unwrap(), Filled::All);
    let moved = guest.move_pages(run(7, 1), run(0, 1), Holes::Refused, Wake::Now);
    assert_eq!(source_errno(&moved.unwrap_err()), Some(libc::ENOENT));
    let error = guest.move_pages(run(7, 1), run(0, 2), Holes::Refused, Wake::Now).unwrap_err();
    assert!(matches!(error, Error::WrongLength { needed: 4096, given: 8192, .. }), "{error}");
}

#[test]
fn staged_pages_are_moved_or_copied_and_gone_afterwards() {
    for moves in [Trial::Works, Trial::Fails(Errno(libc::EINVAL))] {
        if moves == Trial::Works && lacks(Operation::Move) {
            continue;
        }
        let Some(uffd) = open() else { return };
        let memory = Memory::anonymous(3);
        memory.lend(&uffd);
        let space = GuestSpace::of([region(0, &memory)]).unwrap();
        let (mode, enabled) = (RegisterMode::MISSING, uffd.enabled());
        let told = |kind| trials(kind).with(Operation::Move, moves);
        let guest = GuestUffd::register(uffd, space, mode, enabled, told).unwrap();
        let (mut staging, mut populator) = Staging::new(3 * PAGE).unwrap();
        populator.populate(3 * PAGE).unwrap();
        let staged = staging.take(3 * PAGE).unwrap();
        staged.fill(7);
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read(2));
            assert_eq!(next_fault(guest.uffd()).address, memory.page(2));
            let moved = guest.move_in(run(0, 3), staged, Wake::Now).unwrap();
            assert_eq!((moved, reader.join().unwrap()), (Filled::All, 7));
        });
        assert_eq!(memory.bytes_of_pages(), [7, 7, 7]);
        assert!(staged.iter().all(|&byte| byte == 0));
        let again = guest.move_in(run(2, 1), &mut staged[..PAGE], Wake::Now).unwrap();
        assert_eq!(again, Filled::AlreadyPresent { done: 0 });
        let error = guest.move_in(run(0, 3), &mut staged[..PAGE], Wake::Now).unwrap_err();
        assert!(matches!(error, Error::WrongLength { given: 4096, .. }), "{error}");
    }
}

#[test]
fn memory_that_cannot_be_moved_to_takes_copies_of_staged_pages_only() {
    let Some((guest, low, high)) = guest() else { return };
    let (mut staging, mut populator) = Staging::new(2 * PAGE).unwrap();
    populator.populate(2 * PAGE).unwrap();
    let staged = staging.take(2 * PAGE).unwrap();
    staged.fill(8);
    // One page of anonymous memory and one of a memfd.
    assert_eq!(guest.move_in(run(3, 2), staged, Wake::Now).unwrap(), Filled::All);
    assert_eq!((low.read(3), high.read(0), staged[PAGE]), (8, 8, 0));
    assert_eq!(guest.zero(run(0, 1), Wake::Now).unwrap(), Filled::All);
    let error = guest.move_pages(run(5, 1), run(0, 1), Holes::Refused, Wake::Now).unwrap_err();
    let Error::Stopped { gpa, done: 0, source } = error else { panic!("{error}") };
    assert_eq!(gpa, Gpa(HIGH + PAGE as u64));
    assert!(matches!(*source, Error::NoMethod { operation: "MOVE", .. }), "{source}");
    assert_eq!(low.read(0), 0);
}

#[test]
fn a_guest_may_have_pages_of_two_sizes() {
    let low = Memory::anonymous(2);
    let Some(high) = Memory::hugetlb(MemoryKind::HugetlbAnonymous, 2) else { return };
    let Some(guest) = guest_of(&low, &high, RegisterMode::MISSING) else { return };
    let huge = PageSize::HUGE.in_units_of(PageSize::BASE);
    assert_eq!(guest.space().page_count(), 2 + 2 * huge);
    let error = guest.zero(run(0, 3), Wake::Now).unwrap_err();
    let inside = Gpa(HIGH + PAGE as u64);
    assert!(matches!(error, Error::InsidePage { gpa, .. } if gpa == inside), "{error}");
    thread::scope(|scope| {
        let reader = scope.spawn(|| high.read(1));
        let fault = next_fault(guest.uffd());
        let page = guest.space().page_at(fault.address).unwrap();
        let whole = guest.space().whole_pages(PageRun::one(page));
        assert_eq!(whole, run(2 + huge, huge));
        // There is no zero page for these, so zeros are copied.
        assert_eq!(guest.zero(run(1, 1 + 2 * huge), Wake::Now).unwrap(), Filled::All);
        assert_eq!(reader.join().unwrap(), 0);
    });
    assert_eq!(high.bytes_of_pages(), [0, 0]);
}

#[test]
fn an_operation_leaves_the_rest_to_its_caller_while_the_map_changes() {
    let Some((guest, low, _high)) = guest() else { return };
    let change = guest.change();
    let filled = guest.zero(run(0, 1), Wake::Now).unwrap();
    assert_eq!(filled, Filled::EventsFirst { done: 0 });
    drop(change);
    assert_eq!(guest.copy(run(0, 4), &numbered(1, 4), Wake::Now).unwrap(), Filled::All);
    thread::scope(|scope| {
        let change = guest.change();
        // As a balloon does it: the page goes while nobody installs.
        scope.spawn(|| low.remove(2));
        let event = next_event(guest.uffd());
        assert!(matches!(event, crate::Event::Remove { start, .. } if start == low.page(2)));
        let filled = guest.copy(run(2, 1), &numbered(3, 1), Wake::Now).unwrap();
        assert_eq!(filled, Filled::EventsFirst { done: 0 });
        drop(change);
    });
    assert_eq!(guest.zero(run(2, 1), Wake::Now).unwrap(), Filled::All);
    assert_eq!(low.bytes_of_pages(), [1, 2, 0, 4]);
}

/// A guest of `low` and, behind a hole, `high`, whose written pages can be asked for.
fn followed(low: &Memory, high: &Memory) -> Option<GuestUffd<KernelUffd>> {
    open()?;
    let uffd = KernelUffd::open_with(Features::WP_ASYNC | Features::WP_UNPOPULATED).unwrap();
    let enabled = uffd.enabled();
    if !enabled.contains(Features::WP_ASYNC) {
        println!("skipped: the kernel lacks WP_ASYNC");
        return None;
    }
    let space = GuestSpace::of([region(0, low), region(HIGH, high)]).unwrap();
    low.lend(&uffd);
    high.lend(&uffd);
    let mode = RegisterMode::WRITE_PROTECT;
    let guest = GuestUffd::register(uffd, space, mode, enabled, trials).unwrap();
    assert_eq!(guest.protect(guest.space().all()).unwrap(), Protected::All);
    Some(guest)
}

/// What is told of `asked`, page by page.
fn taken(guest: &GuestUffd<KernelUffd>, asked: PageRun) -> Result<Vec<u32>, Error> {
    let mut told: Vec<u32> = Vec::new();
    let result = guest.take_written(asked, |run| told.extend(run.pages().map(|page| page.0)));
    result.map(|taken| {
        assert_eq!(taken, Protected::All);
        told
    })
}

#[test]
fn written_pages_are_told_once_whoever_writes_them() {
    let (low, high) = (Memory::anonymous(40), Memory::memfd(40));
    let Some(guest) = followed(&low, &high) else { return };
    let all = run(0, 80);
    assert_eq!(taken(&guest, all).unwrap(), []);
    // With and without others between them, and the last of one memslot before the first of the
    // other.
    for page in [3, 4, 9, 30, 39] {
        low.write(page, 1);
    }
    high.write(0, 1);
    low.read(20);
    high.read(20);
    assert_eq!(taken(&guest, run(4, 30)).unwrap(), [4, 9, 30]);
    assert_eq!(taken(&guest, all).unwrap(), [3, 39, 40]);
    assert_eq!(taken(&guest, all).unwrap(), []);
    low.write(3, 2);
    assert_eq!(taken(&guest, all).unwrap(), [3]);
    assert_eq!((low.read(3), high.read(0)), (2, 1));
}

#[test]
fn more_runs_than_one_scan_tells_are_told_all() {
    const PAGES: u32 = 8 * 1024;
    let memory = Memory::anonymous(PAGES as usize);
    let Some(guest) = followed(&memory, &Memory::memfd(1)) else { return };
    // Close to each other, so that they are taken together, and apart.
    for stride in [2, 9] {
        let pages: Vec<u32> = (1..PAGES).step_by(stride).collect();
        pages.iter().for_each(|&page| memory.write(page as usize, 1));
        assert_eq!(taken(&guest, run(0, PAGES)).unwrap(), pages);
        assert_eq!(taken(&guest, run(0, PAGES)).unwrap(), []);
    }
}

#[test]
fn pages_that_may_be_protected_again_are_told_before_a_failure() {
    let (low, high) = (Memory::anonymous(40), Memory::memfd(4));
    let Some(guest) = followed(&low, &high) else { return };
    [2, 30, 35].iter().for_each(|&page| low.write(page, 1));
    high.write(1, 1);
    guest.uffd().unregister(low.range_of(32, 8)).unwrap();
    let mut told = Vec::new();
    let error = guest.take_written(run(0, 44), |run| told.extend(run.pages())).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::EPERM), "{error}");
    for page in [2, 30, 35] {
        assert!(told.contains(&PageIndex(page)), "{page} of {told:?}");
    }
    assert_eq!(taken(&guest, run(40, 4)).unwrap(), [41]);
}

#[test]
fn only_asynchronously_protected_memory_tells_what_was_written() {
    let (low, high) = (Memory::anonymous(4), Memory::memfd(2));
    let Some(guest) = guest_of(&low, &high, RegisterMode::WRITE_PROTECT) else { return };
    let error = taken(&guest, run(0, 6)).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::EPERM), "{error}");
    drop(guest);
    let Some(guest) = guest_of(&low, &high, RegisterMode::MISSING) else { return };
    let error = taken(&guest, run(0, 6)).unwrap_err();
    assert!(matches!(error, Error::NotRegisteredFor { .. }), "{error}");
}

/// A backend that notes calls and gives the answers that a test has put there; then success.
#[derive(Default)]
struct Scripted {
    calls: Mutex<Vec<Call>>,
    answers: Mutex<VecDeque<Answer>>,
}

impl Scripted {
    fn answering(answers: impl IntoIterator<Item = Answer>) -> Scripted {
        Scripted { answers: Mutex::new(answers.into_iter().collect()), calls: Mutex::default() }
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Backend for Scripted {
    fn call(&self, call: Call) -> Answer {
        self.calls.lock().unwrap().push(call);
        let success = Answer { result: Ok(()), out: Out::Ioctls(0x1fc) };
        self.answers.lock().unwrap().pop_front().unwrap_or(success)
    }

    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer {
        // The first byte stands for the address of the source, so that a test can see it.
        let src = u64::from(bytes[0]);
        self.call(Call::Copy { dst: at.0, src, len: bytes.len() as u64, mode })
    }

    fn read(&self, _each: &mut dyn FnMut(RawMessage)) -> Result<(), Error> {
        Ok(())
    }

    fn move_bytes(&self, at: Hva, staged: &mut [u8], mode: u64) -> Answer {
        let (src, len) = (u64::from(staged[0]), staged.len() as u64);
        self.call(Call::Move { dst: at.0, src, len, mode })
    }

    fn give_up(&self, staged: &mut [u8]) {
        staged.fill(0);
    }

    fn scan_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        each(range.first(PAGE as u64));
        Ok(())
    }

    fn enabled(&self) -> Features {
        Features::empty()
    }
}

const LOW_HVA: u64 = 0x9000_0000;
const HIGH_HVA: u64 = 0x5000_0000;

/// Two memslots of four and two pages of anonymous memory.
fn space() -> GuestSpace {
    let low = (Gpa(0), Hva(LOW_HVA), 4 * PAGE as u64);
    let high = (Gpa(HIGH), Hva(HIGH_HVA), 2 * PAGE as u64);
    GuestSpace::new(PageSize::BASE, [low, high]).unwrap()
}

fn at(base: u64, page: u64) -> u64 {
    base + page * PAGE as u64
}

fn partly(pages: usize) -> Answer {
    let out = Out::Done(i64::try_from(pages * PAGE).unwrap());
    Answer { result: Err(Errno(libc::EAGAIN)), out }
}

fn fails(errno: i32) -> Answer {
    Answer { result: Err(Errno(errno)), out: Out::Done(i64::from(-errno)) }
}

fn zeropage(start: u64, pages: u64, mode: u64) -> Call {
    Call::Zeropage { start, len: pages * PAGE as u64, mode }
}

#[test]
fn a_run_in_one_memslot_is_one_call_that_wakes() {
    let guest = GuestUffd::new(Scripted::default(), space());
    assert_eq!(guest.copy(run(1, 3), &numbered(1, 3), Wake::Now).unwrap(), Filled::All);
    let (dst, len) = (at(LOW_HVA, 1), 3 * PAGE as u64);
    assert_eq!(guest.uffd().calls(), [Call::Copy { dst, src: 1, len, mode: 0 }]);
}

#[test]
fn a_run_over_memslots_is_woken_once_at_the_end() {
    let guest = GuestUffd::new(Scripted::default(), space());
    assert_eq!(guest.zero(run(3, 2), Wake::Now).unwrap(), Filled::All);
    let wake = |start| Call::Wake { start, len: PAGE as u64 };
    let (low, high) = (at(LOW_HVA, 3), HIGH_HVA);
    let fills = [zeropage(low, 1, 1), zeropage(high, 1, 1)];
    assert_eq!(guest.uffd().calls(), [fills[0], fills[1], wake(low), wake(high)]);
    assert_eq!(guest.zero(run(3, 2), Wake::Later).unwrap(), Filled::All);
    assert_eq!(guest.uffd().calls(), fills);
}

#[test]
fn what_was_done_before_a_failure_is_counted_and_woken() {
    let ok = Answer { result: Ok(()), out: Out::Untouched };
    let answers = [partly(1), ok, fails(libc::ENOMEM)];
    let guest = GuestUffd::new(Scripted::answering(answers), space());
    let error = guest.zero(run(2, 4), Wake::Now).unwrap_err();
    assert_eq!(error.pages_done(), 2);
    assert_eq!(source_errno(&error), Some(libc::ENOMEM));
    assert!(matches!(error, Error::Stopped { gpa: Gpa(HIGH), done: 2, .. }), "{error}");
    let wake = Call::Wake { start: at(LOW_HVA, 2), len: 2 * PAGE as u64 };
    assert_eq!(guest.uffd().calls().last(), Some(&wake));
}

#[test]
fn a_short_count_is_gone_on_with_until_its_reason_is_known() {
    for (answer, filled) in [
        (fails(libc::EEXIST), Filled::AlreadyPresent { done: 2 }),
        (fails(libc::EAGAIN), Filled::EventsFirst { done: 2 }),
    ] {
        let guest = GuestUffd::new(Scripted::answering([partly(2), answer]), space());
        assert_eq!(guest.copy(run(0, 4), &numbered(1, 4), Wake::Now).unwrap(), filled);
        let rest = guest.uffd().calls().pop().unwrap();
        let (dst, len) = (at(LOW_HVA, 2), 2 * PAGE as u64);
        assert_eq!(rest, Call::Copy { dst, src: 3, len, mode: 0 });
    }
}

#[test]
fn an_empty_run_is_done_at_once() {
    let guest = GuestUffd::new(Scripted::default(), space());
    assert_eq!(guest.zero(run(6, 0), Wake::Now).unwrap(), Filled::All);
    assert_eq!(guest.copy(run(0, 0), &[], Wake::Now).unwrap(), Filled::All);
    assert_eq!(guest.uffd().calls(), []);
}

#[test]
fn zeros_of_huge_pages_are_copied_page_by_page() {
    let huge = PageSize::HUGE.bytes() as u64;
    let kind = MemoryKind::HugetlbAnonymous;
    let region = Region { gpa: Gpa(0), hva: Hva(huge), bytes: 2 * huge, memory: kind };
    let space = GuestSpace::of([region]).unwrap();
    let guest = GuestUffd::new(Scripted::default(), space);
    assert_eq!(guest.zero(guest.space().all(), Wake::Now).unwrap(), Filled::All);
    let copy = |dst| Call::Copy { dst, src: 0, len: huge, mode: 0 };
    assert_eq!(guest.uffd().calls(), [copy(huge), copy(2 * huge)]);
    // A wake inside of a huge page is one of the page: its waiters are known by its first byte.
    guest.wake(run(600, 1)).unwrap();
    assert_eq!(guest.uffd().calls(), [Call::Wake { start: 2 * huge, len: huge }]);
}

#[test]
fn poison_is_never_replaced_by_something_else() {
    let refused = |_| Trials::NONE.with(Operation::Poison, Trial::Fails(Errno(libc::EINVAL)));
    let (mode, none) = (RegisterMode::MISSING, Features::empty());
    let guest = GuestUffd::register(Scripted::default(), space(), mode, none, refused).unwrap();
    guest.uffd().calls();
    let error = guest.poison(run(0, 1), Wake::Now).unwrap_err();
    let Error::Stopped { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, Error::NoMethod { operation: "POISON", .. }), "{source}");
    assert_eq!(guest.uffd().calls(), []);
}

/// Zeros `run`, which is numbered by the memslots of `space()`, after the map has become `after`.
fn zero_in_changed_map(after: GuestSpace, run: PageRun) -> (Result<Filled, Error>, Vec<Call>) {
    let guest = GuestUffd::new(Scripted::default(), space());
    let begin = guest.snapshot();
    guest.change().commit(after);
    let filled = guest.walk(&begin, run, |piece| guest.zero_piece(piece, Wake::Now));
    (filled, guest.uffd().calls())
}

#[test]
fn the_rest_of_an_operation_finds_memslots_that_have_moved() {
    let low = (Gpa(0), Hva(0x1000_0000), 3 * PAGE as u64);
    let middle = (Gpa(3 * PAGE as u64), Hva(0x2000_0000), 8 * PAGE as u64);
    let high = (Gpa(HIGH), Hva(0x3000_0000), PAGE as u64);
    let moved = GuestSpace::new(PageSize::BASE, [low, middle, high]).unwrap();
    // The third and fourth page of the low memslot are in two by now, and the numbers of the high
    // memslot's pages have changed; guest addresses have not.
    let (filled, calls) = zero_in_changed_map(moved, run(2, 3));
    assert_eq!(filled.unwrap(), Filled::All);
    let places = [at(0x1000_0000, 2), 0x2000_0000, 0x3000_0000];
    assert_eq!(calls, places.map(|start| zeropage(start, 1, 0)));
}

#[test]
fn the_rest_of_an_operation_stops_where_memory_has_gone() {
    let low = (Gpa(0), Hva(LOW_HVA), 3 * PAGE as u64);
    let shrunk = GuestSpace::new(PageSize::BASE, [low]).unwrap();
    let (filled, calls) = zero_in_changed_map(shrunk, run(1, 4));
    let error = filled.unwrap_err();
    let gone = Gpa(3 * PAGE as u64);
    assert!(matches!(error, Error::Stopped { gpa, done: 2, .. } if gpa == gone), "{error}");
    let Error::Stopped { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, Error::NotMemory { gpa } if gpa == gone), "{source}");
    assert_eq!(calls, [zeropage(at(LOW_HVA, 1), 2, 0)]);
}

/// However often the map changes, what is told as done is exactly what was called for.
#[test]
fn no_page_is_done_twice_or_left_out_in_a_storm_of_changes() {
    const PAGES: u32 = 4000;
    let memslot = (Gpa(0), Hva(LOW_HVA), u64::from(PAGES) * PAGE as u64);
    let space = GuestSpace::new(PageSize::BASE, [memslot]).unwrap();
    let answers = (1..PAGES).map(|_| partly(1));
    let guest = GuestUffd::new(Scripted::answering(answers), space.clone());
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (guest, changed) = (&guest, &space);
        scope.spawn(move || {
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                guest.change().commit(changed.clone());
            }
        });
        let mut done = 0;
        while done < PAGES {
            let rest = run(done, PAGES - done);
            let filled = guest.zero(rest, Wake::Later).unwrap();
            assert!(!matches!(filled, Filled::AlreadyPresent { .. }));
            done += filled.pages_done(rest);
            let calls = u32::try_from(guest.uffd().calls.lock().unwrap().len()).unwrap();
            assert_eq!(done, calls);
        }
        drop(stop);
    });
    let starts = guest.uffd().calls().into_iter().map(|call| call.range().start.0);
    assert!(starts.eq((0..u64::from(PAGES)).map(|page| at(LOW_HVA, page))));
}
