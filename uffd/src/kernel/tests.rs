//! The real userfaultfd on real memory, and the fixture that other tests of this crate use.

// UNSAFETY: maps memory, touches it and gives it up, as a guest would.
#![expect(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::mpsc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::*;
use crate::page::PageSize;

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

/// Pages that nothing has touched, mapped until dropped.
pub(crate) struct Memory {
    start: NonNull<u8>,
    pages: usize,
}

// SAFETY: the memory is touched by volatile accesses only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn anonymous(pages: usize) -> Memory {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), pages * PAGE, access, MapFlags::PRIVATE).unwrap()
        };
        Memory { start: NonNull::new(start.cast()).unwrap(), pages }
    }

    pub(crate) fn memfd(pages: usize) -> Memory {
        let file = memfd_create("godwit-uffd-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, (pages * PAGE) as u64).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap(ptr::null_mut(), pages * PAGE, access, MapFlags::SHARED, &file, 0).unwrap()
        };
        Memory { start: NonNull::new(start.cast()).unwrap(), pages }
    }

    pub(crate) fn range(&self) -> Range {
        self.range_of(0, self.pages)
    }

    fn range_of(&self, first: usize, count: usize) -> Range {
        Range { start: self.page(first), bytes: (count * PAGE) as u64 }
    }

    fn page(&self, page: usize) -> Hva {
        assert!(page < self.pages);
        Hva(self.start.as_ptr() as u64 + (page * PAGE) as u64)
    }

    pub(crate) fn register(&self, uffd: &KernelUffd) -> Ioctls {
        // SAFETY: this memory is touched by volatile accesses only, on threads that serve nothing.
        unsafe { uffd.register(self.range(), RegisterMode::MISSING).unwrap() }
    }

    /// The last byte of a page. Waits if the page is missing.
    fn read(&self, page: usize) -> u8 {
        assert!(page < self.pages);
        // SAFETY: the byte is inside of the mapping.
        unsafe { self.start.as_ptr().add(page * PAGE + PAGE - 1).read_volatile() }
    }

    /// Writes the last byte of a page. Waits if the page is missing.
    fn write(&self, page: usize, byte: u8) {
        assert!(page < self.pages);
        // SAFETY: the byte is inside of the mapping.
        unsafe { self.start.as_ptr().add(page * PAGE + PAGE - 1).write_volatile(byte) }
    }

    /// Gives up a page. Waits for the event to be read.
    fn remove(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: the page is inside of the mapping, and nothing refers to it.
        unsafe {
            let at = self.start.as_ptr().add(page * PAGE);
            madvise(at.cast(), PAGE, Advice::LinuxDontNeed).unwrap();
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
        unsafe { munmap(self.start.as_ptr().cast(), self.pages * PAGE).unwrap() }
    }
}

fn is_readable(uffd: &KernelUffd, timeout: Timespec) -> bool {
    let mut polled = [PollFd::new(uffd, PollFlags::IN)];
    poll(&mut polled, Some(&timeout)).unwrap() == 1
}

fn wait_readable(uffd: &KernelUffd) {
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert!(is_readable(uffd, minute), "nothing to read from the userfaultfd");
}

fn nothing_waits(uffd: &KernelUffd) -> bool {
    !is_readable(uffd, Timespec { tv_sec: 0, tv_nsec: 0 })
}

fn next_event(uffd: &KernelUffd) -> Event {
    wait_readable(uffd);
    let mut events = Vec::new();
    uffd.read_events(&mut events).unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

fn next_fault(uffd: &KernelUffd) -> Fault {
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

fn source_errno(error: &Error) -> Option<i32> {
    match error {
        Error::Operation { source, .. } => source.raw_os_error(),
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
