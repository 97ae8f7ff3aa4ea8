//! The blocking client that the command line uses.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::types::{
    ErrorBody, MigrateRequest, Ping, Problem, RecoverRequest, ShutdownRequest, SnapshotRequest,
    Status,
};

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a command may take unless [`Client::with_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command brought no success.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("there is no control socket {path}")]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// There is a socket, and its process is gone.
    #[error("nobody listens on the control socket {path}")]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is somebody else's.
    #[error("the control socket {path} may not be opened by this user")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be reached for another reason.
    #[error("cannot connect to the control socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No answer came in time. The command may still be carried out.
    #[error("{step}: no answer from {path} within {limit_ms} ms")]
    TimedOut {
        /// The command.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// The time allowed, in milliseconds.
        limit_ms: u128,
    },
    /// The process went away, or does not speak HTTP.
    #[error("{step}: the exchange with {path} broke off")]
    Exchange {
        /// The command.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// What HTTP made of it.
        source: hyper::Error,
    },
    /// The answer is HTTP and not what a godwit says.
    #[error("{step}: {path} answered {status} with something that is not godwit's: {why}")]
    Unreadable {
        /// The command.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
    /// The process said no.
    #[error("{problem}")]
    Refusal {
        /// The HTTP status.
        status: u16,
        /// What the process said.
        problem: Problem,
    },
    /// This process could not make what it needs to ask.
    #[error("cannot prepare a request")]
    Prepare(#[source] io::Error),
}

impl ClientError {
    /// What the user may do next.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Missing { .. } => {
                Some("is the guest running, and was it started with this --api-socket?")
            }
            ClientError::Refused { .. } => {
                Some("its process has ended; the next one started with this path replaces it")
            }
            ClientError::Denied { .. } => Some("run this as the user that started the guest"),
            ClientError::TimedOut { .. } => {
                Some("`godwit status` tells whether it was carried out all the same")
            }
            ClientError::Refusal { problem, .. } => problem.hint.as_deref(),
            ClientError::Exchange { .. } => Some("has its process ended? its stderr says why"),
            ClientError::Unreadable { .. } => Some("does a godwit of this version listen there?"),
            ClientError::Connect { .. } | ClientError::Prepare(_) => None,
        }
    }
}

/// Speaks to one control socket. Every call makes its own connection and blocks until it is
/// answered or the time is up; do not call it from inside an async runtime.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
}

impl Client {
    /// A client of the socket at `path`. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Client {
        Client { path: path.into(), limit: TIMEOUT }
    }

    /// The same with another time limit for each call.
    #[must_use]
    pub fn with_timeout(self, limit: Duration) -> Client {
        Client { limit, ..self }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks who listens.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn ping(&self) -> Result<Ping, ClientError> {
        self.get("ping", "/api/v1/ping")
    }

    /// Asks how the guest is.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("status", "/api/v1/status")
    }

    /// Stops the guest's vCPUs; returns when they are stopped.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn pause(&self) -> Result<(), ClientError> {
        self.put("pause", "/api/v1/pause", Bytes::new())
    }

    /// Lets the guest's vCPUs run on.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn resume(&self) -> Result<(), ClientError> {
        self.put("resume", "/api/v1/resume", Bytes::new())
    }

    /// Asks the process to end; returns when it has begun to. `force` ends it even if it has
    /// pages that nobody else has.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn shutdown(&self, force: bool) -> Result<(), ClientError> {
        self.put("shutdown", "/api/v1/shutdown", to_json(&ShutdownRequest { force })?)
    }

    /// Starts a migration; returns when it has started. [`Client::status`] tells how it goes.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn migrate(&self, request: &MigrateRequest) -> Result<(), ClientError> {
        self.put("migrate", "/api/v1/migrate", to_json(request)?)
    }

    /// Ends a migration before its switchover.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn cancel(&self) -> Result<(), ClientError> {
        self.put("cancel", "/api/v1/cancel", Bytes::new())
    }

    /// Ends the rounds of a migration.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn switch_over(&self) -> Result<(), ClientError> {
        self.put("switch over", "/api/v1/switch-over", Bytes::new())
    }

    /// Finds a lost peer again.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn recover(&self, request: &RecoverRequest) -> Result<(), ClientError> {
        self.put("recover", "/api/v1/recover", to_json(request)?)
    }

    /// Begins to save the guest; returns when it has begun. [`Client::status`] tells how it goes.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn snapshot(&self, request: &SnapshotRequest) -> Result<(), ClientError> {
        self.put("snapshot", "/api/v1/snapshot", to_json(request)?)
    }

    fn get<T: DeserializeOwned>(&self, step: &'static str, at: &str) -> Result<T, ClientError> {
        let (status, answer) = self.exchange(step, Method::GET, at, Bytes::new())?;
        serde_json::from_slice(&answer).map_err(|e| self.unreadable(step, status, e.to_string()))
    }

    fn put(&self, step: &'static str, at: &str, body: Bytes) -> Result<(), ClientError> {
        self.exchange(step, Method::PUT, at, body).map(|_| ())
    }

    /// Sends one request and reads its answer; anything but a success is an error.
    fn exchange(
        &self,
        step: &'static str,
        method: Method,
        at: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(at)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Prepare(io::Error::other(error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ClientError::Prepare)?;
        let answered = runtime.block_on(async {
            timeout(self.limit, self.send(step, request)).await.unwrap_or_else(|_| {
                let (path, limit_ms) = (self.path.clone(), self.limit.as_millis());
                Err(ClientError::TimedOut { step, path, limit_ms })
            })
        });
        let (status, answer) = answered?;
        if status.is_success() {
            return Ok((status, answer));
        }
        match serde_json::from_slice::<ErrorBody>(&answer) {
            Ok(body) => Err(ClientError::Refusal { status: status.as_u16(), problem: body.error }),
            Err(error) => Err(self.unreadable(step, status, error.to_string())),
        }
    }

    async fn send(
        &self,
        step: &'static str,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broke_off = |source| ClientError::Exchange { step, path: self.path.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(|e| self.cannot_connect(e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broke_off)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        driver.abort();
        match body {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => {
                let why = format!("longer than {ANSWER_BYTES_MAX} bytes");
                Err(self.unreadable(step, status, why))
            }
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(broke_off(*error)),
                Err(error) => Err(self.unreadable(step, status, error.to_string())),
            },
        }
    }

    fn cannot_connect(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::Missing { path },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
            io::ErrorKind::PermissionDenied => ClientError::Denied { path },
            _ => ClientError::Connect { path, source },
        }
    }

    fn unreadable(&self, step: &'static str, status: StatusCode, why: String) -> ClientError {
        ClientError::Unreadable { step, path: self.path.clone(), status: status.as_u16(), why }
    }
}

fn to_json<T: Serialize>(body: &T) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| ClientError::Prepare(io::Error::other(error)))
}
