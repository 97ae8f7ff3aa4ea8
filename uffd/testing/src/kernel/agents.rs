//! The driver's side of the agents: starting them, giving them work, and seeing how it stands.

// UNSAFETY: signals and waits for child processes, and the processor that this thread runs on.
#![expect(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::agent;
use super::mailbox::{AGENTS_MAX, BUFFER_WORDS, Mailbox, Slot, WORKERS_MAX, operation};
use super::probe::NUDGE;
use super::syscall::checked;

/// Where the stacks of an agent's threads are: below the window of the test's own mappings.
const STACKS: u64 = 0x1F00_0000_0000;
/// Bytes of a stack.
const STACK_BYTES: u64 = 64 << 10;
/// The first sleep of the driver; a call that does not park is mostly over before.
const FIRST_WAIT: Duration = Duration::from_micros(50);
/// How often the driver gives the processor away before it looks where the thread sleeps.
const YIELDS: u32 = 1;
/// The longest sleep between two looks.
const LONGEST_WAIT: Duration = Duration::from_millis(2);
/// When something that neither ends nor sleeps is a fault of the test.
const DEADLINE: Duration = Duration::from_secs(20);

/// How a posted operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is over.
    Done,
    /// Its thread sleeps in userfaultfd.
    Asleep,
}

/// A thread of an agent, by its process and the number of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    /// The index of the agent.
    pub(super) agent: usize,
    /// The index of the slot.
    pub(super) slot: usize,
}

#[derive(Debug)]
struct Agent {
    pid: i32,
    /// Threads without work, the one that worked last at the end.
    idle: Vec<usize>,
    /// Of each thread, where it sleeps; opened when it is first asked.
    sleeps: Vec<Option<File>>,
    /// The next slot that never had a thread.
    fresh: usize,
    /// The slot of the thread that the process began with, whose stack is in use.
    leader: usize,
    pagemap: File,
    memory: File,
}

/// All agents of a world.
#[derive(Debug)]
pub(super) struct Agents {
    mailbox: Mailbox,
    agents: Vec<Option<Agent>>,
    /// Places of children whose forks are not over.
    reserved: [bool; AGENTS_MAX],
    driver: u64,
    _processor: Rc<OneProcessor>,
}

impl Agents {
    pub(super) fn new() -> Self {
        let agents = (0..AGENTS_MAX).map(|_| None).collect();
        let processor = OneProcessor::of_this_thread();
        Self {
            mailbox: Mailbox::new(),
            agents,
            reserved: [false; AGENTS_MAX],
            driver: std::process::id().into(),
            _processor: processor,
        }
    }

    /// A new agent that is a copy of the test's process.
    pub(super) fn start(&mut self, privileged: bool) -> usize {
        let at = self.reserve();
        let pid = agent::start(self.mailbox.slot(at, 0), self.driver, privileged);
        self.adopt(at, pid, 0);
        at
    }

    /// A free index for the child of a fork.
    pub(super) fn reserve(&mut self) -> usize {
        let free = |at: &usize| self.agents[*at].is_none() && !self.reserved[*at];
        let at = (0..AGENTS_MAX).find(free);
        let at = at.expect("no more processes at one time than the mailbox has room for");
        self.reserved[at] = true;
        self.mailbox.clear(at);
        at
    }

    /// Gives a place back whose fork never ends.
    pub(super) fn unreserve(&mut self, at: usize) {
        self.reserved[at] = false;
    }

    /// Takes in the process that serves slot `leader` of agent `at`.
    pub(super) fn adopt(&mut self, at: usize, pid: i64, leader: usize) {
        let pid = checked(pid).unwrap_or_else(|error| panic!("fork: {error:?}"));
        let open = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        self.reserved[at] = false;
        self.agents[at] = Some(Agent {
            pid: i32::try_from(pid).expect("a process id"),
            idle: vec![leader],
            sleeps: (0..WORKERS_MAX).map(|_| None).collect(),
            fresh: 0,
            leader,
            pagemap: open("pagemap"),
            memory: open("mem"),
        });
    }

    /// Kills an agent and waits until its memory is gone.
    pub(super) fn end(&mut self, at: usize) {
        let Some(agent) = self.agents[at].take() else { return };
        // SAFETY: the process is a child of ours that has not been waited for, so the number is
        // still its own; no status is asked for.
        unsafe {
            libc::kill(agent.pid, libc::SIGKILL);
            while libc::waitpid(agent.pid, std::ptr::null_mut(), libc::__WALL) < 0
                && *libc::__errno_location() == libc::EINTR
            {}
        }
    }

    /// Gives a thread of the agent work; the agent has an idle thread left afterwards.
    pub(super) fn post(&mut self, at: usize, operation: u32, arguments: [u64; 7]) -> Worker {
        let slot = self.pick(at);
        self.mailbox.slot(at, slot).post(operation, arguments);
        Worker { agent: at, slot }
    }

    /// An idle thread, which is given work next. What goes into its buffer is put there before.
    pub(super) fn pick(&mut self, at: usize) -> usize {
        let agent = self.agent_mut(at);
        let slot = agent.idle.pop().expect("an agent has an idle thread");
        if agent.idle.is_empty() {
            self.add_thread(at, slot);
        }
        slot
    }

    /// Posts to a thread that [`pick`](Self::pick) gave.
    pub(super) fn post_to(&self, worker: Worker, operation: u32, arguments: [u64; 7]) {
        self.slot(worker).post(operation, arguments);
    }

    fn add_thread(&mut self, at: usize, by: usize) {
        let agent = self.agent_mut(at);
        if agent.fresh == agent.leader {
            agent.fresh += 1;
        }
        let new = agent.fresh;
        agent.fresh += 1;
        assert!(new < WORKERS_MAX, "no more than {WORKERS_MAX} threads of a process sleep");
        let slot = std::ptr::from_ref(self.mailbox.slot(at, new)) as u64;
        let stack = STACKS + new as u64 * STACK_BYTES;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let [access, flags] = [access, flags].map(|bits| u64::from(bits.cast_unsigned()));
        let by = Worker { agent: at, slot: by };
        let map = [libc::SYS_mmap.cast_unsigned(), stack, STACK_BYTES, access, flags, u64::MAX, 0];
        self.slot(by).post(operation::CALL, map);
        assert_eq!(self.finish(by), stack.cast_signed(), "a stack");
        let top = stack + STACK_BYTES;
        self.slot(by).post(operation::THREAD, [slot, top, 0, 0, 0, 0, 0]);
        assert!(self.finish(by) > 0, "a thread");
        self.agent_mut(at).idle.insert(0, new);
    }

    /// Waits for something that cannot sleep in userfaultfd; its result.
    pub(super) fn finish(&mut self, worker: Worker) -> i64 {
        let standing = self.settle(worker);
        assert_eq!(standing, Standing::Done, "a call that has no way to say that it sleeps does");
        self.slot(worker).result.load(std::sync::atomic::Ordering::Relaxed).cast_signed()
    }

    /// A system call that cannot sleep in userfaultfd; the kernel's return value.
    pub(super) fn call(&mut self, at: usize, number: i64, arguments: [u64; 6]) -> i64 {
        let [first, second, third, fourth, fifth, sixth] = arguments;
        let number = number.cast_unsigned();
        let arguments = [number, first, second, third, fourth, fifth, sixth];
        let worker = self.post(at, operation::CALL, arguments);
        let result = self.finish(worker);
        self.release(worker);
        result
    }

    /// The same with a structure in the thread's buffer, whose address `arguments` gets.
    pub(super) fn call_with(
        &mut self,
        at: usize,
        number: i64,
        structure: [u64; BUFFER_WORDS],
        arguments: impl FnOnce(u64) -> [u64; 6],
    ) -> i64 {
        let worker = Worker { agent: at, slot: self.pick(at) };
        let buffer = self.slot(worker).fill(structure);
        let [first, second, third, fourth, fifth, sixth] = arguments(buffer);
        let number = number.cast_unsigned();
        let arguments = [number, first, second, third, fourth, fifth, sixth];
        self.post_to(worker, operation::CALL, arguments);
        let result = self.finish(worker);
        self.release(worker);
        result
    }

    /// Waits until the operation is over or its thread sleeps in userfaultfd. Nothing depends on
    /// how long either takes: the kernel says where the thread sleeps, and says nothing of a
    /// thread that has been woken and did not run yet.
    pub(super) fn settle(&mut self, worker: Worker) -> Standing {
        let mut time = FIRST_WAIT;
        let mut since = None;
        for _ in 0..YIELDS {
            if self.slot(worker).is_done() {
                return Standing::Done;
            }
            std::thread::yield_now();
        }
        loop {
            if self.slot(worker).is_done() {
                return Standing::Done;
            }
            if self.sleeps_in_userfaultfd(worker) {
                return Standing::Asleep;
            }
            let since = *since.get_or_insert_with(Instant::now);
            assert!(since.elapsed() < DEADLINE, "{worker:?} neither ends nor sleeps");
            self.slot(worker).wait(time);
            time = (time * 2).min(LONGEST_WAIT);
        }
    }

    fn sleeps_in_userfaultfd(&mut self, worker: Worker) -> bool {
        let thread = self.thread_id(worker);
        if thread == 0 {
            return false;
        }
        let agent = self.agent_mut(worker.agent);
        let pid = agent.pid;
        let file = agent.sleeps[worker.slot].get_or_insert_with(|| {
            let path = format!("/proc/{pid}/task/{thread}/wchan");
            File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        });
        let mut name = [0; 64];
        match file.read_at(&mut name, 0) {
            Ok(bytes) => name[..bytes].windows(9).any(|part| part == b"userfault"),
            Err(error) => panic!("process {pid} of the world is gone: {error}"),
        }
    }

    /// Makes a thread idle whose result has been taken.
    pub(super) fn release(&mut self, worker: Worker) {
        self.agent_mut(worker.agent).idle.push(worker.slot);
    }

    /// Sends the signal that ends a sleep.
    pub(super) fn nudge(&mut self, worker: Worker) {
        let pid = self.agent_mut(worker.agent).pid;
        let thread = self.thread_id(worker);
        // SAFETY: a signal to a thread of a child of ours that lives, and has a handler for it.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, NUDGE) };
    }

    /// The id of a thread that has been given work.
    pub(super) fn thread_id(&self, worker: Worker) -> u32 {
        self.slot(worker).thread.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(super) fn slot(&self, worker: Worker) -> &Slot {
        self.mailbox.slot(worker.agent, worker.slot)
    }

    pub(super) fn slot_address(&self, worker: Worker) -> u64 {
        std::ptr::from_ref(self.slot(worker)) as u64
    }

    /// The address of a slot's buffer, in memory that cannot be written.
    pub(super) fn read_only_buffer(&self, worker: Worker) -> u64 {
        self.mailbox.read_only_buffer(worker.agent, worker.slot)
    }

    pub(super) fn driver(&self) -> u64 {
        self.driver
    }

    pub(super) fn pagemap(&self, at: usize) -> &File {
        &self.agent(at).pagemap
    }

    pub(super) fn memory(&self, at: usize) -> &File {
        &self.agent(at).memory
    }

    /// The process ids of all agents.
    #[cfg(test)]
    pub(super) fn pids(&self) -> Vec<i32> {
        self.agents.iter().flatten().map(|agent| agent.pid).collect()
    }

    fn agent(&self, at: usize) -> &Agent {
        self.agents[at].as_ref().expect("the process lives")
    }

    fn agent_mut(&mut self, at: usize) -> &mut Agent {
        self.agents[at].as_mut().expect("the process lives")
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for at in 0..AGENTS_MAX {
            self.end(at);
        }
    }
}

/// Keeps this thread, and with it all agents, on one processor: an operation is then two switches
/// of context and no wake-up of an idle processor, which costs ten times as much. Worlds of one
/// thread share it, and the last one to go gives back what was allowed before.
#[derive(Debug)]
struct OneProcessor {
    before: Option<libc::cpu_set_t>,
}

thread_local! {
    static PROCESSOR: RefCell<Weak<OneProcessor>> = const { RefCell::new(Weak::new()) };
}

impl OneProcessor {
    fn of_this_thread() -> Rc<Self> {
        PROCESSOR.with_borrow_mut(|held| {
            held.upgrade().unwrap_or_else(|| {
                let new = Rc::new(Self { before: Self::stay() });
                *held = Rc::downgrade(&new);
                new
            })
        })
    }

    /// What was allowed before, if it changed. A host that refuses is only slower.
    fn stay() -> Option<libc::cpu_set_t> {
        // SAFETY: all zero is a valid set, and the kernel and CPU_SET write within it.
        unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size_of_val(&before), &raw mut before) != 0 {
                return None;
            }
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(usize::try_from(libc::sched_getcpu()).ok()?, &mut one);
            (libc::sched_setaffinity(0, size_of_val(&one), &raw const one) == 0).then_some(before)
        }
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the set is the one that the kernel gave.
            unsafe { libc::sched_setaffinity(0, size_of_val(before), before) };
        }
    }
}
