//! The real userfaultfd on real memory, and the fixture that other tests of this crate use.

// UNSAFETY: maps memory, touches it and gives it up, as a guest would.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::*;
use crate::event::{Event, Fault, FaultKind};
use crate::memory::MemoryKind;
use crate::trial::{Operation, Trial};
use crate::uffd::{Changed, Holes, Installed, Mode, Wake};

const PAGE: usize = PageSize::BASE.bytes();

/// A userfaultfd, or `None` with a printed reason where the kernel does not allow one.
pub(crate) fn open() -> Option<KernelUffd> {
    match KernelUffd::open() {
        Ok(uffd) => Some(uffd),
        Err(error @ (Error::Forbidden(_) | Error::Unsupported(_))) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

/// Pages that nothing has touched, mapped until dropped. Hugetlb memory has huge ones.
pub(crate) struct Memory {
    start: NonNull<u8>,
    pages: usize,
    kind: MemoryKind,
    file: Option<OwnedFd>,
}

// SAFETY: the memory is touched by volatile accesses only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn anonymous(pages: usize) -> Memory {
        Memory::new(MemoryKind::Anonymous, pages).unwrap()
    }

    pub(crate) fn memfd(pages: usize) -> Memory {
        Memory::new(MemoryKind::Memfd, pages).unwrap()
    }

    /// Huge pages that are reserved for the test, or `None` with a printed reason.
    pub(crate) fn hugetlb(kind: MemoryKind, pages: usize) -> Option<Memory> {
        match Memory::new(kind, pages) {
            Ok(memory) => Some(memory),
            Err(errno) => {
                assert!(free_huge_pages() < pages, "{pages} huge pages are free, yet: {errno}");
                println!("skipped: fewer than {pages} huge pages are free: {errno}");
                None
            }
        }
    }

    fn new(kind: MemoryKind, pages: usize) -> rustix::io::Result<Memory> {
        let (access, huge) = (ProtFlags::READ | ProtFlags::WRITE, kind.is_hugetlb());
        let bytes = pages * kind.page_size().bytes();
        let (file, start) = if kind.is_file() {
            let huge = if huge { MemfdFlags::HUGETLB } else { MemfdFlags::empty() };
            let file = memfd_create("godwit-uffd-test", MemfdFlags::CLOEXEC | huge)?;
            ftruncate(&file, bytes as u64)?;
            // SAFETY: a new mapping at an address that the kernel chooses.
            let start =
                unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0)? };
            (Some(file), start)
        } else {
            let huge = if huge { MapFlags::HUGETLB } else { MapFlags::empty() };
            // SAFETY: as above.
            let start = unsafe {
                mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE | huge)?
            };
            (None, start)
        };
        let start = NonNull::new(start.cast()).unwrap();
        let memory = Memory { start, pages, kind, file };
        // A page that a child shares, even for a moment, cannot be moved.
        memory.advise(Advice::LinuxDontFork);
        Ok(memory)
    }

    fn advise(&self, advice: Advice) {
        let bytes = self.pages * self.page_bytes();
        // SAFETY: the mapping is this value's own, and the advice changes none of its pages.
        unsafe { madvise(self.start.as_ptr().cast(), bytes, advice).unwrap() }
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.kind.page_size().bytes()
    }

    pub(crate) fn kind(&self) -> MemoryKind {
        self.kind
    }

    pub(crate) fn range(&self) -> Range {
        self.range_of(0, self.pages)
    }

    pub(crate) fn range_of(&self, first: usize, count: usize) -> Range {
        Range { start: self.page(first), bytes: (count * self.page_bytes()) as u64 }
    }

    pub(crate) fn page(&self, page: usize) -> Hva {
        assert!(page < self.pages);
        Hva(self.start.as_ptr() as u64 + (page * self.page_bytes()) as u64)
    }

    pub(crate) fn register(&self, uffd: &KernelUffd) -> Ioctls {
        self.register_for(uffd, RegisterMode::MISSING)
    }

    pub(crate) fn register_for(&self, uffd: &KernelUffd, mode: RegisterMode) -> Ioctls {
        // SAFETY: this memory is touched by volatile accesses only, on threads that serve nothing.
        unsafe { uffd.register(self.range(), mode).unwrap() }
    }

    /// Lends all of it, without registering it.
    pub(crate) fn lend(&self, uffd: &KernelUffd) {
        // SAFETY: as above.
        unsafe { uffd.lend(self.range()) };
    }

    /// Stores a byte in a page of the file, behind the back of the mapping.
    pub(crate) fn store_in_cache(&self, page: usize, byte: u8) {
        let offset = ((page + 1) * self.page_bytes() - 1) as u64;
        let file = self.file.as_ref().expect("memory of a file");
        assert_eq!(rustix::io::pwrite(file, &[byte], offset).unwrap(), 1);
    }

    /// The last byte of a page. Waits if the page is missing.
    pub(crate) fn read(&self, page: usize) -> u8 {
        // SAFETY: the byte is inside of the mapping.
        unsafe { self.last_byte(page).read_volatile() }
    }

    /// Writes the last byte of a page. Waits if the page is missing or protected.
    pub(crate) fn write(&self, page: usize, byte: u8) {
        // SAFETY: the byte is inside of the mapping.
        unsafe { self.last_byte(page).write_volatile(byte) }
    }

    fn last_byte(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        self.start.as_ptr().wrapping_add((page + 1) * self.page_bytes() - 1)
    }

    /// Gives up a page. Waits for the event to be read.
    pub(crate) fn remove(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: the page is inside of the mapping, and nothing refers to it.
        unsafe {
            let at = self.start.as_ptr().add(page * self.page_bytes());
            madvise(at.cast(), self.page_bytes(), Advice::LinuxDontNeed).unwrap();
        }
    }

    /// The last byte of each page, all of which must be there.
    pub(crate) fn bytes_of_pages(&self) -> Vec<u8> {
        (0..self.pages).map(|page| self.read(page)).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { munmap(self.start.as_ptr().cast(), self.pages * self.page_bytes()).unwrap() }
    }
}

fn free_huge_pages() -> usize {
    let pool = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    let number = |name| {
        let text = std::fs::read_to_string(pool.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0_usize)
    };
    number("free_hugepages").saturating_sub(number("resv_hugepages"))
}

fn is_readable(uffd: &KernelUffd, timeout: Timespec) -> bool {
    let mut polled = [PollFd::new(uffd, PollFlags::IN)];
    poll(&mut polled, Some(&timeout)).unwrap() == 1
}

pub(crate) fn wait_readable(uffd: &KernelUffd) {
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert!(is_readable(uffd, minute), "nothing to read from the userfaultfd");
}

pub(crate) fn nothing_waits(uffd: &KernelUffd) -> bool {
    !is_readable(uffd, Timespec { tv_sec: 0, tv_nsec: 0 })
}

pub(crate) fn next_event(uffd: &KernelUffd) -> Event {
    wait_readable(uffd);
    let mut events = Vec::new();
    uffd.read_events(&mut events).unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

pub(crate) fn next_fault(uffd: &KernelUffd) -> Fault {
    match next_event(uffd) {
        Event::Fault(fault) => fault,
        other => panic!("{other:?} instead of a fault"),
    }
}

/// Runs `body` once on anonymous memory and once on a memfd of `pages` pages, both registered.
fn on_both(pages: usize, body: impl Fn(&KernelUffd, &Memory)) {
    for new in [Memory::anonymous, Memory::memfd] {
        let Some(uffd) = open() else { return };
        let memory = new(pages);
        memory.register(&uffd);
        body(&uffd, &memory);
    }
}

pub(crate) fn source_errno(error: &Error) -> Option<i32> {
    match error {
        Error::Operation { source, .. } => source.raw_os_error(),
        Error::Stopped { source, .. } => source_errno(source),
        _ => None,
    }
}

#[test]
fn the_kernel_says_what_it_offers() {
    let Some(uffd) = open() else { return };
    assert!(uffd.offered().contains(uffd.enabled()));
    let ioctls = Memory::anonymous(1).register(&uffd);
    assert!(ioctls.contains(Ioctls::COPY | Ioctls::ZEROPAGE | Ioctls::WAKE), "{ioctls:?}");
}

#[test]
fn features_that_the_kernel_lacks_are_not_asked_for() {
    let Some(_) = open() else { return };
    let unknown = Features::from_bits_retain(1 << 62);
    let uffd = KernelUffd::open_with(unknown | Features::THREAD_ID).unwrap();
    assert!(!uffd.enabled().intersects(unknown));
}

#[test]
fn a_descriptor_is_made_by_the_system_call_too() {
    let Some(_) = open() else { return };
    match ioctl::new_from_system_call() {
        Ok(made) => {
            let offered = ioctl::handshake(made.as_fd(), 0).unwrap();
            assert_eq!(Features::from_bits_retain(offered), offered_features().unwrap());
        }
        // The device node is open to this user and the system call is not.
        Err(error) => println!("skipped: {error}"),
    }
}

#[test]
fn being_forbidden_says_how_to_be_allowed() {
    for errno in [libc::EPERM, libc::EACCES] {
        let text = open_error(io::Error::from_raw_os_error(errno)).to_string();
        assert!(text.contains("setfacl -m u:${USER}:rw /dev/userfaultfd"), "{text}");
        assert!(text.contains("sysctl -w vm.unprivileged_userfaultfd=1"), "{text}");
    }
    let missing = open_error(io::Error::from_raw_os_error(libc::ENOSYS));
    assert!(matches!(missing, Error::Unsupported(_)));
}

#[test]
fn copied_bytes_are_there_and_wake_their_waiter() {
    on_both(2, |uffd, memory| {
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read(1));
            let fault = next_fault(uffd);
            assert_eq!((fault.address, fault.kind), (memory.page(1), FaultKind::Missing));
            assert!(!fault.write);
            let installed = uffd.copy(fault.address, &[7; PAGE], Wake::Now).unwrap();
            assert_eq!(installed, Installed::All);
            assert_eq!(reader.join().unwrap(), 7);
        });
    });
}

#[test]
fn a_write_fault_says_so_and_lands_on_the_installed_page() {
    on_both(1, |uffd, memory| {
        thread::scope(|scope| {
            let writer = scope.spawn(|| memory.write(0, 9));
            assert!(next_fault(uffd).write);
            assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::All);
            writer.join().unwrap();
            assert_eq!(memory.read(0), 9);
        });
    });
}

#[test]
fn zeroed_pages_read_as_zero() {
    on_both(3, |uffd, memory| {
        assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::All);
        assert_eq!(memory.bytes_of_pages(), [0; 3]);
    });
}

#[test]
fn a_waiter_sleeps_on_until_the_later_wake() {
    on_both(1, |uffd, memory| {
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read(0));
            let fault = next_fault(uffd);
            // Woken without its page it faults again, so this wake reached it and did no harm.
            uffd.wake(memory.range()).unwrap();
            assert_eq!(next_fault(uffd), fault);
            let installed = uffd.copy(fault.address, &[5; PAGE], Wake::Later).unwrap();
            assert_eq!(installed, Installed::All);
            uffd.wake(memory.range()).unwrap();
            assert_eq!(reader.join().unwrap(), 5);
            assert!(nothing_waits(uffd));
        });
    });
}

#[test]
fn a_second_install_changes_nothing() {
    on_both(1, |uffd, memory| {
        assert_eq!(uffd.copy(memory.page(0), &[1; PAGE], Wake::Now).unwrap(), Installed::All);
        let again = uffd.copy(memory.page(0), &[2; PAGE], Wake::Now).unwrap();
        assert_eq!(again, Installed::AlreadyPresent);
        assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::AlreadyPresent);
        assert_eq!(memory.read(0), 1);
    });
}

#[test]
fn a_short_count_is_exact_and_hides_its_reason() {
    on_both(4, |uffd, memory| {
        assert_eq!(uffd.zero(memory.range_of(2, 1), Wake::Now).unwrap(), Installed::All);
        let copied = uffd.copy(memory.page(0), &[3; 4 * PAGE], Wake::Now).unwrap();
        assert_eq!(copied, Installed::Partly { bytes: 2 * PAGE as u64 });
        let rest = uffd.copy(memory.page(2), &[3; 2 * PAGE], Wake::Now).unwrap();
        assert_eq!(rest, Installed::AlreadyPresent);
        assert_eq!(uffd.copy(memory.page(3), &[3; PAGE], Wake::Now).unwrap(), Installed::All);
        assert_eq!(memory.bytes_of_pages(), [3, 3, 0, 3]);
    });
}

#[test]
fn an_install_waits_for_a_remove_event_to_be_read() {
    on_both(2, |uffd, memory| {
        assert_eq!(uffd.copy(memory.page(0), &[1; PAGE], Wake::Now).unwrap(), Installed::All);
        thread::scope(|scope| {
            let remover = scope.spawn(|| memory.remove(0));
            wait_readable(uffd);
            let second = memory.range_of(1, 1);
            assert_eq!(uffd.zero(second, Wake::Now).unwrap(), Installed::EventsFirst);
            let copied = uffd.copy(second.start, &[2; PAGE], Wake::Now).unwrap();
            assert_eq!(copied, Installed::EventsFirst);
            let (start, end) = (memory.page(0), memory.page(1));
            assert_eq!(next_event(uffd), Event::Remove { start, end });
            remover.join().unwrap();
        });
        assert_eq!(uffd.copy(memory.page(1), &[2; PAGE], Wake::Now).unwrap(), Installed::All);
        assert_eq!(memory.read(1), 2);
    });
}

#[test]
fn unregistered_memory_is_ordinary_and_its_waiters_go_on() {
    on_both(2, |uffd, memory| {
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read(0));
            next_fault(uffd);
            uffd.unregister(memory.range()).unwrap();
            assert_eq!(reader.join().unwrap(), 0);
        });
        memory.write(1, 4);
        assert_eq!(memory.read(1), 4);
        let error = uffd.zero(memory.range(), Wake::Now).unwrap_err();
        assert_eq!(source_errno(&error), Some(libc::ENOENT), "{error}");
    });
}

#[test]
fn dropping_the_userfaultfd_frees_its_waiters() {
    let Some(uffd) = open() else { return };
    let memory = Memory::anonymous(1);
    memory.register(&uffd);
    thread::scope(|scope| {
        let reader = scope.spawn(|| memory.read(0));
        next_fault(&uffd);
        drop(uffd);
        assert_eq!(reader.join().unwrap(), 0);
    });
}

#[test]
fn a_fault_names_the_thread_that_waits() {
    on_both(1, |uffd, memory| {
        if !uffd.enabled().contains(Features::THREAD_ID) {
            println!("skipped: the kernel does not report threads");
            return;
        }
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let reader = scope.spawn(move || {
                let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
                tell.send(thread).unwrap();
                memory.read(0)
            });
            let thread = told.recv().unwrap();
            assert_eq!(next_fault(uffd).thread, Some(thread));
            assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::All);
            reader.join().unwrap();
        });
    });
}

#[test]
fn threads_are_not_named_unless_that_was_asked() {
    let Some(_) = open() else { return };
    let uffd = KernelUffd::open_with(Features::empty()).unwrap();
    let memory = Memory::anonymous(1);
    memory.register(&uffd);
    thread::scope(|scope| {
        let reader = scope.spawn(|| memory.read(0));
        assert_eq!(next_fault(&uffd).thread, None);
        assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::All);
        reader.join().unwrap();
    });
}

#[test]
fn one_read_takes_all_that_wait_and_none_is_not_an_error() {
    const READERS: usize = 8;
    on_both(READERS, |uffd, memory| {
        let mut events = Vec::with_capacity(READERS);
        uffd.read_events(&mut events).unwrap();
        assert_eq!(events, []);
        thread::scope(|scope| {
            let readers: Vec<_> =
                (0..READERS).map(|page| scope.spawn(move || memory.read(page))).collect();
            while events.len() < READERS {
                wait_readable(uffd);
                uffd.read_events(&mut events).unwrap();
            }
            assert_eq!(uffd.zero(memory.range(), Wake::Now).unwrap(), Installed::All);
            readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), 0));
        });
        let mut addresses: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Fault(fault) => fault.address,
                other => panic!("{other:?} instead of a fault"),
            })
            .collect();
        addresses.sort_unstable();
        assert_eq!(addresses, (0..READERS).map(|page| memory.page(page)).collect::<Vec<_>>());
    });
}

#[test]
fn mapped_pages_hold_what_the_page_cache_has() {
    let Some(uffd) = open() else { return };
    let memory = Memory::memfd(3);
    memory.register_for(&uffd, RegisterMode::MISSING | RegisterMode::MINOR);
    memory.store_in_cache(0, 7);
    memory.store_in_cache(1, 8);
    thread::scope(|scope| {
        let reader = scope.spawn(|| memory.read(1));
        let fault = next_fault(&uffd);
        assert_eq!((fault.kind, fault.address), (FaultKind::Minor, memory.page(1)));
        let mapped = uffd.map_cached(memory.range_of(0, 2), Wake::Now).unwrap();
        assert_eq!(mapped, Installed::All);
        assert_eq!(reader.join().unwrap(), 8);
    });
    assert_eq!(memory.read(0), 7);
    let again = uffd.map_cached(memory.range_of(0, 1), Wake::Now).unwrap();
    assert_eq!(again, Installed::AlreadyPresent);
    let absent = uffd.map_cached(memory.range_of(2, 1), Wake::Now).unwrap_err();
    assert_eq!(source_errno(&absent), Some(libc::EFAULT), "{absent}");
}

#[test]
fn anonymous_memory_has_nothing_to_map() {
    let Some(uffd) = open() else { return };
    let memory = Memory::anonymous(1);
    memory.register(&uffd);
    let error = uffd.map_cached(memory.range(), Wake::Now).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::EINVAL), "{error}");
}

#[test]
fn a_poisoned_page_is_not_poisoned_again_and_can_be_healed() {
    on_both(2, |uffd, memory| {
        if probe::trials(memory.kind()).get(Operation::Poison) != Trial::Works {
            println!("skipped: the kernel lacks POISON");
            return;
        }
        assert_eq!(uffd.poison(memory.range(), Wake::Now).unwrap(), Installed::All);
        let first = memory.range_of(0, 1);
        assert_eq!(uffd.poison(first, Wake::Now).unwrap(), Installed::AlreadyPresent);
        let healed = uffd.copy(memory.page(0), &[6; 2 * PAGE], Wake::Now).unwrap();
        assert_eq!(healed, Installed::All);
        assert_eq!(memory.bytes_of_pages(), [6, 6]);
    });
}

#[test]
fn a_write_to_a_protected_page_waits_and_is_reported() {
    on_both(2, |uffd, memory| {
        memory.register_for(uffd, RegisterMode::MISSING | RegisterMode::WRITE_PROTECT);
        let mode = Mode::protected(Wake::Now);
        assert_eq!(uffd.copy(memory.page(0), &[1; PAGE], mode).unwrap(), Installed::All);
        assert_eq!(uffd.copy(memory.page(1), &[2; PAGE], Wake::Now).unwrap(), Installed::All);
        assert_eq!(uffd.protect(memory.range_of(1, 1)).unwrap(), Changed::All);
        assert_eq!(memory.bytes_of_pages(), [1, 2]);
        for page in [0, 1] {
            thread::scope(|scope| {
                let writer = scope.spawn(|| memory.write(page, 9));
                let fault = next_fault(uffd);
                assert_eq!(fault.kind, FaultKind::WriteProtect);
                assert!(fault.write && fault.address == memory.page(page));
                let range = memory.range_of(page, 1);
                assert_eq!(uffd.unprotect(range, Wake::Later).unwrap(), Changed::All);
                uffd.wake(range).unwrap();
                writer.join().unwrap();
            });
        }
        assert_eq!(memory.bytes_of_pages(), [9, 9]);
        assert!(nothing_waits(uffd));
    });
}

#[test]
fn protecting_memory_that_is_not_registered_for_it_is_refused() {
    on_both(1, |uffd, memory| {
        let error = uffd.protect(memory.range()).unwrap_err();
        assert_eq!(source_errno(&error), Some(libc::ENOENT), "{error}");
        let mode = Mode::protected(Wake::Now);
        let error = uffd.copy(memory.page(0), &[0; PAGE], mode).unwrap_err();
        assert_eq!(source_errno(&error), Some(libc::EINVAL), "{error}");
    });
}

/// A userfaultfd whose kernel can move pages.
fn open_with_move() -> Option<KernelUffd> {
    let uffd = open()?;
    if probe::trials(MemoryKind::Anonymous).get(Operation::Move) != Trial::Works {
        println!("skipped: the kernel lacks MOVE");
        return None;
    }
    Some(uffd)
}

#[test]
fn moved_pages_are_there_and_no_longer_where_they_were() {
    let Some(uffd) = open_with_move() else { return };
    let (memory, staging) = (Memory::anonymous(3), Memory::anonymous(3));
    memory.register(&uffd);
    staging.lend(&uffd);
    (0..2).for_each(|page| staging.write(page, 4 + u8::try_from(page).unwrap()));
    let moved = uffd.move_pages(memory.range(), staging.page(0), Holes::Refused, Wake::Now);
    assert_eq!(moved.unwrap(), Installed::Partly { bytes: 2 * PAGE as u64 });
    let rest = (memory.range_of(2, 1), staging.page(2));
    let error = uffd.move_pages(rest.0, rest.1, Holes::Refused, Wake::Now).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::ENOENT), "{error}");
    let skipped = uffd.move_pages(rest.0, rest.1, Holes::Skipped, Wake::Now).unwrap();
    assert_eq!(skipped, Installed::All);
    assert_eq!(uffd.zero(rest.0, Wake::Now).unwrap(), Installed::All);
    assert_eq!(memory.bytes_of_pages(), [4, 5, 0]);
    assert_eq!(staging.bytes_of_pages(), [0, 0, 0]);
}

#[test]
fn memory_that_was_not_lent_is_left_alone() {
    let Some(uffd) = open() else { return };
    let (memory, foreign) = (Memory::anonymous(1), Memory::anonymous(1));
    foreign.write(0, 3);
    memory.register(&uffd);
    let refused = |error: Error| assert_eq!(source_errno(&error), Some(libc::EPERM), "{error}");
    let (to, from) = (memory.range(), foreign.range());
    refused(uffd.move_pages(to, from.start, Holes::Refused, Wake::Now).unwrap_err());
    refused(Uffd::register(&uffd, from, RegisterMode::MISSING).unwrap_err());
    assert_eq!(foreign.read(0), 3);
    uffd.unregister(to).unwrap();
    // What is unregistered is given back.
    refused(Uffd::register(&uffd, to, RegisterMode::MISSING).unwrap_err());
}

#[test]
fn only_whole_pages_are_given_up() {
    let Some(uffd) = open() else { return };
    let (mut staging, mut populator) = Staging::new(2 * PAGE).unwrap();
    populator.populate(2 * PAGE).unwrap();
    let staged = staging.take(2 * PAGE).unwrap();
    staged.fill(5);
    Uffd::give_up(&uffd, &mut staged[..100]);
    Uffd::give_up(&uffd, &mut staged[1..=PAGE]);
    assert!(staged.iter().all(|&byte| byte == 5));
    Uffd::give_up(&uffd, &mut staged[..PAGE]);
    assert_eq!((staged[0], staged[PAGE - 1], staged[PAGE]), (0, 0, 5));
}

#[test]
fn huge_pages_are_installed_whole() {
    for kind in [MemoryKind::HugetlbAnonymous, MemoryKind::HugetlbMemfd] {
        let Some(uffd) = open() else { return };
        let Some(memory) = Memory::hugetlb(kind, 2) else { return };
        memory.register(&uffd);
        let huge = memory.page_bytes();
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read(1));
            assert_eq!(next_fault(&uffd).address, memory.page(1));
            let error = uffd.copy(memory.page(1), &[7; PAGE], Wake::Now).unwrap_err();
            assert_eq!(source_errno(&error), Some(libc::EINVAL), "{error}");
            let copied = uffd.copy(memory.page(1), &vec![7; huge], Wake::Now).unwrap();
            assert_eq!((copied, reader.join().unwrap()), (Installed::All, 7));
        });
        let error = uffd.zero(memory.range_of(0, 1), Wake::Now).unwrap_err();
        assert_eq!(source_errno(&error), Some(libc::EINVAL), "{error}");
    }
}

#[test]
fn the_memory_of_a_forked_child_is_ordinary() {
    let Some(_) = open() else { return };
    let uffd = match KernelUffd::open_with(Features::EVENT_FORK) {
        Ok(uffd) => uffd,
        // Forks are reported to CAP_SYS_PTRACE only.
        Err(error) => return println!("skipped: {error}"),
    };
    let memory = Memory::anonymous(1);
    memory.advise(Advice::LinuxDoFork);
    memory.register(&uffd);
    thread::scope(|scope| {
        let forker = scope.spawn(|| {
            // SAFETY: the child reads a byte of memory that it has and ends.
            match unsafe { libc::fork() } {
                // SAFETY: as above.
                0 => unsafe { libc::_exit(memory.read(0).into()) },
                child => child,
            }
        });
        assert_eq!(next_event(&uffd), Event::Fork);
        let child = rustix::process::Pid::from_raw(forker.join().unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            let options = rustix::process::WaitOptions::NOHANG;
            if let Some((_, status)) = rustix::process::waitpid(Some(child), options).unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the child waits for a page");
            thread::yield_now();
        };
        assert_eq!(status.exit_status(), Some(0));
    });
}

#[test]
fn the_survey_agrees_with_what_is_known_of_memory() {
    let Some(_) = open() else { return };
    let survey = probe::survey(MemoryKind::Anonymous).unwrap();
    for operation in [Operation::Wake, Operation::Copy, Operation::Zeropage] {
        assert_eq!(survey.trials.get(operation), Trial::Works, "{operation:?}");
    }
    assert_eq!(survey.trials.get(Operation::Continue), Trial::Fails(Errno(libc::EINVAL)));
    let [(_, missing), (_, protect), (_, minor)] = survey.modes;
    assert!(missing.unwrap().contains(Ioctls::COPY | Ioctls::WAKE));
    assert_eq!(minor, Err(Errno(libc::EINVAL)));
    if protect.is_ok_and(|mask| mask.contains(Ioctls::WRITEPROTECT)) {
        assert_eq!(survey.trials.get(Operation::WriteProtect), Trial::Works);
    }
    let memfd = probe::survey(MemoryKind::Memfd).unwrap();
    assert_eq!(memfd.trials.get(Operation::Copy), Trial::Works);
    // The registration reports it all the same.
    assert_ne!(memfd.trials.get(Operation::Move), Trial::Works);
    if memfd.modes[2].1.is_ok() {
        assert_eq!(memfd.trials.get(Operation::Continue), Trial::Works);
    }
}

#[test]
fn one_of_the_doors_is_the_one_that_we_come_in_by() {
    let Some(uffd) = open() else { return };
    let doors = probe::doors();
    let offered = doors.device.or(doors.system_call).unwrap();
    assert_eq!(offered, uffd.offered());
}

#[test]
fn unmapping_memory_is_an_event_if_asked_for() {
    let Some(_) = open() else { return };
    let uffd = KernelUffd::open_with(Features::EVENT_UNMAP).unwrap();
    if !uffd.enabled().contains(Features::EVENT_UNMAP) {
        println!("skipped: the kernel does not report unmapping");
        return;
    }
    let memory = Memory::anonymous(2);
    memory.register(&uffd);
    let (start, end) = (memory.page(0), Hva(memory.page(1).0 + PAGE as u64));
    let unmapper = thread::spawn(move || drop(memory));
    assert_eq!(next_event(&uffd), Event::Unmap { start, end });
    unmapper.join().unwrap();
}

#[test]
fn impossible_ranges_are_refused_by_name() {
    let Some(uffd) = open() else { return };
    let memory = Memory::anonymous(1);
    let odd = Range { start: Hva(memory.page(0).0 + 1), bytes: PAGE as u64 };
    // SAFETY: the kernel refuses the range, which is what is tested.
    let error = unsafe { uffd.register(odd, RegisterMode::MISSING) }.unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::EINVAL));
    assert!(error.to_string().starts_with("userfaultfd REGISTER of 0x1000 bytes at hva 0x"));
    memory.register(&uffd);
    let error = uffd.copy(memory.page(0), &[0; 100], Wake::Now).unwrap_err();
    assert_eq!(source_errno(&error), Some(libc::EINVAL));
    let none = Range { start: memory.page(0), bytes: 0 };
    assert_eq!(source_errno(&uffd.wake(none).unwrap_err()), Some(libc::EINVAL));
    assert_eq!(source_errno(&uffd.zero(none, Wake::Now).unwrap_err()), Some(libc::EINVAL));
}

#[test]
fn a_kernel_that_offers_to_follow_writes_does() {
    let Some(uffd) = open() else { return };
    let offers = uffd.offered().contains(Features::WP_ASYNC);
    for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
        assert_eq!(follows_writes(kind) == Trial::Works, offers, "{kind}");
    }
    for kind in MemoryKind::ALL.into_iter().filter(|kind| kind.is_hugetlb()) {
        let trial = follows_writes(kind);
        assert!(trial == Trial::Untried || (trial == Trial::Works) == offers, "{kind}: {trial:?}");
    }
}
