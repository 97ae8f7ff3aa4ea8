//! From a request line and a body to what is asked of the guest.

use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::types::{MigrateRequest, Problem, RecoverRequest, ShutdownRequest, SnapshotRequest};

/// A path of the API, with the one method that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ping,
    Status,
    Metrics,
    Pause,
    Resume,
    Shutdown,
    Migrate,
    Cancel,
    SwitchOver,
    Recover,
    Snapshot,
}

/// All that the API has.
pub(super) const ROUTES: [(Method, &str, Command); 11] = [
    (Method::GET, "/api/v1/ping", Command::Ping),
    (Method::GET, "/api/v1/status", Command::Status),
    (Method::GET, "/api/v1/metrics", Command::Metrics),
    (Method::PUT, "/api/v1/pause", Command::Pause),
    (Method::PUT, "/api/v1/resume", Command::Resume),
    (Method::PUT, "/api/v1/shutdown", Command::Shutdown),
    (Method::PUT, "/api/v1/migrate", Command::Migrate),
    (Method::PUT, "/api/v1/cancel", Command::Cancel),
    (Method::PUT, "/api/v1/switch-over", Command::SwitchOver),
    (Method::PUT, "/api/v1/recover", Command::Recover),
    (Method::PUT, "/api/v1/snapshot", Command::Snapshot),
];

/// A command with its arguments, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Ping,
    Status,
    Metrics,
    Pause,
    Resume,
    Shutdown(ShutdownRequest),
    Migrate(MigrateRequest),
    Cancel,
    SwitchOver,
    Recover(RecoverRequest),
    Snapshot(SnapshotRequest),
}

impl Call {
    /// What the call is named in errors.
    pub(super) fn step(&self) -> &'static str {
        match self {
            Call::Ping => "ping",
            Call::Status => "status",
            Call::Metrics => "metrics",
            Call::Pause => "pause",
            Call::Resume => "resume",
            Call::Shutdown(_) => "shutdown",
            Call::Migrate(_) => "migrate",
            Call::Cancel => "cancel",
            Call::SwitchOver => "switch over",
            Call::Recover(_) => "recover",
            Call::Snapshot(_) => "snapshot",
        }
    }
}

/// Why a request line leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// No such path (404).
    Path,
    /// The path takes another method (405).
    Method {
        /// The one it takes.
        allowed: Method,
    },
}

/// The command behind a request line.
pub(super) fn find(method: &Method, path: &str) -> Result<Command, NoRoute> {
    let route = ROUTES.iter().find(|(_, at, _)| *at == path).ok_or(NoRoute::Path)?;
    if route.0 != *method {
        return Err(NoRoute::Method { allowed: route.0.clone() });
    }
    Ok(route.2)
}

/// Reads the arguments of `command` from the body of its request.
pub(super) fn read(command: Command, body: &[u8]) -> Result<Call, Problem> {
    match command {
        Command::Ping => optional::<Empty>("ping", body).map(|Empty {}| Call::Ping),
        Command::Status => optional::<Empty>("status", body).map(|Empty {}| Call::Status),
        Command::Metrics => optional::<Empty>("metrics", body).map(|Empty {}| Call::Metrics),
        Command::Pause => optional::<Empty>("pause", body).map(|Empty {}| Call::Pause),
        Command::Resume => optional::<Empty>("resume", body).map(|Empty {}| Call::Resume),
        Command::Shutdown => optional("shutdown", body).map(Call::Shutdown),
        Command::Migrate => required("migrate", body).map(Call::Migrate),
        Command::Cancel => optional::<Empty>("cancel", body).map(|Empty {}| Call::Cancel),
        Command::SwitchOver => {
            optional::<Empty>("switch over", body).map(|Empty {}| Call::SwitchOver)
        }
        Command::Recover => optional("recover", body).map(Call::Recover),
        Command::Snapshot => required("snapshot", body).map(Call::Snapshot),
    }
}

/// A body that says nothing: `{}`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

fn optional<T: DeserializeOwned + Default>(step: &str, body: &[u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Ok(T::default());
    }
    required(step, body)
}

fn required<T: DeserializeOwned>(step: &str, body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not what this command takes: {error}");
        Problem::new(step, &message, Some("docs/openapi.yaml lists the fields of each command"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::MigrationMode;

    #[test]
    fn a_path_takes_one_method() {
        assert_eq!(find(&Method::GET, "/api/v1/status"), Ok(Command::Status));
        let refused = Err(NoRoute::Method { allowed: Method::PUT });
        assert_eq!(find(&Method::GET, "/api/v1/pause"), refused);
        assert_eq!(find(&Method::GET, "/api/v1/pause/"), Err(NoRoute::Path));
    }

    #[test]
    fn an_empty_body_means_the_default_where_there_is_one() {
        let calm = Call::Shutdown(ShutdownRequest { force: false });
        assert_eq!(read(Command::Shutdown, b""), Ok(calm));
        assert_eq!(read(Command::Pause, b"{}"), Ok(Call::Pause));
        assert!(read(Command::Migrate, b"").is_err());
    }

    #[test]
    fn a_migration_names_its_destination_and_mode() {
        let body = br#"{"destination_url": "tcp:host-2:7070", "mode": "postcopy"}"#;
        let address = "tcp:host-2:7070".parse().expect("an endpoint");
        let mut request = MigrateRequest::new(address, MigrationMode::Postcopy);
        assert_eq!(read(Command::Migrate, body), Ok(Call::Migrate(request.clone())));
        let body =
            br#"{"destination_url": "tcp:host-2:7070", "mode": "postcopy", "tls_dir": "/tls"}"#;
        request.tls_dir = Some("/tls".into());
        assert_eq!(read(Command::Migrate, body), Ok(Call::Migrate(request)));
    }

    #[test]
    fn an_unknown_field_is_refused_and_named() {
        let body = br#"{"destination_url": "unix:/s", "mode": "postcopy", "speed": 9}"#;
        let problem = read(Command::Migrate, body).expect_err("a field too many");
        assert!(problem.message.contains("speed"), "{problem}");
        assert!(read(Command::Pause, br#"{"for": 9}"#).is_err());
    }

    #[test]
    fn a_bad_destination_is_refused_with_the_reason() {
        let body = br#"{"destination_url": "host-2:7070", "mode": "postcopy"}"#;
        let problem = read(Command::Migrate, body).expect_err("no scheme");
        assert!(problem.message.contains("does not begin with `tcp:`"), "{problem}");
    }
}
