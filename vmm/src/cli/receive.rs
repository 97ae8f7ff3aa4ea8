//! `godwit receive`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use godwit_migration::driver::{Receiver, Trust};
use godwit_migration::snapshot::Base;
use godwit_migration::transport::TlsAcceptor;

use super::Failure;
use super::args::Receive;
use super::parent::end_with;
use super::run::{exit_code, finish_events, open_records, start_api, start_events};
use crate::api::types::Role;
use crate::migrate::{Host, Welcome, serve, watch_signals};

/// Listens for guests and serves the one that comes until it ends; listens again when it has moved
/// away.
pub fn receive(args: &Receive) -> Result<ExitCode, Failure> {
    end_with(args.end_with)?;
    let trust = trust(args)?;
    let records = open_records(args.state_dir.as_deref())?;
    let receiver = Receiver::bind(&args.address, trust, records.clone());
    let receiver = Arc::new(receiver.map_err(|e| Failure::new(&e))?);
    let disk_dirs = allowed_dirs(&args.disk_dir)?;
    // Read here, so that what is wrong with it shows before anybody comes.
    let base = args.base.as_deref().map(Base::open).transpose().map_err(|e| Failure::new(&e))?;
    let welcome = Welcome { disk_dirs, page_size: args.page_size, base };
    let host = Host::new(Role::Receive, records, Some(Arc::clone(&receiver)), welcome);
    let host = host.map_err(|e| Failure::new(&e))?;
    let events = start_events(args.events.as_deref(), &host)?;
    let server = start_api(args.api_socket.as_deref(), &host)?;
    watch_signals(&host).map_err(|e| Failure::new(&e))?;
    tracing::info!("listening at {}", receiver.address());
    let end = serve(&host).map_err(|e| Failure::new(&e))?;
    drop(server);
    finish_events(events.as_deref());
    Ok(exit_code(&end))
}

/// The directories by their real names, so that what is wrong with them shows before anybody comes.
fn allowed_dirs(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let real = |dir: &PathBuf| match std::fs::canonicalize(dir) {
        Ok(real) if real.is_dir() => Ok(real),
        Ok(_) => Err(Failure::text(format!("--disk-dir {} is not a directory", dir.display()))),
        Err(e) => Err(Failure::text(format!("--disk-dir {}: {e}", dir.display()))),
    };
    dirs.iter().map(real).collect()
}

/// Whom the words let in. Certificates are read here, so that what is wrong with them shows before
/// anybody comes.
fn trust(args: &Receive) -> Result<Trust, Failure> {
    match &args.tls_dir {
        Some(dir) => {
            let tls = TlsAcceptor::load(dir).map_err(|e| Failure::new(&e))?;
            Ok(Trust::Certificates(tls))
        }
        None if args.insecure => Ok(Trust::Everybody),
        None => Ok(Trust::ThisHost),
    }
}
