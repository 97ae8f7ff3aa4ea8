//! SIGINT, SIGTERM and SIGHUP become events, so that nothing is left behind.

use std::io;
use std::sync::mpsc::SyncSender;

use tokio::signal::unix::{SignalKind, signal};

use super::process::Event;

/// Turns the signals that end a program into events.
///
/// # Errors
/// No thread or runtime to be had.
pub fn watch(events: SyncSender<Event>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut kinds = {
        let _inside = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.map(|kind| signal(kind).map(|stream| (kind.as_raw_value(), stream)))
    }
    .into_iter()
    .collect::<io::Result<Vec<_>>>()?;
    let watch = async move {
        loop {
            let [(a, first), (b, second), (c, third)] = &mut kinds[..] else { return };
            let number = tokio::select! {
                _ = first.recv() => *a,
                _ = second.recv() => *b,
                _ = third.recv() => *c,
            };
            if events.send(Event::Signal(number)).is_err() {
                return;
            }
        }
    };
    let run = move || runtime.block_on(watch);
    std::thread::Builder::new().name("godwit-signals".into()).spawn(run)?;
    Ok(())
}
