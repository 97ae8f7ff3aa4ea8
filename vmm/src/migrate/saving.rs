//! Taking a snapshot of the guest: it stands still while its memory is read, and goes on while the
//! rest is brought to the disk.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use godwit_migration::metrics::monotonic_us;
use godwit_migration::provider::GuestPages;
use godwit_migration::snapshot::{Facts, Writer};
use godwit_migration::wire::{MemslotLayout, Section};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use uuid::Uuid;

use super::{Guest, Host, HostEvent, Migration, State, in_full};
use crate::api::ControlError;
use crate::api::types::{Problem, SnapshotPages, SnapshotRequest, SnapshotState, SnapshotStatus};
use crate::memory::copy_readable;
use crate::state::ConfigState;
use crate::vm::Vm;

/// The section with what the guest is made of, a [`ConfigState`].
pub(super) const CONFIG_SECTION: u16 = 0x8001;
/// The section with what the guest needs from a host.
pub(super) const REQUIREMENTS_SECTION: u16 = 0x8002;
/// The only version of both.
pub(super) const SECTION_VERSION: u16 = 1;

/// Pages that are read and written in one piece.
const PIECE_PAGES: u32 = 64;

/// The devices that every guest has, for the manifest.
const DEVICES: [&str; 6] = ["pic", "ioapic", "pit", "serial", "i8042", "cmos"];

/// A snapshot that is being taken, or was.
pub(super) struct Saving {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    id: Uuid,
    dir: PathBuf,
    total: u32,
    saved: AtomicU32,
    stop: AtomicBool,
    times: Mutex<Times>,
}

/// Instants in microseconds of CLOCK_MONOTONIC.
struct Times {
    began: u64,
    paused: Option<u64>,
    resumed: Option<u64>,
    ended: Option<(u64, Result<(), String>)>,
}

impl Shared {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Saving {
    pub(super) fn active(&self) -> bool {
        self.shared.times().ended.is_none()
    }

    pub(super) fn status(&self) -> SnapshotStatus {
        let shared = &*self.shared;
        let times = shared.times();
        let (state, error) = match &times.ended {
            None => (SnapshotState::Active, None),
            Some((_, Ok(()))) => (SnapshotState::Completed, None),
            Some((_, Err(why))) => {
                (SnapshotState::Failed, Some(Problem::new("snapshot", why, None)))
            }
        };
        let total = u64::from(shared.total);
        let remaining = total - u64::from(shared.saved.load(Ordering::Relaxed));
        let blackout = times.paused.zip(times.resumed).map(|(from, to)| to.saturating_sub(from));
        let ended = times.ended.as_ref().map(|(at, _)| at.saturating_sub(times.began));
        SnapshotStatus {
            id: shared.id,
            dir: shared.dir.clone(),
            state,
            error,
            pages: SnapshotPages { total, remaining },
            blackout_us: blackout,
            duration_us: ended,
        }
    }
}

impl Host {
    /// Begins to save the guest; its thread goes on by itself.
    pub(super) fn start_snapshot(
        self: &Arc<Host>,
        request: SnapshotRequest,
    ) -> Result<(), ControlError> {
        if !request.dir.is_absolute() {
            let why = format!("{} is not an absolute path", request.dir.display());
            return Err(ControlError::BadRequest(Problem::new("snapshot", &why, None)));
        }
        let pages = pages_of(&guest_to_save(&mut self.state_after_ending())?.vm);
        // Before the guest is stopped, so that most of what can be wrong costs it nothing.
        let writer = Writer::create(&request.dir, pages)
            .map_err(|e| ControlError::failed("snapshot", &e, Some("the guest is as it was")))?;
        let times = Times { began: monotonic_us(), paused: None, resumed: None, ended: None };
        let shared = Arc::new(Shared {
            id: writer.id(),
            dir: request.dir,
            total: pages,
            saved: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            times: Mutex::new(times),
        });
        let mut state = self.state();
        let guest = guest_to_save(&mut state)?;
        let facts = facts(guest);
        let taking = Taking {
            host: Arc::clone(self),
            vm: Arc::clone(&guest.vm),
            shared: Arc::clone(&shared),
            keep_paused: request.pause,
        };
        let run = move || taking.run(writer, facts);
        let thread = std::thread::Builder::new().name("godwit-snapshot".into()).spawn(run);
        let thread = thread.map_err(|e| ControlError::failed("snapshot", &e, None))?;
        // The thread waits for the lock before it looks at the guest.
        guest.held = true;
        state.saving = Some(Saving { shared, thread: Some(thread) });
        Ok(())
    }

    /// Stops reading the guest's memory, if that is under way. What is being brought to the disk
    /// already is finished.
    pub(super) fn end_snapshot(&self) {
        let thread = {
            let mut state = self.state();
            let Some(saving) = &mut state.saving else { return };
            saving.shared.stop.store(true, Ordering::Relaxed);
            saving.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the snapshot thread panicked");
        }
    }

    /// The snapshot is over, and so is its thread.
    pub(super) fn snapshot_ended(&self) {
        let thread = self.state().saving.as_mut().and_then(|saving| saving.thread.take());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the snapshot thread panicked");
        }
    }

    /// Ends the snapshot that is being taken for its operator. False if there is none.
    pub(super) fn cancel_snapshot(&self) -> bool {
        let state = self.state();
        let saving = state.saving.as_ref().filter(|saving| saving.active());
        saving.inspect(|saving| saving.shared.stop.store(true, Ordering::Relaxed)).is_some()
    }
}

/// The guest, if it can be saved now.
fn guest_to_save(state: &mut State) -> Result<&mut Guest, ControlError> {
    let refuse = |why: &str, hint| Err(ControlError::wrong_state("snapshot", why, hint));
    if state.migration.as_ref().is_some_and(Migration::active) {
        return refuse("a migration is under way", Some("wait for it, or cancel it"));
    }
    if let Some(peer) = state.migration.as_ref().and_then(Migration::granted_to) {
        return refuse(&format!("the guest was granted to {peer}"), None);
    }
    if state.saving.as_ref().is_some_and(Saving::active) {
        return refuse("a snapshot is being taken already", Some("wait for it"));
    }
    match state.guest.as_mut().filter(|guest| guest.owned && guest.exit.is_none()) {
        None => refuse("this process has no guest to save", None),
        Some(guest) if guest.vm.memory().is_incomplete() => {
            let hint = Some("wait until `godwit status` says that it is resident");
            refuse("pages of the guest are still on their way here", hint)
        }
        Some(guest) if guest.vm.memory().page_size() != PageSize::BASE => {
            let hint = Some("guests with --page-size 4K can be saved; this one can be migrated");
            refuse("the guest's memory has pages of 2 MiB, which snapshots do not keep", hint)
        }
        Some(guest) => Ok(guest),
    }
}

fn pages_of(vm: &Vm) -> u32 {
    PageSize::BASE.pages_in(vm.memory().bytes()).expect("guest memory is whole pages")
}

fn facts(guest: &Guest) -> Facts {
    let (vm, config) = (&guest.vm, guest.vm.config());
    let slot =
        |region: &crate::memory::Region| MemslotLayout { gpa: region.gpa.0, bytes: region.bytes };
    let backing = if config.backing.kind().is_file() { "memfd" } else { "anon" };
    Facts {
        guest: guest.id,
        generation: guest.transfer,
        created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        memslots: vm.memory().regions().iter().map(slot).collect(),
        machine: serde_json::json!({
            "cpus": config.cpus,
            "memory_bytes": config.memory_bytes,
            "memory_backing": backing,
            "tsc_khz": vm.tsc_khz(),
            "devices": DEVICES,
            "cpu_features": vm.features(),
        }),
    }
}

/// The work of the snapshot's thread.
struct Taking {
    host: Arc<Host>,
    vm: Arc<Vm>,
    shared: Arc<Shared>,
    keep_paused: bool,
}

impl Taking {
    fn run(self, writer: Writer, facts: Facts) {
        let dir = self.shared.dir.display().to_string();
        let result = self.take(writer, facts);
        match &result {
            Ok(()) => tracing::info!(dir, id = %self.shared.id, "the snapshot is on the disk"),
            Err(why) => tracing::error!(dir, why, "no snapshot was taken"),
        }
        self.shared.times().ended = Some((monotonic_us(), result));
        self.host.events.send(HostEvent::SnapshotEnded);
    }

    fn take(&self, mut writer: Writer, facts: Facts) -> Result<(), String> {
        let read = self.read(&mut writer);
        self.let_go(read.is_ok());
        writer.finish(facts, &read?).map_err(|e| in_full(&e))?;
        Ok(())
    }

    /// Stops the guest and reads all of it.
    fn read(&self, writer: &mut Writer) -> Result<Vec<Section>, String> {
        // Behind whoever started this thread, so that the guest is held by now.
        drop(self.host.state());
        self.shared.times().paused = Some(monotonic_us());
        self.vm.pause().map_err(|e| in_full(&e))?;
        let mut sections = self.vm.save().map_err(|e| in_full(&e))?;
        let config = postcard::to_stdvec(&ConfigState::from(self.vm.config()));
        let config = config.expect("plain data serializes");
        let own = [(CONFIG_SECTION, config), (REQUIREMENTS_SECTION, self.vm.requirements())];
        let own = own.map(|(id, bytes)| Section { id, version: SECTION_VERSION, bytes });
        sections.extend(own);
        self.read_pages(writer)?;
        Ok(sections)
    }

    fn read_pages(&self, writer: &mut Writer) -> Result<(), String> {
        let pages = {
            let memory = Arc::new(self.vm.memory().inner().clone());
            GuestPages::new(memory, PageSize::BASE, copy_readable)
        };
        let mut buffer = vec![0; PageSize::BASE.length_of(PIECE_PAGES)];
        let mut rest = PageRun { first: PageIndex(0), count: pages.page_count() };
        while rest.count > 0 {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err("stopped by the operator".into());
            }
            let piece = rest.first_pages(rest.count.min(PIECE_PAGES));
            rest = rest.without(piece.count);
            let contents = &mut buffer[..PageSize::BASE.length_of(piece.count)];
            let lost = pages.read_run(piece, contents).map_err(|e| in_full(&e))?;
            for &page in &lost {
                // What is there instead of it has no meaning.
                let at = PageSize::BASE.length_of(page.0 - piece.first.0);
                contents[at..at + PageSize::BASE.bytes()].fill(0);
                writer.add_lost(page);
            }
            writer.add(piece, contents).map_err(|e| in_full(&e))?;
            self.shared.saved.fetch_add(piece.count, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The guest goes on, unless its operator wants otherwise.
    fn let_go(&self, read: bool) {
        let mut state = self.host.state();
        let Some(guest) = &mut state.guest else { return };
        guest.held = false;
        guest.paused |= self.keep_paused && read;
        if guest.paused {
            return;
        }
        match guest.vm.resume() {
            Ok(()) => self.shared.times().resumed = Some(monotonic_us()),
            Err(error) => {
                tracing::warn!(error = in_full(&error), "the guest could not be resumed");
            }
        }
    }
}
