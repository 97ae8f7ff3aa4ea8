//! Bringing a guest back from a snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_migration::driver::{
    First, LoadError, Recording, RestoreEnd, Restoring, check_all, copy_all,
};
use godwit_migration::metrics::{Mark, RestoreProgress, RestoreState};
use godwit_migration::provider::GuestPages;
use godwit_migration::snapshot::{Image, Snapshot, SnapshotError, WorkingSet};
use godwit_migration::wire::{MemslotLayout, Section};
use godwit_uffd::page::PageSize;
use uuid::Uuid;

use super::saving::{CONFIG_SECTION, REQUIREMENTS_SECTION, SECTION_VERSION};
use super::{Guest, Host, in_full};
use crate::api::types::RestoreMode;
use crate::memory::{Backing, GuestMemory, MemoryError, copy_readable};
use crate::state::{ConfigState, StateError, decode};
use crate::vm::{Vm, VmConfig};
use crate::{Error, kvm};

/// How a guest is to be brought back.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// The snapshot.
    pub dir: PathBuf,
    /// How its memory comes.
    pub mode: RestoreMode,
    /// Who the guest will be.
    pub id: Uuid,
    /// The last transfer that is known of it.
    pub transfer: u64,
    /// It does not run before it is told to.
    pub paused: bool,
    /// What its memory is made of, if not of what it was.
    pub backing: Option<Backing>,
    /// Read its memory into huge pages. They take longer to make than small ones.
    pub huge_pages: bool,
    /// The working set that comes first.
    pub working_set: Option<PathBuf>,
    /// What the guest touches first is recorded.
    pub record: Option<Record>,
    /// When this process began, in microseconds of CLOCK_MONOTONIC.
    pub began_us: u64,
}

/// A recording of what a guest touches first.
#[derive(Clone, Debug)]
pub struct Record {
    /// The file to write.
    pub path: PathBuf,
    /// For how long the guest is watched.
    pub time: Duration,
    /// How many pages are recorded.
    pub pages: u32,
}

/// Why a guest could not be brought back. None has run.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot is not there or not right.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its memory could not be read, or is not right.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The machine could not be made, or does not suit the guest.
    #[error(transparent)]
    Vm(#[from] Error),
    /// The guest's memory could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A part of the state is missing or unknown.
    #[error("the snapshot's state cannot be used: {what}")]
    Section {
        /// What is wrong.
        what: String,
    },
    /// The mapping of a file cannot leave a page out.
    #[error("pages of the guest were lost before it was saved; restore it with --mode ondemand")]
    Lost,
    /// A thread or descriptor could not be had.
    #[error("cannot start a thread to serve pages")]
    Thread(#[source] std::io::Error),
}

/// The restore of the guest of this process.
pub(super) struct Restore {
    pub snapshot: Uuid,
    pub dir: PathBuf,
    pub mode: RestoreMode,
    pub began_us: u64,
    pub progress: Arc<RestoreProgress>,
    service: Option<Service>,
}

/// A thread that works for a restore, and how to end it.
struct Service {
    stop: Box<dyn Fn() + Send>,
    thread: JoinHandle<()>,
}

/// Brings a guest back and lets it run. Pages may come later; their thread goes on by itself.
///
/// # Errors
/// [`RestoreError`]; no guest has run.
pub fn restore(host: &Arc<Host>, plan: &RestorePlan) -> Result<(), RestoreError> {
    let progress = Arc::new(RestoreProgress::default());
    let Snapshot { manifest, mut sections, image } = Snapshot::open(&plan.dir)?;
    progress.reached(Mark::Opened);
    let first = first(plan, manifest.id, &image)?;
    let requirements = take_section(&mut sections, REQUIREMENTS_SECTION)?;
    let config = take_section(&mut sections, CONFIG_SECTION)?;
    let config = decode::<ConfigState>("the configuration", &config).map_err(Error::from)?;
    let config = configure(plan, &config);
    if plan.mode == RestoreMode::Mmap && !image.lost().is_empty() {
        return Err(RestoreError::Lost);
    }
    let vm = Arc::new(create(plan, &config, &image)?);
    vm.check_here(&requirements)?;
    vm.take_disks()?;
    check_layout(vm.memory(), &manifest.facts.memslots)?;
    let tsc_khz = vm.tsc_khz();
    let guest = Guest::new(plan.id, Arc::clone(&vm), plan.transfer, tsc_khz);
    host.keep(Guest { paused: plan.paused, ..guest });
    host.state().restore = Some(Restore {
        snapshot: manifest.id,
        dir: plan.dir.clone(),
        mode: plan.mode,
        began_us: plan.began_us,
        progress: Arc::clone(&progress),
        service: None,
    });
    let bringing = Bringing { host, vm: &vm, plan, progress, image: Arc::new(image) };
    let brought = bringing.bring(&sections, first);
    if brought.is_err() {
        // In this order: a vCPU never sees zeros in place of what is missing.
        host.end_restore();
        vm.shutdown();
        host.state().guest = None;
    }
    brought
}

/// What comes before the pages that nobody has asked for.
fn first(plan: &RestorePlan, id: Uuid, image: &Image) -> Result<First, SnapshotError> {
    match (&plan.working_set, &plan.record) {
        (Some(path), _) => Ok(First::WorkingSet(WorkingSet::open(path, id, image)?)),
        (None, Some(record)) => Ok(First::Record(Recording {
            path: record.path.clone(),
            snapshot: id,
            time: record.time,
            pages: record.pages,
        })),
        (None, None) => Ok(First::Nothing),
    }
}

/// Takes a section of ours out of those of the VM.
fn take_section(sections: &mut Vec<Section>, id: u16) -> Result<Vec<u8>, RestoreError> {
    let at = sections.iter().position(|section| section.id == id);
    let what = || format!("section {id:#x} is missing");
    let at = at.ok_or_else(|| RestoreError::Section { what: what() })?;
    let Section { version, bytes, .. } = sections.swap_remove(at);
    if version != SECTION_VERSION {
        let (what, known) = ("the configuration", SECTION_VERSION);
        return Err(Error::from(StateError::Version { what, version, known }).into());
    }
    Ok(bytes)
}

fn configure(plan: &RestorePlan, saved: &ConfigState) -> VmConfig {
    let config = VmConfig::from(saved);
    let backing = match plan.mode {
        // The mapping is private, whatever it was.
        RestoreMode::Mmap => Backing::Anon,
        RestoreMode::Copy | RestoreMode::Ondemand | RestoreMode::Workingset => {
            plan.backing.unwrap_or(config.backing)
        }
    };
    VmConfig { backing, ..config }
}

fn create(plan: &RestorePlan, config: &VmConfig, image: &Image) -> Result<Vm, Error> {
    let console = Box::new(std::io::stdout());
    match plan.mode {
        RestoreMode::Mmap => {
            let memory = || GuestMemory::map_private(config.memory_bytes, image.file());
            Vm::create_on(config, memory, console)
        }
        RestoreMode::Copy | RestoreMode::Ondemand | RestoreMode::Workingset => {
            Vm::create(config, console)
        }
    }
}

fn check_layout(memory: &GuestMemory, memslots: &[MemslotLayout]) -> Result<(), RestoreError> {
    let regions = memory.regions().iter();
    let ours = regions.map(|region| MemslotLayout { gpa: region.gpa.0, bytes: region.bytes });
    if ours.eq(memslots.iter().copied()) {
        return Ok(());
    }
    let what = "the guest's memory is laid out in a way that this version does not know".into();
    Err(RestoreError::Section { what })
}

struct Bringing<'a> {
    host: &'a Arc<Host>,
    vm: &'a Arc<Vm>,
    plan: &'a RestorePlan,
    progress: Arc<RestoreProgress>,
    image: Arc<Image>,
}

impl Bringing<'_> {
    fn bring(&self, sections: &[Section], first: First) -> Result<(), RestoreError> {
        match self.plan.mode {
            RestoreMode::Copy => {
                self.copy()?;
                self.vm.restore(sections)?;
                self.start(RestoreState::Resident);
            }
            RestoreMode::Mmap => {
                self.vm.restore(sections)?;
                self.start(RestoreState::Mapped);
                self.check_behind()?;
            }
            RestoreMode::Ondemand | RestoreMode::Workingset => {
                let running = self.serve(first)?;
                self.vm.restore(sections)?;
                self.start(RestoreState::Serving);
                running();
            }
        }
        Ok(())
    }

    /// The guest is ours and runs.
    fn start(&self, state: RestoreState) {
        let mut host = self.host.state();
        if let Some(guest) = &mut host.guest {
            guest.owned = true;
        }
        if !self.plan.paused {
            self.vm.start();
        }
        self.progress.reached(Mark::Restored);
        self.progress.stands(state);
        drop(host);
        let us = self.since(Mark::Restored);
        let paused = self.plan.paused;
        tracing::info!(id = %self.plan.id, mode = ?self.plan.mode, us, paused, "restored");
    }

    fn since(&self, mark: Mark) -> u64 {
        since(&self.progress, mark, self.plan.began_us)
    }

    fn copy(&self) -> Result<(), RestoreError> {
        let memory = self.vm.memory();
        if !self.plan.huge_pages {
            memory.forbid_huge_pages()?;
        }
        let pages =
            GuestPages::new(Arc::new(memory.inner().clone()), PageSize::BASE, copy_readable);
        copy_all(&self.image, &pages)?;
        memory.set_complete()?;
        self.progress.reached(Mark::Resident);
        Ok(())
    }

    /// Serves missing pages from now on. What is returned says that the guest runs.
    fn serve(&self, first: First) -> Result<impl Fn() + use<>, RestoreError> {
        let memory = Arc::new(self.vm.memory().register_missing()?);
        let (image, progress) = (Arc::clone(&self.image), Arc::clone(&self.progress));
        let restoring = Restoring::new(image, Arc::clone(&memory), progress, first);
        let restoring = restoring.map_err(RestoreError::Thread)?;
        let (running, stop) = (restoring.running(), restoring.stop());
        let settling = Settling {
            host: Arc::clone(self.host),
            vm: Arc::clone(self.vm),
            progress: Arc::clone(&self.progress),
            began_us: self.plan.began_us,
        };
        // First, so that the descriptor outlives the vCPUs in any case.
        if let Some(guest) = &mut self.host.state().guest {
            guest.memory = Some(memory);
        }
        self.spawn("godwit-faults", stop, move || {
            if let Err(error) = kvm::prefer_short_delays() {
                tracing::debug!(%error, "faults are served with ordinary delays");
            }
            settling.end(restoring.run());
        })?;
        Ok(running)
    }

    /// Reads the file that the guest runs on, and stops the guest if it is not what was saved.
    fn check_behind(&self) -> Result<(), RestoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (image, progress) = (Arc::clone(&self.image), Arc::clone(&self.progress));
        let (host, vm) = (Arc::clone(self.host), Arc::clone(self.vm));
        let stopped = Arc::clone(&stop);
        let check = move || match check_all(&image, &stopped) {
            Ok(()) if stopped.load(Ordering::Relaxed) => {}
            Ok(()) => progress.reached(Mark::Checked),
            Err(error) => {
                let why = in_full(&error);
                tracing::error!(why, "the guest runs on damaged memory: it is paused");
                progress.failed(why);
                if let Some(guest) = &mut host.state().guest {
                    guest.paused = true;
                }
                if let Err(error) = vm.pause() {
                    tracing::error!(error = in_full(&error), "it could not be");
                }
            }
        };
        self.spawn("godwit-check", move || stop.store(true, Ordering::Relaxed), check)
    }

    fn spawn(
        &self,
        name: &str,
        stop: impl Fn() + Send + 'static,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), RestoreError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        let thread = thread.map_err(RestoreError::Thread)?;
        if let Some(restore) = &mut self.host.state().restore {
            restore.service = Some(Service { stop: Box::new(stop), thread });
        }
        Ok(())
    }
}

fn since(progress: &RestoreProgress, mark: Mark, began_us: u64) -> u64 {
    progress.reached_at(mark).unwrap_or(began_us).saturating_sub(began_us)
}

/// What follows from the end of serving pages.
struct Settling {
    host: Arc<Host>,
    vm: Arc<Vm>,
    progress: Arc<RestoreProgress>,
    began_us: u64,
}

impl Settling {
    fn end(&self, end: RestoreEnd) {
        match end {
            RestoreEnd::Resident => self.settle(),
            // What is missing stays missing: the guest ends.
            RestoreEnd::Stopped => {}
            RestoreEnd::Failed(why) => {
                tracing::error!(why, "pages of the guest cannot be served any more: it waits");
                self.progress.failed(why);
            }
        }
    }

    /// Every page is there: the memory is ordinary again.
    fn settle(&self) {
        let mut state = self.host.state();
        let Some(memory) = state.guest.as_mut().and_then(|guest| guest.memory.take()) else {
            return;
        };
        if let Err(error) = memory.unregister_all() {
            tracing::warn!(error = in_full(&error), "guest memory could not be unregistered");
        }
        if let Err(error) = self.vm.memory().set_complete() {
            tracing::warn!(error = in_full(&error), "guest memory keeps its small pages");
        }
        drop(memory);
        self.progress.stands(RestoreState::Resident);
        drop(state);
        let us = since(&self.progress, Mark::Resident, self.began_us);
        tracing::info!(us, "fully resident");
    }
}

impl Host {
    /// Ends what still works for the restore of the guest. Pages that are missing stay missing.
    pub(super) fn end_restore(&self) {
        let service = self.state().restore.as_mut().and_then(|restore| restore.service.take());
        let Some(Service { stop, thread }) = service else { return };
        stop();
        if thread.join().is_err() {
            tracing::error!("a thread of the restore panicked");
        }
    }
}
