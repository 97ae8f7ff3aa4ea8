//! From a request to its response: limits, routing, and the hand-over to blocking threads.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::route::{self, Call, NoRoute};
use super::types::{ErrorBody, Ping, Problem};
use super::{Control, ControlError, metrics};

/// The longest body of a request, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a client may take to send the body it announced.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// Commands that may run at once. One that hangs in the kernel must not lock out the others.
pub(super) const COMMANDS_MAX: usize = 4;

/// Status queries that may run at once; counted apart, so that commands never delay them.
pub(super) const QUERIES_MAX: usize = 8;

/// What all requests share.
pub(super) struct Desk {
    control: Arc<dyn Control>,
    commands: Arc<Semaphore>,
    queries: Arc<Semaphore>,
}

impl Desk {
    pub(super) fn new(control: Arc<dyn Control>) -> Desk {
        Desk {
            control,
            commands: Arc::new(Semaphore::new(COMMANDS_MAX)),
            queries: Arc::new(Semaphore::new(QUERIES_MAX)),
        }
    }

    /// Answers one request. Every failure is a response.
    pub(super) async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.try_answer(request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        }
    }

    async fn try_answer<B>(&self, request: Request<B>) -> Result<Response<Full<Bytes>>, Refusal>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let command =
            route::find(&head.method, path).map_err(|why| Refusal::no_route(why, path))?;
        let body = read_body(body).await?;
        let call = route::read(command, &body)
            .map_err(|problem| Refusal::new(StatusCode::BAD_REQUEST, problem))?;
        self.perform(call).await
    }

    /// Makes the call on a blocking thread. The permit goes with it: a client that hangs up does
    /// not make room for another command while the first still runs.
    async fn perform(&self, call: Call) -> Result<Response<Full<Bytes>>, Refusal> {
        let step = call.step();
        let slots = match call {
            Call::Ping | Call::Status | Call::Metrics => &self.queries,
            _ => &self.commands,
        };
        let permit = Arc::clone(slots).try_acquire_owned().map_err(|_| Refusal::busy(step))?;
        let control = Arc::clone(&self.control);
        let done = tokio::task::spawn_blocking(move || {
            let reply = perform(call, control.as_ref());
            drop(permit);
            reply
        });
        match done.await {
            Ok(reply) => reply.map_err(Refusal::from),
            Err(_) => Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Problem::new(step, "the command broke off inside godwit", None),
            )),
        }
    }
}

/// Makes the call; this may block.
fn perform(call: Call, control: &dyn Control) -> Result<Response<Full<Bytes>>, ControlError> {
    match call {
        Call::Ping => Ok(json(StatusCode::OK, &ping())),
        Call::Status => Ok(json(StatusCode::OK, &control.status())),
        Call::Metrics => Ok(open_metrics(metrics::render(&control.status()))),
        Call::Pause => control.pause().map(|()| empty(StatusCode::NO_CONTENT)),
        Call::Resume => control.resume().map(|()| empty(StatusCode::NO_CONTENT)),
        Call::Shutdown(request) => {
            control.shutdown(request.force).map(|()| empty(StatusCode::ACCEPTED))
        }
        Call::Migrate(request) => control.migrate(request).map(|()| empty(StatusCode::ACCEPTED)),
        Call::Cancel => control.cancel().map(|()| empty(StatusCode::ACCEPTED)),
        Call::SwitchOver => control.switch_over().map(|()| empty(StatusCode::ACCEPTED)),
        Call::Recover(request) => control.recover(request).map(|()| empty(StatusCode::ACCEPTED)),
        Call::Snapshot(request) => control.snapshot(request).map(|()| empty(StatusCode::ACCEPTED)),
    }
}

fn ping() -> Ping {
    Ping {
        name: "godwit".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    }
}

/// The whole body, if it is within the limits of size and time.
async fn read_body<B>(body: B) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // A length that is announced too long is refused before a byte of it is read.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(Refusal::too_long());
    }
    let whole = timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect());
    match whole.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::too_long()),
        Ok(Err(error)) => {
            let message = format!("the body broke off: {error}");
            let problem = Problem::new("read the request", &message, None);
            Err(Refusal::new(StatusCode::BAD_REQUEST, problem))
        }
        Err(_) => {
            let seconds = BODY_TIME_MAX.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            let problem = Problem::new("read the request", &message, None);
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, problem))
        }
    }
}

/// A response that is not a success.
struct Refusal {
    status: StatusCode,
    problem: Problem,
    allow: Option<HeaderValue>,
}

impl Refusal {
    fn new(status: StatusCode, problem: Problem) -> Refusal {
        Refusal { status, problem, allow: None }
    }

    fn no_route(why: NoRoute, path: &str) -> Refusal {
        let step = "find the command";
        match why {
            NoRoute::Path => {
                let message = format!("there is no `{path}` here");
                let hint = "the commands are ping, status, metrics, pause, resume, shutdown, \
                            migrate, cancel, switch-over and recover, under /api/v1/";
                let problem = Problem::new(step, &message, Some(hint));
                Refusal::new(StatusCode::NOT_FOUND, problem)
            }
            NoRoute::Method { allowed } => {
                let message = format!("`{path}` takes {allowed} only");
                let problem = Problem::new(step, &message, None);
                let allow = HeaderValue::from_str(allowed.as_str()).ok();
                Refusal { status: StatusCode::METHOD_NOT_ALLOWED, problem, allow }
            }
        }
    }

    fn too_long() -> Refusal {
        let message = format!("the body is longer than {BODY_BYTES_MAX} bytes");
        let problem = Problem::new("read the request", &message, None);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, problem)
    }

    fn busy(step: &str) -> Refusal {
        let message = format!("{COMMANDS_MAX} commands or {QUERIES_MAX} queries already run");
        let hint = "try again when one of them has ended";
        let problem = Problem::new(step, &message, Some(hint));
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem)
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = json(self.status, &ErrorBody { error: self.problem });
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, allow);
        }
        response
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Refusal {
        let status = match error {
            ControlError::WrongState(_) => StatusCode::CONFLICT,
            ControlError::BadRequest(_) => StatusCode::BAD_REQUEST,
            ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, error.problem().clone())
    }
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Response<Full<Bytes>> {
    let Ok(bytes) = serde_json::to_vec(body) else {
        // Our types have string keys and no custom serializers that could fail.
        return empty(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn open_metrics(text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}
