//! A guest that runs on the memory of a snapshot that has not been read yet: the fault loop, which
//! serves what the guest touches, and the threads that bring in the rest.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use godwit_uffd::Event as UffdEvent;
use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use super::background::stand_back;
use super::channel::wait_readable;
use super::notify::Notifier;
use super::push::LatestFaults;
use super::text::in_full;
use super::working_set::{Recorder, Recording};
use crate::limits::{DAMAGED_PAGES_NAMED_MAX, data_pages_per_run_max};
use crate::metrics::{Mark, RestoreProgress};
use crate::page::{Claims, Contents, InstallError, PageSet, Requested, Sent, install};
use crate::schedule::{Gate, PushOrder};
use crate::snapshot::{Image, Stretch, WorkingSet};

const PAGE: PageSize = PageSize::BASE;
/// Pages that are brought in at once.
pub(super) const GROUP_PAGES: u32 = data_pages_per_run_max(PAGE);

/// Most threads that bring in what no fault asks for.
const FILL_THREADS_MAX: usize = 2;

/// How serving a snapshot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreEnd {
    /// Every page is in place; those that were damaged or lost are poisoned.
    Resident,
    /// Somebody stopped it. Pages are missing.
    Stopped,
    /// It cannot go on, for this reason. Pages are missing.
    Failed(String),
}

/// What comes before the pages that nobody has asked for.
#[derive(Debug)]
pub enum First {
    /// Nothing.
    Nothing,
    /// The pages of a working set.
    WorkingSet(WorkingSet),
    /// Only what the guest touches, which is recorded.
    Record(Recording),
}

/// What happens beside faults.
pub(super) enum Event {
    Running,
    Fill,
    Stop,
    AllInstalled,
    Failed(String),
}

/// Serves the pages of a snapshot to a guest.
pub struct Restoring {
    shared: Arc<Shared>,
    first: First,
}

/// What the fault loop and the fill threads share.
pub(super) struct Shared {
    pub image: Arc<Image>,
    memory: Arc<GuestUffd<KernelUffd>>,
    claims: Arc<Claims>,
    /// Who installs a page is who takes it here: the fault loop or another thread.
    pub taken: Sent,
    order: Mutex<PushOrder>,
    faults: LatestFaults,
    pub gate: Gate,
    pub progress: Arc<RestoreProgress>,
    events: Notifier<Event>,
}

impl Restoring {
    /// Will serve `image` to the guest with `memory`, which has as many pages, all of them missing.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(
        image: Arc<Image>,
        memory: Arc<GuestUffd<KernelUffd>>,
        progress: Arc<RestoreProgress>,
        first: First,
    ) -> io::Result<Restoring> {
        let pages = image.page_count();
        assert_eq!(memory.space().page_count(), pages, "the guest is that of the snapshot");
        let (claims, taken) = (Arc::new(Claims::new(pages)), Sent::new(pages));
        progress.count_claims(Arc::clone(&claims));
        let shared = Shared {
            image,
            memory,
            claims,
            order: Mutex::new(PushOrder::new(&taken, GROUP_PAGES, Arc::new(PageSet::empty(0)))),
            taken,
            faults: LatestFaults::new(GROUP_PAGES),
            gate: Gate::default(),
            progress,
            events: Notifier::new()?,
        };
        Ok(Restoring { shared: Arc::new(shared), first })
    }

    /// A handle by which other threads say that the guest runs: what no fault asks for follows.
    pub fn running(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.events.send(Event::Running)
    }

    /// A handle that ends the service. Pages that are missing stay missing.
    pub fn stop(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.events.send(Event::Stop)
    }

    /// Serves faults until every page is in place or somebody stops it. When it returns nothing is
    /// installed any more.
    pub fn run(self) -> RestoreEnd {
        let shared = &self.shared;
        let (first, recorder) = match self.first {
            First::Nothing => (None, None),
            First::WorkingSet(set) => (Some(set), None),
            First::Record(recording) => (None, Some(Recorder::new(recording))),
        };
        let (threads, events) = (Vec::new(), Vec::new());
        let mut served = FaultLoop { shared, first, recorder, threads, events };
        let end = served.run();
        shared.gate.close();
        for thread in served.threads {
            thread.join().expect("a thread of the restore does not panic");
        }
        // The guest ended, or has all of its pages, before the recording did.
        if let Some(recorder) = served.recorder {
            recorder.write(shared);
        }
        if end == RestoreEnd::Resident {
            shared.progress.reached(Mark::Resident);
        }
        end
    }
}

struct FaultLoop<'a> {
    shared: &'a Arc<Shared>,
    first: Option<WorkingSet>,
    recorder: Option<Recorder>,
    threads: Vec<JoinHandle<()>>,
    events: Vec<UffdEvent>,
}

impl FaultLoop<'_> {
    fn run(&mut self) -> RestoreEnd {
        let mut page = vec![0; PAGE.bytes()];
        loop {
            let (memory, events) = (&self.shared.memory, &self.shared.events);
            let until = self.recorder.as_ref().and_then(Recorder::until);
            match wait_readable([memory.as_fd(), events.as_fd()], until) {
                Ok([faults, events]) => {
                    if faults && let Err(why) = self.serve_faults(&mut page) {
                        return RestoreEnd::Failed(why);
                    }
                    if events && let Some(end) = self.take_events() {
                        return end;
                    }
                    self.end_recording();
                }
                Err(error) => return RestoreEnd::Failed(format!("cannot poll: {error}")),
            }
        }
    }

    fn serve_faults(&mut self, room: &mut [u8]) -> Result<(), String> {
        let shared = self.shared;
        shared.gate.enter();
        let read = shared.memory.read_events(&mut self.events);
        let mut served = read.map_err(|error| format!("cannot read faults: {}", in_full(&error)));
        for event in self.events.drain(..) {
            let touched = shared.serve(&event, room);
            match (&mut self.recorder, touched) {
                (Some(recorder), Ok(Some(page))) => recorder.touched(page),
                (_, Err(why)) => served = served.and(Err(why)),
                _ => {}
            }
        }
        shared.gate.leave();
        served
    }

    fn take_events(&mut self) -> Option<RestoreEnd> {
        let mut end = None;
        for event in self.shared.events.take() {
            match event {
                Event::Running => self.guest_runs(),
                Event::Fill => self.start_filling(),
                Event::Stop => end = Some(RestoreEnd::Stopped),
                Event::Failed(why) => end = Some(RestoreEnd::Failed(why)),
                Event::AllInstalled => return Some(RestoreEnd::Resident),
            }
        }
        end
    }

    fn guest_runs(&mut self) {
        match (self.first.take(), &mut self.recorder) {
            (Some(set), _) => self.start("godwit-set", move |shared| {
                shared.replay(&set)?;
                shared.events.send(Event::Fill);
                Ok(())
            }),
            (None, Some(recorder)) => recorder.begin(Instant::now()),
            (None, None) => self.start_filling(),
        }
    }

    /// Ends a recording that is over, and brings in the rest when it is written.
    fn end_recording(&mut self) {
        if let Some(recorder) = self.recorder.take_if(|r| r.is_over(Instant::now())) {
            self.start("godwit-record", |shared| {
                recorder.write(shared);
                shared.events.send(Event::Fill);
                Ok(())
            });
        }
    }

    fn start_filling(&mut self) {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores.min(FILL_THREADS_MAX) {
            self.start("godwit-fill", |shared| {
                stand_back();
                shared.fill()
            });
        }
    }

    /// Without the thread the guest runs all the same: its faults are served.
    fn start(
        &mut self,
        name: &str,
        work: impl FnOnce(&Shared) -> Result<(), String> + Send + 'static,
    ) {
        let shared = Arc::clone(self.shared);
        let work = move || {
            if let Err(why) = work(&shared) {
                shared.events.send(Event::Failed(why));
            }
        };
        match std::thread::Builder::new().name(name.into()).spawn(work) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => tracing::warn!(%error, "pages come in only when they are touched"),
        }
    }
}

impl Shared {
    /// Serves one fault. Returns its page if nobody had asked for it before.
    fn serve(&self, event: &UffdEvent, room: &mut [u8]) -> Result<Option<PageIndex>, String> {
        let UffdEvent::Fault(fault) = event else {
            tracing::warn!(?event, "an event that this guest's memory should not raise");
            return Ok(None);
        };
        let Some(page) = self.memory.space().page_at(fault.address) else {
            tracing::error!(?fault, "a fault outside guest memory");
            return Ok(None);
        };
        self.progress.faults().raised(page, fault.thread, Instant::now());
        match self.claims.request(page) {
            // Raised before the page came: whoever installed it has woken nobody.
            Requested::Present => {
                let woken = self.memory.wake(PageRun::one(page));
                self.progress.faults().served(page, Instant::now());
                woken.map(|()| None).map_err(|error| in_full(&error))
            }
            Requested::Before => Ok(None),
            Requested::Now => {
                self.faults.add(page);
                // If not, another thread has it.
                if self.taken.take(page) {
                    self.progress.page_requested();
                    self.bring_in(PageRun::one(page), room)?;
                }
                Ok(Some(page))
            }
        }
    }

    /// Brings in whatever nobody has taken, and stands back for faults.
    fn fill(&self) -> Result<(), String> {
        let mut room = vec![0; PAGE.length_of(GROUP_PAGES)];
        while self.gate.pass() {
            let runs = {
                let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
                self.faults.take().for_each(|page| order.fault_at(page));
                order.next(&self.taken)
            };
            let Some(runs) = runs else { break };
            for run in runs {
                self.bring_in(run, &mut room)?;
            }
        }
        Ok(())
    }

    /// Installs the pages of `run`, which the caller has taken, by way of `room`.
    pub(super) fn bring_in(&self, mut run: PageRun, room: &mut [u8]) -> Result<(), String> {
        while run.count > 0 {
            let stretch = self.image.stretch(run);
            match stretch {
                Stretch::Zero(zero) => self.install(zero, Contents::Zero)?,
                Stretch::Lost(lost) => self.install(lost, Contents::Poison)?,
                Stretch::Data(data) => self.bring_in_data(data, room)?,
            }
            run = run.without(stretch.run().count);
        }
        Ok(())
    }

    fn bring_in_data(&self, run: PageRun, room: &mut [u8]) -> Result<(), String> {
        let contents = &mut room[..PAGE.length_of(run.count)];
        if let Err(error) = self.image.read(run, contents) {
            return self.bring_in_singly(run, contents, &error);
        }
        let pages = run.pages().zip(contents.chunks_exact(PAGE.bytes()));
        let right: Vec<bool> = pages.map(|(page, bytes)| self.image.matches(page, bytes)).collect();
        let mut at = 0;
        for stretch in right.chunk_by(bool::eq) {
            let count = u32::try_from(stretch.len()).expect("part of a run");
            let part = run.without(at).first_pages(count);
            if stretch[0] {
                let bytes = &contents[PAGE.length_of(at)..PAGE.length_of(at + count)];
                self.install(part, Contents::Data(bytes))?;
            } else {
                self.poison(part, "its checksum is wrong")?;
            }
            at += count;
        }
        Ok(())
    }

    /// A run that cannot be read as a whole: only what cannot be read by itself is lost.
    fn bring_in_singly(
        &self,
        run: PageRun,
        room: &mut [u8],
        why: &io::Error,
    ) -> Result<(), String> {
        if run.count == 1 {
            return self.poison(run, &format!("it cannot be read: {why}"));
        }
        run.pages().try_for_each(|page| self.bring_in_data(PageRun::one(page), room))
    }

    /// What was saved is not there: never data that nobody vouches for.
    fn poison(&self, run: PageRun, why: &str) -> Result<(), String> {
        let (space, path) = (self.memory.space(), self.image.path().display());
        for page in run.pages() {
            let gpa = space.gpa_of(page).map_or(0, |gpa| gpa.0);
            let what = format!("{page} (guest address {gpa:#x}) in {path} is damaged: {why}");
            match self.progress.page_damaged(&what) {
                0..DAMAGED_PAGES_NAMED_MAX => tracing::error!("{what}; it is lost to the guest"),
                DAMAGED_PAGES_NAMED_MAX => tracing::error!("more pages are; see the status"),
                _ => {}
            }
        }
        self.install(run, Contents::Poison)
    }

    pub(super) fn install(&self, run: PageRun, contents: Contents<'_>) -> Result<(), String> {
        let faults = self.progress.faults();
        let served = |page| faults.served(page, Instant::now());
        match install(&self.claims, &self.memory, run, contents, served) {
            Ok(true) => {
                self.events.send(Event::AllInstalled);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error @ InstallError::Duplicate(_)) => unreachable!("{error}: taken once"),
            Err(error) => Err(in_full(&error)),
        }
    }
}
