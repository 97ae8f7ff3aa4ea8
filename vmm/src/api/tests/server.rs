//! What the server does with good, bad and slow requests.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use serde_json::Value;

use super::guest::{DEADLINE, FakeGuest, Served, full_status, serve};
use crate::api::answer::{BODY_BYTES_MAX, COMMANDS_MAX};
use crate::api::types::{Compression, MigrateRequest, MigrationMode, Problem};
use crate::api::{Client, ClientError, ControlError, Server, ServerError};

/// Sends bytes as they are and returns all that comes back.
fn raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("sets a deadline");
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

fn request(method: &str, at: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {at} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

/// The problem in a raw answer.
fn problem(answer: &str) -> Problem {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let value: Value = serde_json::from_str(body).expect("json");
    serde_json::from_value(value["error"].clone()).expect("a problem")
}

fn migrate_request() -> MigrateRequest {
    let address = "tcp:host-2:7070".parse().expect("an endpoint");
    MigrateRequest {
        compression: Compression::Lz4,
        bandwidth_bytes_per_s: Some(125_000_000),
        ..MigrateRequest::new(address, MigrationMode::Postcopy)
    }
}

#[test]
fn status_arrives_as_it_was_given() {
    let served = serve();
    assert_eq!(served.client.status().expect("a status"), full_status());
}

#[test]
fn ping_says_who_answers() {
    let served = serve();
    let ping = served.client.ping().expect("an answer");
    assert_eq!((ping.name.as_str(), ping.pid), ("godwit", std::process::id()));
}

#[test]
fn every_command_reaches_the_guest_with_its_arguments() {
    let served = serve();
    let client = &served.client;
    client.pause().expect("pauses");
    client.resume().expect("resumes");
    client.migrate(&migrate_request()).expect("migrates");
    client.shutdown(true).expect("shuts down");
    client.shutdown(false).expect("shuts down");
    let expected = [
        "pause",
        "resume",
        "migrate tcp:host-2:7070 Postcopy",
        "shutdown force=true",
        "shutdown force=false",
    ];
    assert_eq!(served.guest.calls(), expected);
}

#[test]
fn a_migration_that_was_started_is_accepted_and_not_done() {
    let served = serve();
    let body = serde_json::to_string(&migrate_request()).expect("json");
    let answer = raw(&served.path, &request("PUT", "/api/v1/migrate", &body));
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

#[test]
fn the_guests_refusal_reaches_the_user_whole() {
    let served = serve();
    let refusals = [
        (409, ControlError::wrong_state("pause", "the guest has moved", Some("ask host-2"))),
        (400, ControlError::BadRequest(Problem::new("pause", "no", None))),
        (500, ControlError::failed("pause", &std::io::Error::other("no"), None)),
    ];
    for (expected, refusal) in refusals {
        *served.guest.answer.lock().expect("answer") = Err(refusal.clone());
        match served.client.pause() {
            Err(ClientError::Refusal { status, problem }) => {
                assert_eq!((status, &problem), (expected, refusal.problem()));
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

#[test]
fn a_slow_pause_does_not_hold_up_status_or_resume() {
    let served = serve();
    let held = served.guest.hold_next_pause();
    let client = served.client.clone();
    let pausing = thread::spawn(move || client.pause());
    held.entered.recv_timeout(DEADLINE).expect("the pause has begun");
    served.client.status().expect("a status meanwhile");
    served.client.resume().expect("a resume meanwhile");
    held.leave.send(()).expect("the pause waits");
    pausing.join().expect("no panic").expect("pauses in the end");
}

#[test]
fn commands_beyond_the_limit_are_told_so_and_status_is_not() {
    let served = serve();
    let mut held = Vec::new();
    let mut pausing = Vec::new();
    for _ in 0..COMMANDS_MAX {
        let this = served.guest.hold_next_pause();
        let client = served.client.clone();
        pausing.push(thread::spawn(move || client.pause()));
        this.entered.recv_timeout(DEADLINE).expect("the pause has begun");
        held.push(this);
    }
    match served.client.pause() {
        Err(ClientError::Refusal { status: 503, problem }) => assert!(problem.hint.is_some()),
        other => panic!("expected busy, got {other:?}"),
    }
    served.client.status().expect("a status all the same");
    drop(held);
    for thread in pausing {
        thread.join().expect("no panic").expect("pauses in the end");
    }
    served.client.pause().expect("there is room again");
}

#[test]
fn a_client_that_hangs_up_does_not_make_room_before_its_command_ends() {
    let served = serve();
    let mut held = Vec::new();
    for _ in 0..COMMANDS_MAX {
        let this = served.guest.hold_next_pause();
        let mut stream = UnixStream::connect(&served.path).expect("connects");
        stream.write_all(&request("PUT", "/api/v1/pause", "")).expect("writes");
        this.entered.recv_timeout(DEADLINE).expect("the pause has begun");
        drop(stream);
        held.push(this);
    }
    match served.client.resume() {
        Err(ClientError::Refusal { status: 503, .. }) => {}
        other => panic!("expected busy, got {other:?}"),
    }
    drop(held);
}

#[test]
fn wrong_requests_get_fitting_answers() {
    let served = serve();
    let cases = [
        (request("GET", "/", ""), "404"),
        (request("GET", "/api/v1/statu", ""), "404"),
        (request("PUT", "/api/v1/migrate", "{"), "400"),
        (request("PUT", "/api/v1/migrate", ""), "400"),
        (request("PUT", "/api/v1/shutdown", r#"{"force": 1}"#), "400"),
        (request("PUT", "/api/v1/pause", r#"{"for_s": 1}"#), "400"),
        (request("PUT", "/api/v1/pause", &" ".repeat(BODY_BYTES_MAX + 1)), "413"),
    ];
    for (bytes, expected) in cases {
        let answer = raw(&served.path, &bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{expected}: {answer}");
        assert!(!problem(&answer).message.is_empty());
    }
    assert_eq!(served.guest.calls(), [""; 0]);
}

#[test]
fn a_wrong_method_names_the_right_one() {
    let served = serve();
    let answer = raw(&served.path, &request("GET", "/api/v1/pause", "")).to_lowercase();
    assert!(answer.starts_with("http/1.1 405 "), "{answer}");
    assert!(answer.contains("\r\nallow: put\r\n"), "{answer}");
}

#[test]
fn a_chunked_body_has_the_same_limit() {
    let served = serve();
    let mut bytes = b"PUT /api/v1/pause HTTP/1.1\r\nHost: x\r\n".to_vec();
    bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    for _ in 0..20 {
        bytes.extend(b"1000\r\n");
        bytes.extend([b' '; 0x1000]);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    let answer = raw(&served.path, &bytes);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn nonsense_does_not_disturb_the_others() {
    let served = serve();
    let huge_length = b"PUT /api/v1/pause HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n";
    let nonsense: [&[u8]; 5] = [b"", b"\x16\x03\x01\x02\x00", b"GET", &[0xff; 70_000], huge_length];
    for bytes in nonsense {
        let answer = raw(&served.path, bytes);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        served.client.status().expect("a status all the same");
    }
    assert_eq!(served.guest.calls(), [""; 0]);
}

#[test]
fn dropping_the_server_removes_the_socket() {
    let Served { server, path, client, folder: _folder, .. } = serve();
    assert_eq!(server.path(), path);
    drop(server);
    assert!(!path.exists());
    assert!(matches!(client.status(), Err(ClientError::Missing { .. })));
}

#[test]
fn dropping_the_server_does_not_wait_for_a_silent_client_or_a_hung_command() {
    let Served { server, guest, client, path, folder: _folder } = serve();
    let silent = UnixStream::connect(&path).expect("connects");
    let held = guest.hold_next_pause();
    let pausing = thread::spawn(move || client.pause());
    held.entered.recv_timeout(DEADLINE).expect("the pause has begun");
    let (dropped, is_dropped) = channel();
    thread::spawn(move || {
        drop(server);
        dropped.send(()).expect("the test waits");
    });
    is_dropped.recv_timeout(DEADLINE).expect("the drop returns");
    let broken = pausing.join().expect("no panic");
    assert!(matches!(broken, Err(ClientError::Exchange { .. })), "{broken:?}");
    drop((silent, held));
}

#[test]
fn a_socket_can_be_served_again() {
    let Served { server, guest, client, path, folder: _folder } = serve();
    let second = Server::start(&path, guest.clone());
    assert!(matches!(second, Err(ServerError::InUse { .. })), "{second:?}");
    drop(server);
    let _third = Server::start(&path, guest).expect("starts");
    client.status().expect("a status");
}

#[test]
fn of_many_servers_on_one_stale_socket_exactly_one_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    let start = |path: std::path::PathBuf| {
        let control: Arc<FakeGuest> = FakeGuest::new();
        thread::spawn(move || Server::start(&path, control))
    };
    let starting: Vec<_> = (0..8).map(|_| start(path.clone())).collect();
    let started: Vec<_> = starting.into_iter().map(|t| t.join().expect("no panic")).collect();
    assert_eq!(started.iter().filter(|s| s.is_ok()).count(), 1, "{started:?}");
    Client::new(&path).with_timeout(DEADLINE).ping().expect("that one answers");
}
