//! The running kernel as a [`World`]: real processes, threads, memory and userfaultfds.
//!
//! Each process is an agent, a forked child that does what the driver puts into shared memory
//! ([`agents`]). Needs privilege, because page tables show frames only to the privileged.

// UNSAFETY: descriptors that the agents open for us, and the C library's error number.
#![expect(unsafe_code)]

mod agent;
mod agents;
mod descriptor;
mod files;
mod guest;
mod host;
mod mailbox;
mod memory;
mod observe;
mod pin;
mod probe;
mod syscall;
#[cfg(test)]
mod tests;
mod ticket;

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use godwit_uffd::abi::{Call, Errno, RawMessage};

use crate::world::{
    Ability, Access, Advice, Door, Entry, Fd, FdInfo, File, FileKind, Mapping, NotHere, Placement,
    Polled, Process, Remap, Scan, ScanRegion, Step, Ticket, Touch, World,
};
use agents::Agents;
use files::MemoryFile;
use guest::Guest;
use mailbox::operation;
use pin::Pin;
use syscall::checked;
use ticket::{Kind, Pipe, Stage};

/// Bytes of a base page.
const PAGE: u64 = 4096;
/// An address below all mappings of an agent but its program, where nothing is mapped.
const NOWHERE: u64 = 0x1E00_0000_0000;

/// The running kernel.
///
/// Dropping it ends all its processes and gives back what it switched on, in the order of the
/// fields: processes first, because their threads sleep in pipes and in userfaultfds, and their
/// memory is in the pools and on the swap device.
#[derive(Debug)]
pub struct KernelWorld {
    agents: Agents,
    tickets: Vec<Stage>,
    pins: BTreeMap<(usize, u64), Pin>,
    guests: BTreeMap<usize, Guest>,
    /// The agent of each process, until it ends.
    processes: Vec<Option<usize>>,
    /// The descriptor of each userfaultfd, until it is closed.
    descriptors: Vec<Option<OwnedFd>>,
    files: Vec<MemoryFile>,
    /// Where the next mapping goes that may go anywhere.
    next: u64,
    huge_pages: Option<Rc<host::HugePages>>,
    merging: Option<Rc<host::Merging>>,
    background: Option<Rc<host::Background>>,
    swap: Option<host::Swap>,
    no_swap: host::NoSwap,
}

impl KernelWorld {
    /// A world with one privileged process.
    ///
    /// # Errors
    /// If this process lacks the privilege that an observer needs.
    pub fn new() -> Result<Self, NotHere> {
        // SAFETY: no memory is involved.
        if unsafe { libc::geteuid() } != 0 {
            return Err(NotHere("the observer of page tables must be root".to_owned()));
        }
        let mut world = Self {
            agents: Agents::new(),
            tickets: Vec::new(),
            pins: BTreeMap::new(),
            guests: BTreeMap::new(),
            processes: Vec::new(),
            descriptors: Vec::new(),
            files: Vec::new(),
            next: memory::WINDOW,
            huge_pages: None,
            merging: None,
            background: None,
            swap: None,
            no_swap: host::NoSwap::new(),
        };
        world.spawn(true);
        Ok(world)
    }

    fn agent(&self, process: Process) -> usize {
        self.processes[process.0 as usize].expect("the process lives")
    }

    /// The process that an agent is.
    fn process_of(&self, at: usize) -> Process {
        let process = self.processes.iter().position(|agent| *agent == Some(at));
        Process(u32::try_from(process.expect("the process lives")).expect("few processes"))
    }

    fn descriptor(&self, fd: Fd) -> i32 {
        use std::os::fd::AsRawFd;
        self.descriptors[fd.0 as usize].as_ref().expect("the descriptor is open").as_raw_fd()
    }

    fn adopt_descriptor(&mut self, number: i32) -> Fd {
        // SAFETY: an agent or a read has just made it in the shared table; nothing else owns it.
        self.descriptors.push(Some(unsafe { OwnedFd::from_raw_fd(number) }));
        Fd(u32::try_from(self.descriptors.len() - 1).expect("few descriptors"))
    }

    fn file(&self, file: File) -> &MemoryFile {
        &self.files[file.0 as usize]
    }

    /// The byte at an address, if its entry is one of a page.
    fn byte_behind(&self, process: Process, entry: Entry, address: u64) -> Option<u8> {
        let (Entry::Anonymous { .. } | Entry::Zero { .. } | Entry::File { .. }) = entry else {
            return None;
        };
        let mut byte = [0];
        let memory = self.agents.memory(self.agent(process));
        // Past the end of its file a page is no longer memory, though it is still mapped.
        memory.read_exact_at(&mut byte, address).ok()?;
        Some(byte[0])
    }

    /// A system call of memory management, which may sleep.
    fn returned(&mut self, process: Process, number: i64, arguments: [u64; 5]) -> Step {
        let [first, second, third, fourth, fifth] = arguments;
        let words = [number.cast_unsigned(), first, second, third, fourth, fifth, 0];
        self.begin(self.agent(process), Kind::Call, operation::CALL, words)
    }

    fn kernel_access(&mut self, process: Process, address: u64, store: Option<u8>) -> Step {
        let pipe = Pipe::new();
        let (number, end) = match store {
            Some(byte) => {
                pipe.fill(byte);
                (libc::SYS_read, pipe.reader())
            }
            None => (libc::SYS_write, pipe.writer()),
        };
        let end = u64::from(end.cast_unsigned());
        let words = [number.cast_unsigned(), end, address, 1, 0, 0, 0];
        self.begin(self.agent(process), Kind::Pipe(pipe), operation::CALL, words)
    }

    fn open_device(&mut self, at: Option<usize>) -> Result<OwnedFd, Errno> {
        const NODE: &std::ffi::CStr = c"/dev/userfaultfd";
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        let made = match at {
            Some(at) => {
                let here = libc::AT_FDCWD as u64;
                let words = [here, NODE.as_ptr() as u64, flags as u64, 0, 0, 0];
                let made = checked(self.agents.call(at, libc::SYS_openat, words))?;
                i32::try_from(made).expect("a descriptor")
            }
            // SAFETY: the name is a literal with its zero.
            None => match unsafe { libc::open(NODE.as_ptr(), flags) } {
                made if made < 0 => return Err(errno()),
                made => made,
            },
        };
        // SAFETY: the kernel has just made it in the shared table; nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(made) })
    }
}

/// The error number of the driver's last system call.
fn errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().expect("an error of the system"))
}

/// A descriptor that a call has just made in the table that all share.
fn owned(number: u64) -> OwnedFd {
    let number = i32::try_from(number).expect("a descriptor");
    // SAFETY: every caller passes what the kernel has just returned to it, and nothing else.
    unsafe { OwnedFd::from_raw_fd(number) }
}

impl World for KernelWorld {
    fn can(&mut self, ability: Ability) -> Result<(), NotHere> {
        match ability {
            Ability::KernelFaults => {
                let fd = self.open(self.root(), Door::Call, 0);
                fd.map(|fd| self.close(fd)).map_err(|error| NotHere(format!("{error:?}")))
            }
            Ability::Unprivileged => host::unprivileged_is_refused(),
            Ability::Hugetlb(pages) => {
                self.huge_pages = Some(host::huge_pages(pages)?);
                Ok(())
            }
            Ability::TransparentHuge => {
                host::transparent()?;
                self.background = Some(host::without_background()?);
                Ok(())
            }
            Ability::Swap if self.swap.is_some() => Ok(()),
            Ability::Swap => {
                self.swap = Some(self.no_swap.swap()?);
                Ok(())
            }
            Ability::Pin => Pin::possible()
                .map_err(|error| NotHere(format!("pins are made by io_uring: {error:?}"))),
            Ability::Ksm => {
                self.merging = Some(host::merging()?);
                Ok(())
            }
            Ability::Vcpu => self.has_guests(),
            Ability::GuestMemfd => self.has_guest_files(),
            Ability::Newest => self.is_newest(),
        }
    }

    fn root(&self) -> Process {
        Process(0)
    }

    fn spawn(&mut self, privileged: bool) -> Process {
        let at = self.agents.start(privileged);
        self.add_process(at)
    }

    fn fork(&mut self, process: Process) -> Step {
        let at = self.agent(process);
        let child = self.agents.reserve();
        self.begin_fork(at, child)
    }

    fn exit(&mut self, process: Process) {
        let at = self.processes[process.0 as usize].take().expect("the process lives");
        // In this order: a pipe does not close while a thread sleeps in it.
        self.agents.end(at);
        self.forget(at);
    }

    fn make_file(&mut self, kind: FileKind, pages: u64) -> File {
        let file = MemoryFile::new(kind, pages).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        self.files.push(file);
        File(u32::try_from(self.files.len() - 1).expect("few files"))
    }

    fn file_store(&mut self, file: File, page: u64, byte: u8) {
        self.file(file).store(page, byte).expect("a store into a file");
    }

    fn file_load(&mut self, file: File, page: u64) -> Option<u8> {
        self.file(file).load(page).expect("a load from a file")
    }

    fn file_truncate(&mut self, file: File, pages: u64) {
        self.file(file).truncate(pages).expect("a change of a file's size");
    }

    fn file_punch(&mut self, file: File, page: u64) {
        self.file(file).punch(page).expect("a hole in a file");
    }

    fn file_seal_writes(&mut self, file: File) {
        self.file(file).seal().expect("a seal");
    }

    fn map(&mut self, process: Process, mapping: Mapping) -> Result<u64, Errno> {
        self.map_memory(process, mapping)
    }

    fn unmap(&mut self, process: Process, start: u64, pages: u64) -> Step {
        self.returned(process, libc::SYS_munmap, [start, pages * PAGE, 0, 0, 0])
    }

    fn protect(&mut self, process: Process, start: u64, pages: u64, access: Access) -> Step {
        let arguments = [start, pages * PAGE, memory::protection(access), 0, 0];
        self.returned(process, libc::SYS_mprotect, arguments)
    }

    fn advise(&mut self, process: Process, start: u64, pages: u64, advice: Advice) -> Step {
        let arguments = [start, pages * PAGE, memory::advice_number(advice), 0, 0];
        self.returned(process, libc::SYS_madvise, arguments)
    }

    fn remap(&mut self, process: Process, remap: Remap) -> Step {
        let [from, old, new] = [remap.from, remap.pages * PAGE, remap.new_pages * PAGE];
        let arguments = [from, old, new, memory::remap_flags(remap), remap.to.unwrap_or(0)];
        self.returned(process, libc::SYS_mremap, arguments)
    }

    fn lock(&mut self, process: Process, start: u64, pages: u64, locked: bool) -> Step {
        let number = if locked { libc::SYS_mlock } else { libc::SYS_munlock };
        self.returned(process, number, [start, pages * PAGE, 0, 0, 0])
    }

    fn pin(&mut self, process: Process, address: u64) {
        let at = self.agent(process);
        let pin = Pin::new(&mut self.agents, at, address).expect("a pin of a mapped page");
        let before = self.pins.insert((at, address), pin);
        assert!(before.is_none(), "{address:#x} is pinned already");
    }

    fn unpin(&mut self, process: Process, address: u64) {
        let pin = self.pins.remove(&(self.agent(process), address));
        drop(pin.expect("a pin"));
    }

    fn open(&mut self, process: Process, door: Door, flags: u32) -> Result<Fd, Errno> {
        let at = self.agent(process);
        let flags = u64::from(flags);
        let device = match door {
            Door::Call => None,
            Door::Device => Some(self.open_device(Some(at))?),
            Door::InheritedDevice => Some(self.open_device(None)?),
        };
        let made = match &device {
            None => self.agents.call(at, libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]),
            Some(device) => {
                use std::os::fd::AsRawFd;
                let fd = u64::from(device.as_raw_fd().cast_unsigned());
                self.agents.call(at, libc::SYS_ioctl, [fd, descriptor::NEW, flags, 0, 0, 0])
            }
        };
        let made = checked(made)?;
        Ok(self.adopt_descriptor(i32::try_from(made).expect("a descriptor")))
    }

    fn close(&mut self, fd: Fd) {
        drop(self.descriptors[fd.0 as usize].take().expect("the descriptor is open"));
    }

    fn set_nonblocking(&mut self, fd: Fd, nonblocking: bool) {
        descriptor::set_nonblocking(self.descriptor(fd), nonblocking);
    }

    fn ioctl(&mut self, process: Process, fd: Fd, call: Call, placement: Placement) -> Step {
        let at = self.agent(process);
        let fd = self.descriptor(fd);
        self.begin_ioctl(at, fd, call, placement)
    }

    fn read(&mut self, fd: Fd, bytes: usize) -> Result<Vec<RawMessage>, Errno> {
        let mut messages = descriptor::read(self.descriptor(fd), bytes)?;
        for message in &mut messages {
            if let RawMessage::Fork { fd } = message {
                *fd = self.adopt_descriptor(fd.cast_signed()).0;
            }
        }
        Ok(messages)
    }

    fn read_into_nowhere(&mut self, fd: Fd) -> Result<usize, Errno> {
        descriptor::read_into_nowhere(self.descriptor(fd))
    }

    fn poll(&mut self, fd: Fd) -> Polled {
        descriptor::poll(self.descriptor(fd))
    }

    fn fd_info(&mut self, fd: Fd) -> FdInfo {
        descriptor::info(self.descriptor(fd))
    }

    fn touch(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        let at = self.agent(process);
        match touch {
            Touch::Load => self.begin(at, Kind::Load, operation::LOAD, [address, 0, 0, 0, 0, 0, 0]),
            Touch::Store(byte) => {
                let words = [address, byte.into(), 0, 0, 0, 0, 0];
                self.begin(at, Kind::Store, operation::STORE, words)
            }
            Touch::KernelStore(byte) => self.kernel_access(process, address, Some(byte)),
            Touch::KernelLoad => self.kernel_access(process, address, None),
        }
    }

    fn guest_touch(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        self.touch_by_guest(process, address, touch)
    }

    fn map_guest_memfd(&mut self, process: Process, pages: u64) -> u64 {
        self.map_guest_file(process, pages)
    }

    fn thread_id(&mut self, ticket: Ticket) -> u32 {
        self.agents.thread_id(self.worker(ticket))
    }

    fn interrupt(&mut self, ticket: Ticket) {
        let worker = self.worker(ticket);
        self.agents.nudge(worker);
    }

    fn poll_ticket(&mut self, ticket: Ticket) -> Step {
        self.look_at(ticket)
    }

    fn entry(&mut self, process: Process, address: u64) -> Entry {
        self.entries(process, address / PAGE * PAGE, 1)[0]
    }

    fn entries(&mut self, process: Process, start: u64, pages: u64) -> Vec<Entry> {
        let pagemap = self.agents.pagemap(self.agent(process));
        observe::entries(pagemap, start, usize::try_from(pages).expect("a short range"))
    }

    fn peek(&mut self, process: Process, address: u64) -> Option<u8> {
        let entry = self.entry(process, address);
        self.byte_behind(process, entry, address)
    }

    fn bytes(&mut self, process: Process, start: u64, pages: u64) -> Vec<Option<u8>> {
        let entries = self.entries(process, start, pages).into_iter();
        let addresses = (0..).map(|page| start + page * PAGE);
        entries.zip(addresses).map(|(entry, at)| self.byte_behind(process, entry, at)).collect()
    }

    fn scan(&mut self, process: Process, scan: Scan) -> Result<Vec<ScanRegion>, Errno> {
        observe::scan(self.agents.pagemap(self.agent(process)), scan)
    }
}
