//! `godwit restore`.

use std::process::ExitCode;
use std::time::Duration;

use godwit_migration::metrics::monotonic_us;
use godwit_uffd::page::PageSize;
use uuid::Uuid;

use super::Failure;
use super::args::{Restore, RestoreMode};
use super::parent::end_with;
use super::run::{exit_code, last_transfer, open_records, start_api};
use crate::api::types::Role;
use crate::migrate::{
    Host, Record, RestorePlan, Welcome, restore as bring_back, serve, watch_signals,
};

/// Brings a guest back from a snapshot and serves it until it ends or has moved away.
pub fn restore(args: &Restore) -> Result<ExitCode, Failure> {
    let began_us = monotonic_us();
    end_with(args.end_with)?;
    check(args)?;
    let records = open_records(args.state_dir.as_deref())?;
    let id = args.id.unwrap_or_else(Uuid::new_v4);
    let transfer = last_transfer(&records, id, false)?;
    let plan = RestorePlan {
        dir: args.dir.clone(),
        mode: args.mode.into(),
        id,
        transfer,
        paused: args.paused,
        backing: args.memory_backing.map(|kind| kind.of_pages(PageSize::BASE)),
        huge_pages: args.huge_pages,
        working_set: args.working_set.clone(),
        record: record(args),
        began_us,
    };
    let ended = Host::new(Role::Restore, records.clone(), None, Welcome::default())
        .map_err(|e| Failure::new(&e))
        .and_then(|host| {
            let server = start_api(args.api_socket.as_deref(), &host)?;
            watch_signals(&host).map_err(|e| Failure::new(&e))?;
            bring_back(&host, &plan).map_err(|e| Failure::new(&e))?;
            let end = serve(&host).map_err(|e| Failure::new(&e))?;
            drop(server);
            Ok(exit_code(&end))
        });
    if ended.is_err() {
        records.let_go(id);
    }
    ended
}

fn record(args: &Restore) -> Option<Record> {
    let pages = args.record_max / PageSize::BASE.bytes() as u64;
    Some(Record {
        path: args.record.clone()?,
        time: Duration::from_secs(args.record_s.into()),
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
    })
}

/// Refuses words that would be ignored.
fn check(args: &Restore) -> Result<(), Failure> {
    if args.huge_pages && args.mode != RestoreMode::Copy {
        return Err(Failure::text("--huge-pages is for --mode copy"));
    }
    if args.memory_backing.is_some() && args.mode == RestoreMode::Mmap {
        return Err(Failure::text(
            "--memory-backing is not for --mode mmap, whose memory is a file",
        ));
    }
    if args.record.is_some() && args.mode != RestoreMode::Ondemand {
        return Err(Failure::text("--record is for --mode ondemand"));
    }
    if args.working_set.is_some() && args.mode != RestoreMode::Workingset {
        return Err(Failure::text("--working-set is for --mode workingset"));
    }
    Ok(())
}
