//! `godwit snapshot`.

use std::process::ExitCode;

use super::Failure;
use super::args::Snapshot;
use super::control::{LOOK_EVERY, client, failed, guest_line, progress_bar, to_json};
use crate::api::Client;
use crate::api::types::{SnapshotRequest, SnapshotState, SnapshotStatus, Status};

/// Saves a guest; returns when the snapshot is on the disk.
pub fn snapshot(args: &Snapshot) -> Result<ExitCode, Failure> {
    let client = client(&args.at);
    // The process of the guest writes it, and that may have another working directory.
    let dir = std::path::absolute(&args.dir).map_err(|e| Failure::new(&e))?;
    let request = SnapshotRequest { dir, pause: args.pause };
    client.snapshot(&request).map_err(|e| failed(&e))?;
    let (status, snapshot) = wait_for_outcome(&client, &request)?;
    if args.json {
        println!("{}", to_json(&snapshot)?);
    }
    let guest = format!("the guest is {} here", guest_line(&status.guest));
    match snapshot.state {
        SnapshotState::Completed if !args.json => {
            let ms = snapshot.duration_us.unwrap_or(0) / 1000;
            eprintln!("saved to {} in {ms} ms; {guest}", snapshot.dir.display());
            Ok(ExitCode::SUCCESS)
        }
        SnapshotState::Completed => Ok(ExitCode::SUCCESS),
        SnapshotState::Active | SnapshotState::Failed => {
            let why = snapshot.error.map_or(String::new(), |error| error.message);
            Err(Failure { message: format!("no snapshot was taken: {why}"), hint: Some(guest) })
        }
    }
}

fn wait_for_outcome(
    client: &Client,
    request: &SnapshotRequest,
) -> Result<(Status, SnapshotStatus), Failure> {
    let bar = progress_bar();
    loop {
        let mut status = client.status().map_err(|e| failed(&e))?;
        let ours = status.snapshot.take().filter(|snapshot| snapshot.dir == request.dir);
        let snapshot = ours.ok_or_else(|| Failure::text("another snapshot was taken meanwhile"))?;
        bar.set_length(snapshot.pages.total * 4096);
        bar.set_position((snapshot.pages.total - snapshot.pages.remaining) * 4096);
        bar.set_message("snapshot");
        if snapshot.state != SnapshotState::Active {
            bar.finish_and_clear();
            return Ok((status, snapshot));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
