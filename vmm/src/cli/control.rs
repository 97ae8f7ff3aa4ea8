//! The commands that speak to a running godwit through its control socket.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use super::args::{At, Migrate, Recover, Shutdown, Status};
use crate::api::types::{
    Classes, FaultReport, GuestState, MemoryMethods, MigrateRequest, MigrationState,
    MigrationStatus, RecoverRequest, RestoreStatus, SnapshotStatus, Status as Told,
};
use crate::api::{Client, ClientError};

/// How often a migration is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) fn failed(error: &ClientError) -> Failure {
    Failure::with_hint(error, error.hint())
}

pub(super) fn client(at: &At) -> Client {
    Client::new(&at.api_socket)
}

/// `godwit pause`.
pub fn pause(at: &At) -> Result<ExitCode, Failure> {
    client(at).pause().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit resume`.
pub fn resume(at: &At) -> Result<ExitCode, Failure> {
    client(at).resume().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit cancel`.
pub fn cancel(at: &At) -> Result<ExitCode, Failure> {
    client(at).cancel().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit switch-over`.
pub fn switch_over(at: &At) -> Result<ExitCode, Failure> {
    client(at).switch_over().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit recover`.
pub fn recover(args: &Recover) -> Result<ExitCode, Failure> {
    let request = RecoverRequest { url: args.address.clone() };
    client(&args.at).recover(&request).map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit shutdown`.
pub fn shutdown(args: &Shutdown) -> Result<ExitCode, Failure> {
    client(&args.at).shutdown(args.force).map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// `godwit status`.
pub fn status(args: &Status) -> Result<ExitCode, Failure> {
    let status = client(&args.at).status().map_err(|e| failed(&e))?;
    if args.json {
        println!("{}", to_json(&status)?);
    } else {
        print_status(&status);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new(&e))
}

fn print_status(status: &Told) {
    let id = status.id.map_or("none".to_owned(), |id| id.to_string());
    println!("guest      {id}, {}", guest_line(&status.guest));
    let owner = &status.owner;
    let owns = if owner.owns { "this process" } else { "not this process" };
    let record = owner.record.as_deref().unwrap_or("none");
    println!("owner      {owns}, transfer {}, record: {record}", owner.grant);
    if let Some(vm) = &status.vm {
        let mib = vm.memory_bytes >> 20;
        let (cpus, kind, kib) = (vm.cpus, vm.backing, vm.page_bytes >> 10);
        println!("machine    {cpus} vCPUs, {mib} MiB of {kind:?} memory, pages of {kib} KiB");
    }
    if let Some(memory) = &status.memory {
        print_methods(memory);
    }
    if let Some(migration) = &status.migration {
        print_migration(migration);
    }
    if let Some(snapshot) = &status.snapshot {
        print_snapshot(snapshot);
    }
    if let Some(restore) = &status.restore {
        print_restore(restore);
    }
}

fn print_snapshot(snapshot: &SnapshotStatus) {
    let (dir, pages) = (snapshot.dir.display(), &snapshot.pages);
    println!("snapshot   {:?}, {dir}", snapshot.state);
    println!("pages      {} of {} remain", pages.remaining, pages.total);
    if let Some(error) = &snapshot.error {
        println!("error      {error}");
    }
}

fn print_restore(restore: &RestoreStatus) {
    let (mode, dir, at) = (restore.mode, restore.dir.display(), &restore.timeline);
    println!("restore    {:?}, {mode:?} from {dir}", restore.state);
    let marks = [
        ("restored", at.restored_us),
        ("recorded", at.recorded_us),
        ("working set in", at.working_set_us),
        ("fully resident", at.resident_us),
        ("checked", at.checked_us),
    ];
    let marks = marks.into_iter().filter_map(|(mark, us)| Some(format!("{mark} {} us", us?)));
    println!("instants   {}", marks.collect::<Vec<_>>().join(", "));
    if let Some(pages) = &restore.pages {
        println!(
            "pages      {} of {} remain; {} zero, {} data, {} lost ({} damaged), {} asked for",
            pages.remaining,
            pages.total,
            pages.zero,
            pages.data,
            pages.poisoned,
            pages.damaged,
            pages.requested
        );
    }
    if let Some(faults) = &restore.faults {
        print_faults(faults);
    }
    if let Some(error) = &restore.error {
        println!("error      {error}");
    }
}

fn print_faults(faults: &FaultReport) {
    println!(
        "faults     {} served, {} wait; p50 {} us, p90 {} us, p99 {} us, max {} us",
        faults.count,
        faults.outstanding,
        faults.p50_us,
        faults.p90_us,
        faults.p99_us,
        faults.max_us
    );
}

fn print_methods(memory: &MemoryMethods) {
    let methods = [
        ("copy", &memory.copy),
        ("zero", &memory.zero),
        ("continue", &memory.r#continue),
        ("poison", &memory.poison),
        ("move", &memory.r#move),
        ("protect", &memory.protect),
    ];
    println!("pages      of {} memory are missing; operations on them:", memory.kind);
    for (operation, method) in methods {
        println!("           {operation:9} {method}");
    }
}

pub(super) fn guest_line(guest: &GuestState) -> String {
    match guest {
        GuestState::None => "no guest".to_owned(),
        GuestState::Created => "being received".to_owned(),
        GuestState::Running => "running".to_owned(),
        GuestState::Paused => "paused".to_owned(),
        GuestState::PoweredOff { code } => format!("powered off with code {code}"),
        GuestState::Moved { to } => format!("moved to {to}"),
        GuestState::Crashed { reason } => format!("crashed: {reason}"),
    }
}

fn print_migration(migration: &MigrationStatus) {
    let pages = &migration.pages;
    println!(
        "migration  {:?}, {}, {:?} {}",
        migration.direction,
        state_word(migration.state),
        migration.mode,
        migration.peer
    );
    println!(
        "pages      {} of {} remain; {} zero, {} data, {} lost, {} asked for",
        pages.remaining, pages.total, pages.zero, pages.data, pages.poisoned, pages.requested
    );
    print_classes(&migration.classes);
    if let Some(faults) = &migration.faults {
        print_faults(faults);
    }
    if let Some(faults) = migration.faults.filter(|faults| faults.count > 0) {
        let stages = faults.stages;
        println!(
            "stages     queue {} us, wire {} us, source {} us, install {} us (medians)",
            stages.queue.p50_us, stages.wire.p50_us, stages.service.p50_us, stages.install.p50_us
        );
    }
    if let Some(blocked) = &migration.blocktime_us {
        let blocked: Vec<String> = blocked.iter().map(|us| format!("{us} us")).collect();
        let others = migration.blocktime_others_us.unwrap_or(0);
        println!("blocktime  {} (by vCPU), {others} us of others for them", blocked.join(", "));
    }
    if let Some(blackout) = migration.blackout_us {
        println!("blackout   {blackout} us");
    }
    let held = migration.writes_held;
    if held.writes > 0 {
        println!(
            "held up    {} writes, {} for a page to be sent first",
            held.writes, held.pushed_first
        );
    }
    if migration.interruptions > 0 {
        println!("lost peer  {} times after the switchover", migration.interruptions);
    }
    if let Some(error) = &migration.error {
        println!("error      {error}");
    }
}

/// The ways in which pages have travelled, one a line.
fn print_classes(classes: &Classes) {
    let Classes { zero, word, lz4, raw, poisoned, same } = classes;
    let named = [("zero", zero), ("word", word), ("lz4", lz4), ("raw", raw)];
    let named = named.into_iter().chain([("same", same), ("lost", poisoned)]);
    let mut title = "travelled";
    for (name, count) in named.filter(|(_, count)| count.pages > 0) {
        println!("{title:10} {name:4} {} pages in {} bytes", count.pages, count.bytes);
        title = "";
    }
}

/// The state as the API spells it.
fn state_word(state: MigrationState) -> String {
    let quoted = serde_json::to_string(&state).unwrap_or_default();
    quoted.trim_matches('"').to_owned()
}

/// `godwit migrate`.
pub fn migrate(args: &Migrate) -> Result<ExitCode, Failure> {
    let client = client(&args.at);
    // The process of the guest reads them, and that may have another working directory.
    let absolute =
        |dir: &Option<std::path::PathBuf>| dir.as_ref().map(std::path::absolute).transpose();
    let request = MigrateRequest {
        destination_url: args.address.clone(),
        mode: args.mode.into(),
        connections: args.connections,
        downtime_ms: args.downtime_ms,
        timeout_s: args.timeout_s,
        timeout_strategy: args.timeout_strategy.into(),
        dirty_tracking: args.dirty_tracking.into(),
        compression: args.compression.into(),
        bandwidth_bytes_per_s: args.bandwidth,
        tls_dir: absolute(&args.tls_dir).map_err(|e| Failure::new(&e))?,
        base: absolute(&args.base).map_err(|e| Failure::new(&e))?,
    };
    client.migrate(&request).map_err(|e| failed(&e))?;
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let status = wait_for_outcome(&client, args)?;
    let migration = status.migration.as_ref().ok_or_else(no_migration)?;
    if args.json {
        println!("{}", to_json(&status)?);
    }
    let reason = || migration.error.as_ref().map_or(String::new(), |error| error.message.clone());
    match migration.state {
        MigrationState::Completed => Ok(ExitCode::SUCCESS),
        MigrationState::Cancelled => Err(Failure {
            message: format!("migration to {} was cancelled", args.address),
            hint: Some(format!("the guest is {} here", guest_line(&status.guest))),
        }),
        _ if status.lost() => Err(Failure {
            message: format!("the guest is lost: {}", reason()),
            hint: Some(format!(
                "it was granted to {} and is never run here again; `godwit run --override-grant` \
                 starts it anew",
                args.address
            )),
        }),
        _ => Err(Failure {
            message: format!("migration to {} failed: {}", args.address, reason()),
            hint: Some(format!("the guest is {} here", guest_line(&status.guest))),
        }),
    }
}

fn no_migration() -> Failure {
    Failure::text("the process knows of no migration: it may have been replaced by another one")
}

fn wait_for_outcome(client: &Client, args: &Migrate) -> Result<Told, Failure> {
    let bar = progress_bar();
    loop {
        let status = client.status().map_err(|e| failed(&e))?;
        let migration = status.migration.as_ref().ok_or_else(no_migration)?;
        show_progress(&bar, migration, args);
        if migration.state.is_final() {
            bar.finish_and_clear();
            return Ok(status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(super) fn progress_bar() -> ProgressBar {
    let style = "{msg:18} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(style).expect("a constant template");
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(None, target).with_style(style)
}

fn show_progress(bar: &ProgressBar, migration: &MigrationStatus, args: &Migrate) {
    let pages = &migration.pages;
    bar.set_length(pages.total * u64::from(pages.bytes));
    bar.set_position((pages.total - pages.remaining) * u64::from(pages.bytes));
    let state = state_word(migration.state);
    if bar.message() != state && migration.state.is_interrupted() && !args.json {
        let why = migration.error.as_ref().map_or("", |error| error.message.as_str());
        bar.suspend(|| {
            eprintln!(
                "{state}: {} is lost after the switchover ({why}); the guest is kept safe on both \
                 sides and the source dials until it is back",
                args.address
            );
        });
    } else if bar.message() != state && !std::io::stderr().is_terminal() && !args.json {
        eprintln!("{state}: {} of {} pages remain", pages.remaining, pages.total);
    }
    bar.set_message(state);
}
