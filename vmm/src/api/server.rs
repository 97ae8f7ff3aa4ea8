//! The server: one thread, one runtime, one task for each connection.

use std::convert::Infallible;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::{COMMANDS_MAX, Desk, QUERIES_MAX};
use super::socket::{SocketFile, listen_on};
use super::{Control, ServerError};

/// Connections that are open at once; the next ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;

/// How long a client may take to send the head of its request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// How long dropping the server waits for answers that are on their way.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// How long to wait before accepting again when the kernel could not make a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long an idle blocking thread is kept.
const THREAD_IDLE_MAX: Duration = Duration::from_millis(100);

// Every command and every query that is let in has a thread at once.
const BLOCKING_THREADS_MAX: usize = COMMANDS_MAX + QUERIES_MAX;

/// A running control API. Dropping it stops it and removes its socket.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    file: SocketFile,
}

impl Server {
    /// Serves `control` on a new Unix socket at `path`, which only this user may open. A socket
    /// file that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`ServerError`] says which step failed; nothing is left behind.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> Result<Server, ServerError> {
        let (listener, file) = listen_on(path)?;
        let runtime = new_runtime().map_err(ServerError::Thread)?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).map_err(ServerError::Thread)?
        };
        let (stop, stopped) = watch::channel(false);
        let desk = Arc::new(Desk::new(control));
        let thread = thread::Builder::new()
            .name("godwit-api".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, desk, stopped));
                // A command that hangs in the kernel must not hang the end of the process.
                runtime.shutdown_background();
            })
            .map_err(ServerError::Thread)?;
        Ok(Server { stop, thread: Some(thread), file })
    }

    /// Where the server listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the control thread panicked");
        }
    }
}

fn new_runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(THREAD_IDLE_MAX)
        .thread_name("godwit-api-call")
        .build()
}

/// Accepts until told to stop, then lets the answers that are on their way go out.
async fn serve(listener: UnixListener, desk: Arc<Desk>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, Arc::clone(&desk), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_TIME_MAX, drained).await.is_err() {
        tracing::warn!("a control connection was cut off");
    }
}

/// Serves the one request of a connection.
async fn converse(stream: UnixStream, desk: Arc<Desk>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<Response<_>, Infallible>(desk.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .keep_alive(false)
        // A client may say that it has nothing more to send and wait for its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke off");
    }
}
