//! A machine: processes, threads, files and userfaultfds by their numbers.

use std::collections::BTreeMap;

use super::access::{Touch, Toucher};
use super::address_space::{AddressSpace, Host};
use super::calls::{self, Placement};
use super::context::Context;
use super::events::Delivery;
use super::faults::ThreadState;
use super::fork::fork;
use super::frames::Frames;
use super::handshake::{Door, may_open};
use super::hugetlb::Pool;
use super::page_cache::MemoryFile;
use super::page_table::Entry;
use super::profile::Profile;
use super::read::{self, FdInfo, Polled};
use super::register;
use super::sync::{Arc, AtomicBool, AtomicU32, AtomicU64, Ordering, RwLock};
use super::task::{Outcome, Progress, Task, called, run};
use super::{ContextId, FileId, Process, Thread};
use crate::abi::{Answer, Call, Errno, RawMessage};

/// How a machine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Which kernel it is.
    pub profile: Profile,
    /// Huge pages of the pool.
    pub hugetlb_pages: u64,
    /// The sysctl `vm.unprivileged_userfaultfd`.
    pub unprivileged_userfaultfd: bool,
}

/// A process and what its threads may do.
#[derive(Clone, Debug)]
struct ProcessState {
    space: Arc<AddressSpace>,
    privileged: bool,
}

/// Things by their numbers.
type Numbered<T> = RwLock<BTreeMap<u32, T>>;

/// A machine of our own. See the module for how it is driven.
#[derive(Debug)]
pub struct Machine {
    setup: Setup,
    host: Arc<Host>,
    /// One row of numbers for processes, threads, files and userfaultfds.
    next: AtomicU32,
    processes: Numbered<ProcessState>,
    threads: Numbered<Arc<ThreadState>>,
    contexts: Numbered<Arc<Context>>,
    files: Numbered<Arc<MemoryFile>>,
}

impl Machine {
    /// A machine without processes.
    pub fn new(setup: Setup) -> Machine {
        let pool = Arc::new(Pool::new(setup.hugetlb_pages));
        let frames = Arc::new(Frames::default());
        let next_group = AtomicU64::new(1);
        let (profile, spaces) = (setup.profile, RwLock::default());
        let host = Host { profile, frames, pool, next_group, spaces };
        Machine {
            setup,
            host: Arc::new(host),
            next: AtomicU32::new(1),
            processes: RwLock::default(),
            threads: RwLock::default(),
            contexts: RwLock::default(),
            files: RwLock::default(),
        }
    }

    /// Which kernel it is.
    pub fn profile(&self) -> &Profile {
        &self.host.profile
    }

    /// Huge pages of the pool that nobody has or has reserved.
    pub fn free_hugetlb_pages(&self) -> u64 {
        self.host.pool.available()
    }

    pub(super) fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// A new process with nothing mapped.
    pub fn spawn(&self, privileged: bool) -> Process {
        let process = Process(self.next_number());
        let space = AddressSpace::new(&self.host);
        self.processes.write().insert(process.0, ProcessState { space, privileged });
        process
    }

    /// A new thread of a process.
    pub fn thread(&self, process: Process) -> Thread {
        let state = self.process(process);
        let id = self.next_number();
        let thread = ThreadState {
            id,
            privileged: state.privileged,
            space: state.space,
            fatal: AtomicBool::new(false),
        };
        self.threads.write().insert(id, Arc::new(thread));
        Thread(id)
    }

    /// A thread has ended. What it was in the middle of is cancelled by who has it.
    pub fn end_thread(&self, thread: Thread) {
        self.threads.write().remove(&thread.0);
    }

    /// Sends a fatal signal to a thread; it notices at the next chance.
    pub fn kill(&self, thread: Thread) {
        self.thread_state(thread).fatal.store(true, Ordering::SeqCst);
    }

    /// Ends a process. Its memory is gone, and its userfaultfds act on nothing from now on; both
    /// only when the calls for it are over that others are in.
    pub fn exit(&self, process: Process) {
        if let Some(state) = self.processes.write().remove(&process.0) {
            state.space.let_go();
        }
    }

    /// Forks a process; the new one has the rights of the old.
    pub fn fork(&self, thread: Thread) -> Progress {
        let thread = self.thread_state(thread);
        let process = Process(self.next_number());
        let space = AddressSpace::new(&self.host);
        let privileged = thread.privileged;
        // Who looks at all processes meets the child as soon as it has entries.
        let mut processes = self.processes.write();
        let events = fork(&thread.space, &space, || ContextId(self.next_number()));
        processes.insert(process.0, ProcessState { space, privileged });
        drop(processes);
        run(&thread, Task::Deliver(Delivery::new(events), Outcome::Forked(process)))
    }

    /// Opens a userfaultfd for the process of a thread, with the raw flags of the system call.
    ///
    /// # Errors
    /// EPERM or EACCES without the right to, EINVAL for unknown flags.
    pub fn open(&self, thread: Thread, door: Door, flags: u32) -> Result<ContextId, Errno> {
        let thread = self.thread_state(thread);
        let flags = may_open(&thread, door, flags, self.setup.unprivileged_userfaultfd)?;
        let id = ContextId(self.next_number());
        let space = thread.space.clone();
        let context = Context::new(id, space, flags.user_mode_only, flags.nonblocking);
        self.contexts.write().insert(id.0, Arc::new(context));
        Ok(id)
    }

    /// Closes the last descriptor of a userfaultfd.
    pub fn close(&self, context: ContextId) {
        let removed = self.contexts.write().remove(&context.0);
        if let Some(context) = removed {
            register::release(&context);
        }
    }

    /// Sets or clears `O_NONBLOCK`.
    pub fn set_nonblocking(&self, context: ContextId, nonblocking: bool) {
        self.context(context).nonblocking.store(nonblocking, Ordering::SeqCst);
    }

    /// Calls an ioctl of a userfaultfd.
    pub fn call(
        &self,
        thread: Thread,
        context: ContextId,
        call: Call,
        placement: Placement,
    ) -> Progress {
        let thread = self.thread_state(thread);
        called(&thread, calls::call(&self.context(context), &thread, call, placement))
    }

    /// RWPROTECT, which only the newest kernels have, with the mode bits of WRITEPROTECT.
    ///
    /// # Errors
    /// The kernel's; EINVAL where the profile has no such call.
    pub fn read_write_protect(
        &self,
        context: ContextId,
        start: u64,
        len: u64,
        mode: u64,
    ) -> Result<(), Errno> {
        calls::read_write_protect(&self.context(context), (start, len), mode)
    }

    /// SET_MODE, which only the newest kernels have: turns features on and off.
    ///
    /// # Errors
    /// As [`read_write_protect`](Machine::read_write_protect).
    pub fn set_mode(&self, context: ContextId, enable: u64, disable: u64) -> Result<(), Errno> {
        calls::set_mode(&self.context(context), enable, disable)
    }

    /// COPY of bytes from outside of the machine. It never sleeps.
    pub fn copy_bytes(
        &self,
        thread: Thread,
        context: ContextId,
        dst: u64,
        bytes: &[u8],
        mode: u64,
    ) -> Answer {
        let thread = self.thread_state(thread);
        calls::copy_bytes(&self.context(context), &thread, dst, bytes, mode)
    }

    /// Reads messages with a buffer of `bytes` bytes. The userfaultfd of a forked child can be
    /// used under the number in its message from now on.
    ///
    /// # Errors
    /// The kernel's; EAGAIN too where a blocking descriptor would sleep.
    pub fn read(&self, context: ContextId, bytes: usize) -> Result<Vec<RawMessage>, Errno> {
        let read = read::read(&self.context(context), bytes)?;
        Ok(read.into_iter().map(|message| self.admit(message)).collect())
    }

    /// Reads into memory that cannot be written: the first message is lost.
    ///
    /// # Errors
    /// EFAULT if there was one; otherwise as [`read`](Machine::read).
    pub fn read_into_nowhere(&self, context: ContextId) -> Result<(), Errno> {
        let lost = read::read(&self.context(context), crate::abi::MESSAGE_BYTES)?;
        lost.into_iter().for_each(|message| {
            self.admit(message);
        });
        Err(Errno::EFAULT)
    }

    fn admit(&self, (message, child): read::Read) -> RawMessage {
        if let Some(child) = child {
            self.contexts.write().insert(child.id.0, child);
        }
        message
    }

    /// What poll says.
    pub fn poll(&self, context: ContextId) -> Polled {
        read::poll(&self.context(context))
    }

    /// What fdinfo says.
    pub fn fd_info(&self, context: ContextId) -> FdInfo {
        read::fd_info(&self.context(context))
    }

    /// Touches one byte of the memory of a thread's process.
    pub fn access(&self, thread: Thread, address: u64, touch: Touch) -> Progress {
        let thread = self.thread_state(thread);
        let space = thread.space.clone();
        run(&thread, Task::Touch { space, address, touch, toucher: Toucher::Thread })
    }

    /// The guest of a vCPU, which the thread runs, touches one byte of its memory.
    pub fn guest_access(&self, thread: Thread, address: u64, touch: Touch) -> Progress {
        let thread = self.thread_state(thread);
        let space = thread.space.clone();
        run(&thread, Task::Touch { space, address, touch, toucher: Toucher::Guest })
    }

    pub(super) fn space(&self, process: Process) -> Arc<AddressSpace> {
        self.process(process).space
    }

    /// All address spaces.
    pub(super) fn spaces(&self) -> Vec<Arc<AddressSpace>> {
        self.host.spaces()
    }

    /// Does something with each entry of all address spaces, while none is forked.
    pub(super) fn each_entry(&self, mut work: impl FnMut(&mut Entry)) {
        let _no_process_is_forked = self.processes.read();
        for space in self.host.spaces() {
            space.tables.each_entry(&mut work);
        }
    }

    fn process(&self, process: Process) -> ProcessState {
        let processes = self.processes.read();
        processes.get(&process.0).cloned().expect("a process of this machine that has not ended")
    }

    pub(super) fn thread_state(&self, thread: Thread) -> Arc<ThreadState> {
        let threads = self.threads.read();
        threads.get(&thread.0).cloned().expect("a thread of this machine that has not ended")
    }

    pub(super) fn context(&self, context: ContextId) -> Arc<Context> {
        let contexts = self.contexts.read();
        contexts.get(&context.0).cloned().expect("a userfaultfd of this machine that is open")
    }

    pub(super) fn add_file(&self, file: MemoryFile) -> Arc<MemoryFile> {
        let file = Arc::new(file);
        self.files.write().insert(file.id.0, file.clone());
        file
    }

    /// The last descriptor of a file is closed. Who maps it keeps it.
    pub fn close_file(&self, file: FileId) {
        self.files.write().remove(&file.0);
    }

    pub(super) fn file(&self, file: FileId) -> Arc<MemoryFile> {
        self.files.read().get(&file.0).cloned().expect("a file of this machine")
    }
}

impl Drop for Machine {
    /// Address spaces and userfaultfds refer to each other; taking the first apart ends that.
    fn drop(&mut self) {
        for state in self.processes.write().values() {
            state.space.let_go();
        }
    }
}
