//! SIGINT and SIGTERM become events of the main thread.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::{Host, HostEvent};

/// Turns SIGINT and SIGTERM into requests to end: the first one a request, those after it an order.
///
/// # Errors
/// No thread or runtime to be had.
pub fn watch_signals(host: &Arc<Host>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let host = Arc::clone(host);
    let watch = async move {
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            return tracing::error!("SIGINT and SIGTERM end this process at once");
        };
        let mut force = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            host.events.send(HostEvent::End { force });
            force = true;
        }
    };
    let run = move || runtime.block_on(watch);
    std::thread::Builder::new().name("godwit-signals".into()).spawn(run)?;
    Ok(())
}
