//! What the client says when there is no guest at the other end.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use super::guest::DEADLINE;
use crate::api::{Client, ClientError};

/// A process that reads one request and says `answer`.
fn impostor(answer: &'static [u8]) -> (TempDir, PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    let listener = UnixListener::bind(&path).expect("binds");
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).expect("a request");
        let _ = stream.write_all(answer);
    });
    (folder, path, thread)
}

fn status_of(answer: &'static [u8]) -> ClientError {
    let (_folder, path, thread) = impostor(answer);
    let error = Client::new(path).with_timeout(DEADLINE).status().expect_err("no godwit");
    thread.join().expect("no panic");
    error
}

#[test]
fn a_missing_socket_is_named_with_a_hint() {
    let error = Client::new("/nonexistent/api").status().expect_err("no socket");
    assert_eq!(error.to_string(), "there is no control socket /nonexistent/api");
    assert!(error.hint().is_some_and(|hint| hint.contains("--api-socket")));
}

#[test]
fn a_dead_socket_is_told_from_a_missing_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    drop(UnixListener::bind(&path).expect("binds"));
    let error = Client::new(&path).status().expect_err("nobody listens");
    assert!(matches!(error, ClientError::Refused { .. }), "{error:?}");
}

#[test]
fn a_silent_peer_is_given_up_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    let _listener = UnixListener::bind(&path).expect("binds");
    let client = Client::new(&path).with_timeout(Duration::from_millis(1));
    let error = client.pause().expect_err("no answer");
    assert!(matches!(error, ClientError::TimedOut { step: "pause", limit_ms: 1, .. }), "{error:?}");
}

#[test]
fn a_peer_that_hangs_up_is_an_error() {
    assert!(matches!(status_of(b""), ClientError::Exchange { .. }));
}

#[test]
fn a_peer_that_is_not_http_is_an_error() {
    assert!(matches!(status_of(b"SSH-2.0-OpenSSH_9.2\r\n"), ClientError::Exchange { .. }));
}

#[test]
fn an_answer_that_breaks_off_is_an_error() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"id\"";
    assert!(matches!(status_of(half), ClientError::Exchange { .. }));
}

#[test]
fn an_answer_of_another_program_is_an_error() {
    let other = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    assert!(matches!(status_of(other), ClientError::Unreadable { status: 200, .. }));
    let other = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nhi";
    assert!(matches!(status_of(other), ClientError::Unreadable { status: 502, .. }));
}

#[test]
fn an_endless_answer_is_cut_off() {
    let (_folder, path, _) = {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        let listener = UnixListener::bind(&path).expect("binds");
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // An answer to nothing would be another mistake.
            let _ = stream.read(&mut [0; 4096]).expect("a request");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b' '; 4096]).is_ok() {}
        });
        (folder, path, thread)
    };
    let error = Client::new(path).with_timeout(DEADLINE).status().expect_err("endless");
    assert!(matches!(error, ClientError::Unreadable { .. }), "{error:?}");
}
