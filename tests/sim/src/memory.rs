//! Guest memory of one host: plain bytes where the guest is at home, and a process of the modelled
//! kernel with a userfaultfd where it arrives.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use godwit_uffd::abi::{self, Answer, Call, Errno, Out, RawMessage};
use godwit_uffd::guest::{GuestSpace, GuestUffd, Region};
use godwit_uffd::model::{
    Access as Mapping, Advice, ContextId, Door, Machine, MapRequest, Material, ModelUffd, Observed,
    Outcome, PAGE as PAGE_BYTES, Parked, Placement, Process, Profile, Progress, Setup, Signal,
    Thread, Touch,
};
use godwit_uffd::page::{Gpa, Hva, PageIndex, PageRun, PageSize};
use godwit_uffd::{Backend, Error, Features, MemoryKind, Range, RegisterMode, trial::Trials};

use crate::guest::{Access, USED, Values};

/// A userfaultfd of the model whose calls can be made to fail.
#[derive(Debug)]
pub struct Fallible {
    inner: ModelUffd,
    failing: AtomicU32,
    failed: AtomicBool,
    /// So many of the next installs stop after their first page.
    pub partly: AtomicU32,
    /// How often an install found a page that was there.
    present: AtomicU32,
    /// The kernel had to refuse an install, because it was nothing that a kernel does.
    refused: AtomicBool,
}

fn take_one(from: &AtomicU32) -> bool {
    from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

const ENOMEM: Errno = Errno(12);
const EAGAIN: Errno = Errno(11);
const EEXIST: Errno = Errno(17);
/// What the kernel says of a range that is not registered, is no range, or has no such bytes.
const REFUSALS: [Errno; 3] = [Errno(2), Errno(22), Errno(14)];

impl Fallible {
    /// Makes an install of `bytes`, or the first page of it.
    fn install(&self, bytes: u64, call: impl Fn(u64) -> Answer) -> Answer {
        if take_one(&self.failing) {
            return Answer { result: Err(ENOMEM), out: Out::Done(i64::from(-ENOMEM.0)) };
        }
        let one = PAGE_BYTES;
        let mut answer = call(if bytes > one && self.partly() { one } else { bytes });
        if answer.result == Ok(()) && answer.out == Out::Done(one.cast_signed()) && bytes > one {
            answer.result = Err(EAGAIN);
        }
        if answer.result == Err(EEXIST) {
            self.present.fetch_add(1, Ordering::Relaxed);
        }
        if answer.result.is_err_and(|errno| REFUSALS.contains(&errno)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        answer
    }

    fn partly(&self) -> bool {
        take_one(&self.partly)
    }

    /// So many of the next installs find no memory.
    pub fn fail(&self, installs: u32) {
        self.failed.store(true, Ordering::Relaxed);
        self.failing.store(installs, Ordering::Relaxed);
    }

    /// A page that was there was installed again, although no install has failed.
    pub fn was_filled_twice(&self) -> bool {
        self.present.load(Ordering::Relaxed) > 0 && !self.failed.load(Ordering::Relaxed)
    }

    /// An install was not one of pages of guest memory.
    pub fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Backend for Fallible {
    fn call(&self, call: Call) -> Answer {
        match call {
            Call::Zeropage { start, len, mode } => self.install(len, |len| {
                Backend::call(&self.inner, Call::Zeropage { start, len, mode })
            }),
            other => Backend::call(&self.inner, other),
        }
    }

    fn copy_bytes(&self, at: Hva, bytes: &[u8], mode: u64) -> Answer {
        self.install(bytes.len() as u64, |len| {
            let len = usize::try_from(len).expect("no more than the slice");
            self.inner.copy_bytes(at, &bytes[..len], mode)
        })
    }

    fn move_bytes(&self, at: Hva, staged: &mut [u8], mode: u64) -> Answer {
        self.inner.move_bytes(at, staged, mode)
    }

    fn give_up(&self, staged: &mut [u8]) {
        Backend::give_up(&self.inner, staged);
    }

    fn read(&self, each: &mut dyn FnMut(RawMessage)) -> Result<(), Error> {
        self.inner.read(each)
    }

    fn scan_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        self.inner.scan_written(range, each)
    }

    fn enabled(&self) -> Features {
        self.inner.enabled()
    }
}

/// Memory that arrives: registered, and empty at first.
#[derive(Debug)]
pub struct Arriving {
    machine: Arc<Machine>,
    process: Process,
    threads: Vec<Thread>,
    context: ContextId,
    pub uffd: Arc<GuestUffdBox>,
}

/// A [`GuestUffd`] that can be printed.
pub struct GuestUffdBox(pub GuestUffd<Fallible>);

impl std::fmt::Debug for GuestUffdBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestUffd")
    }
}

fn setup() -> Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    *SETUP.get_or_init(|| Setup {
        profile: Profile::V6_18,
        hugetlb_pages: 0,
        unprivileged_userfaultfd: false,
    })
}

impl Arriving {
    /// Memory of `pages` pages in two memslots, with `cpus` threads that run the guest and one more
    /// that loads its state.
    pub fn new(pages: u32, cpus: usize) -> Arriving {
        let machine = Arc::new(Machine::new(setup()));
        let process = machine.spawn(true);
        let caller = machine.thread(process);
        let nonblocking = 0o4000;
        let context = machine.open(caller, Door::Call, nonblocking).expect("a userfaultfd");
        let api = Call::Api { api: abi::API_VERSION, features: 0 };
        let answered = machine.call(caller, context, api, Placement::Ordinary);
        assert!(matches!(answered, Progress::Done(Outcome::Ioctl(a)) if a.result == Ok(())));
        let memory = MemoryKind::Anonymous;
        let region = |gpa, count: u32| {
            let bytes = PageSize::BASE.bytes_of(count);
            let hva = map(&machine, caller, bytes);
            Region { gpa: Gpa(gpa), hva: Hva(hva), bytes, memory }
        };
        let low = pages.div_ceil(2);
        let regions = [region(0, low), region(1 << 32, pages - low)];
        let space = GuestSpace::of(regions).expect("two memslots in order");
        let uffd = Fallible {
            inner: ModelUffd::new(Arc::clone(&machine), caller, context),
            failing: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            partly: AtomicU32::new(0),
            present: AtomicU32::new(0),
            refused: AtomicBool::new(false),
        };
        let mode = RegisterMode::MISSING;
        let guest = GuestUffd::register(uffd, space, mode, Features::empty(), |_| Trials::NONE);
        let uffd = Arc::new(GuestUffdBox(guest.expect("it registers")));
        let threads = (0..=cpus).map(|_| machine.thread(process)).collect();
        Arriving { machine, process, threads, context, uffd }
    }

    fn address(&self, access: Access) -> u64 {
        let hva = self.uffd.0.space().hva_of(PageIndex(access.page)).expect("a page of the guest");
        hva.0 + USED[access.slot] as u64
    }

    /// A vCPU accesses memory; the thread behind the last vCPU is the one that loads.
    pub fn access(&self, cpu: usize, access: Access) -> Progress {
        let touch = access.write.map_or(Touch::Load, Touch::Store);
        let (thread, address) = (self.threads[cpu], self.address(access));
        if cpu + 1 == self.threads.len() {
            return self.machine.access(thread, address, touch);
        }
        self.machine.guest_access(thread, address, touch)
    }

    /// Events wait to be read.
    pub fn has_events(&self) -> bool {
        self.machine.poll(self.context) == godwit_uffd::model::Polled::In
    }

    /// Whether a page is there.
    pub fn has(&self, page: PageIndex) -> bool {
        let hva = self.uffd.0.space().hva_of(page).expect("a page of the guest");
        self.machine.observe(self.process, hva.0) != Observed::None
    }

    /// What a page that is there holds.
    pub fn values(&self, page: u32) -> Option<Values> {
        let mut values = Values::default();
        for (slot, value) in values.iter_mut().enumerate() {
            let address = self.address(Access { page, slot, write: None });
            *value = self.machine.peek(self.process, address)?;
        }
        Some(values)
    }

    /// Gives the pages of a run up.
    pub fn empty(&self, run: PageRun) {
        let space = self.uffd.0.space();
        let ranges: Vec<_> = space.split(run).map(|(range, _)| range).collect();
        let caller = self.threads[self.threads.len() - 1];
        for range in ranges {
            let advised = self.machine.advise(caller, range.start.0, range.bytes, Advice::DontNeed);
            assert!(matches!(advised, Progress::Done(Outcome::Returned(Ok(0)))), "{advised:?}");
        }
    }
}

fn map(machine: &Machine, caller: Thread, len: u64) -> u64 {
    let material = Material::Anonymous { huge: false };
    let request = MapRequest { len, material, access: Mapping::ReadWrite, at: None };
    match machine.map(caller, request) {
        Progress::Done(Outcome::Returned(Ok(address))) => address,
        other => panic!("mmap has come to {other:?}"),
    }
}

/// Guest memory.
#[derive(Debug)]
pub enum Memory {
    /// All of it is here.
    Plain(Vec<Values>),
    /// It comes.
    Arriving(Arriving),
}

/// A vCPU that waits for a page.
#[derive(Debug)]
pub struct Waiting {
    pub parked: Parked,
    pub access: Access,
}

/// What came of an access in the model.
pub fn loaded(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Loaded(byte) => byte,
        Outcome::Stored => 0,
        // A page that the source has lost: the guest is told, and learns nothing.
        Outcome::Signal(Signal::BusPoison { .. } | Signal::BusAddress { .. }) => 0,
        other => panic!("an access of guest memory ends in {other:?}"),
    }
}
