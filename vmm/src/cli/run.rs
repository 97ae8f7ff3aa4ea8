//! `godwit run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use godwit_migration::driver::{RecordError, Records};
use godwit_uffd::page::Gpa;
use uuid::Uuid;

use super::Failure;
use super::args::Run;
use super::parent::end_with;
use crate::api::Server;
use crate::api::types::Role;
use crate::boot::KernelImage;
use crate::guest_image;
use crate::migrate::{Controlled, End, EventLog, Host, Welcome, serve, watch_signals};
use crate::vm::{DeviceConfig, GuestExit, Vm, VmConfig};

/// Launches a guest and serves it until it ends or has moved away.
pub fn run(args: &Run) -> Result<ExitCode, Failure> {
    end_with(args.end_with)?;
    let records = open_records(args.state_dir.as_deref())?;
    let id = args.id.unwrap_or_else(Uuid::new_v4);
    let transfer = last_transfer(&records, id, args.override_grant)?;
    let ended = run_guest(args, records.clone(), id, transfer);
    if ended.is_err() {
        records.let_go(id);
    }
    ended
}

fn run_guest(args: &Run, records: Records, id: Uuid, transfer: u64) -> Result<ExitCode, Failure> {
    let config = VmConfig {
        cpus: args.cpus,
        memory_bytes: args.memory,
        backing: args.memory_backing.of_pages(args.page_size),
        devices: args.devices(),
    };
    let host =
        Host::new(Role::Run, records, None, Welcome::default()).map_err(|e| Failure::new(&e))?;
    let events = start_events(args.events.as_deref(), &host)?;
    let server = start_api(args.api_socket.as_deref(), &host)?;
    watch_signals(&host).map_err(|e| Failure::new(&e))?;
    let vm = Vm::create(&config, Box::new(std::io::stdout())).map_err(|e| Failure::new(&e))?;
    vm.take_disks().map_err(|e| Failure::new(&e))?;
    let (kernel, cmdline) = kernel(args, &vm);
    vm.boot(&kernel, args.initramfs.as_deref(), &cmdline).map_err(|e| Failure::new(&e))?;
    let vm = Arc::new(vm);
    host.adopt(id, Arc::clone(&vm), transfer);
    tracing::info!(%id, "the guest starts");
    vm.start();
    drop(vm);
    let end = serve(&host).map_err(|e| Failure::new(&e))?;
    drop(server);
    finish_events(events.as_deref());
    Ok(exit_code(&end))
}

/// The kernel and its command line. The bare guest is told what it cannot find out by itself.
fn kernel(args: &Run, vm: &Vm) -> (KernelImage, String) {
    match &args.kernel {
        Some(file) => (KernelImage::File(file.clone()), args.cmdline.clone()),
        None => {
            // It reads no tables. Of two disks it uses the last.
            let devices = vm.config().devices.iter().zip(vm.device_places());
            let word = |(device, place): (&DeviceConfig, Gpa)| match device {
                DeviceConfig::Disk(_) => format!(" disk={:#x}", place.0),
                DeviceConfig::Rng => format!(" rng={:#x}", place.0),
            };
            let devices: String = devices.map(word).collect();
            let (typed, cpus, tsc_khz) = (&args.cmdline, args.cpus, vm.tsc_khz());
            let cmdline = format!("{typed} vcpus={cpus} tsc_khz={tsc_khz}{devices}");
            (KernelImage::Embedded(guest_image::BARE), cmdline.trim().to_owned())
        }
    }
}

/// The number of the last transfer of the guest, which this process may run from now on.
pub(super) fn last_transfer(
    records: &Records,
    id: Uuid,
    override_grant: bool,
) -> Result<u64, Failure> {
    match records.may_run(id) {
        Ok(transfer) => Ok(transfer),
        Err(error @ RecordError::GrantedAway { .. }) if override_grant => {
            tracing::warn!(%error, "OVERRIDDEN: if the guest runs there, there are now two of it");
            records.hold(id).map_err(|e| Failure::new(&e))?;
            let record = records.read(id).map_err(|e| Failure::new(&e))?;
            Ok(record.map_or(0, |record| record.transfer))
        }
        Err(error) => Err(Failure::new(&error)),
    }
}

/// The records in `dir`, or in the place where programs of this user keep their state.
pub(super) fn open_records(dir: Option<&Path>) -> Result<Records, Failure> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => default_state_dir()?,
    };
    Records::open(&dir).map_err(|e| Failure::with_hint(&e, Some("choose another --state-dir")))
}

fn default_state_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/godwit".into());
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (home("XDG_STATE_HOME"), home("HOME")) {
        (Some(state), _) => Ok(Path::new(&state).join("godwit")),
        (None, Some(home)) => Ok(Path::new(&home).join(".local/state/godwit")),
        (None, None) => Err(Failure::text("no home directory: give a --state-dir")),
    }
}

/// Puts the control API on its socket, if one was asked for.
pub(super) fn start_api(
    socket: Option<&Path>,
    host: &Arc<Host>,
) -> Result<Option<Server>, Failure> {
    let start = |socket| Server::start(socket, Arc::new(Controlled(Arc::clone(host))));
    socket.map(start).transpose().map_err(|e| Failure::new(&e))
}

/// Opens the log of events, if one was asked for.
pub(super) fn start_events(
    path: Option<&Path>,
    host: &Arc<Host>,
) -> Result<Option<Arc<EventLog>>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let log = EventLog::open(path).map_err(|error| {
        Failure::text(format!("events cannot be written to {}: {error}", path.display()))
    })?;
    let log = Arc::new(log);
    host.tell(Arc::clone(&log));
    Ok(Some(log))
}

/// The last events are written.
pub(super) fn finish_events(log: Option<&EventLog>) {
    if let Some(log) = log {
        log.finish();
    }
}

/// The exit status of a process: the guest's, if it ended here.
pub(super) fn exit_code(end: &End) -> ExitCode {
    match end {
        End::Guest(GuestExit::PowerOff { code }) => ExitCode::from(*code),
        End::Guest(GuestExit::Reset) | End::Moved | End::Operator => ExitCode::SUCCESS,
        End::Guest(GuestExit::Crash(_)) => ExitCode::FAILURE,
    }
}
