//! Two sides over real sockets, with certificates that are made for each test.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{scope, spawn};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite, Tls13CipherSuite};

use super::config::provider;
use super::session::PREAMBLE_FIRST_BYTE;
use super::*;
use crate::transport::{Address, Listener, Stream, WhenIdle};
use crate::wire::{Channel, PREAMBLE_BYTES, Preamble};

const PATIENCE: Duration = Duration::from_secs(20);

/// A CA, which signs what it is asked to.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
struct Subject<'a> {
    names: &'a [&'a str],
    purpose: ExtendedKeyUsagePurpose,
    until_year: i32,
}

const SERVER: Subject<'static> = Subject {
    names: &["127.0.0.1", "localhost"],
    purpose: ExtendedKeyUsagePurpose::ServerAuth,
    until_year: 4000,
};
const CLIENT: Subject<'static> =
    Subject { names: &["a-source"], purpose: ExtendedKeyUsagePurpose::ClientAuth, ..SERVER };

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes `WHO-cert.pem` and `WHO-key.pem`.
    fn sign(&self, dir: &Path, who: &str, subject: &Subject<'_>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = subject.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![subject.purpose.clone()];
        params.not_after = date_time_ymd(subject.until_year, 1, 1);
        params.not_before = date_time_ymd(2001, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }

    fn trusted_in(&self, dir: &Path) {
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
    }
}

/// The directories of both sides, of one CA, with certificates for `server` and `client`.
fn directories(server: &Subject<'_>, client: &Subject<'_>) -> [tempfile::TempDir; 2] {
    let authority = Authority::new("CA");
    let [here, there] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    authority.trusted_in(here.path());
    authority.trusted_in(there.path());
    authority.sign(here.path(), "client", client);
    authority.sign(there.path(), "server", server);
    [here, there]
}

fn load([here, there]: &[tempfile::TempDir; 2]) -> (TlsConnector, TlsAcceptor) {
    (TlsConnector::load(here.path()).unwrap(), TlsAcceptor::load(there.path()).unwrap())
}

/// Both ends of a connection that was made at `address`.
fn pair_at(address: &str, (connector, acceptor): &(TlsConnector, TlsAcceptor)) -> (Stream, Stream) {
    let listener = Listener::bind(&address.parse().unwrap()).unwrap();
    scope(|scope| {
        let server = scope.spawn(|| acceptor.accept(listener.accept().unwrap()).unwrap());
        let client = Stream::connect(listener.address(), PATIENCE, Some(connector)).unwrap();
        (client, server.join().unwrap())
    })
}

fn pair() -> (Stream, Stream) {
    pair_at("tcp:127.0.0.1:0", &load(&directories(&SERVER, &CLIENT)))
}

/// What both sides say of each other, if the client dials `host` and both exchange greetings.
fn greet(host: &str, (connector, acceptor): &(TlsConnector, TlsAcceptor)) -> [String; 2] {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = *listener.address() else { unreachable!("bound as TCP") };
    let address = Address::Tcp { host: host.to_owned(), port };
    let said = |result: io::Result<()>| result.map_or_else(|e| e.to_string(), |()| "well".into());
    scope(|scope| {
        let server = scope.spawn(|| {
            let stream = acceptor.accept(listener.accept()?)?;
            stream.receive_exact(&mut [0; 5])?;
            stream.send(b"there", false)
        });
        let client = || {
            let stream = Stream::connect(&address, PATIENCE, Some(connector))?;
            stream.send(b"hello", false)?;
            stream.receive_exact(&mut [0; 5])
        };
        [said(client()), said(server.join().unwrap())]
    })
}

#[track_caller]
fn says(said: &[String; 2], client: &str, server: &str) {
    assert!(said[0].contains(client), "the client says: {}", said[0]);
    assert!(said[1].contains(server), "the server says: {}", said[1]);
}

fn readable(stream: &Stream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.pollable(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

/// Bytes that differ from their neighbours.
fn pattern(count: usize) -> Vec<u8> {
    let byte = |i: usize| u8::try_from((i * 31 + i / 251) % 256).unwrap();
    (0..count).map(byte).collect()
}

#[test]
fn bytes_of_any_number_travel_both_ways() {
    let config = load(&directories(&SERVER, &CLIENT));
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", dir.path().join("s").display());
    for address in ["tcp:127.0.0.1:0", "tcp:localhost:0", unix.as_str()] {
        let (client, server) = pair_at(address, &config);
        for count in [1, 16, 16 << 10, (16 << 10) + 1, 300_000, 5 << 20] {
            let bytes = pattern(count);
            for (from, to) in [(&client, &server), (&server, &client)] {
                let mut received = vec![0; count];
                scope(|scope| {
                    scope.spawn(|| from.send(&bytes, false).unwrap());
                    to.receive_exact(&mut received).unwrap();
                });
                assert!(received == bytes, "{count} bytes at {address}");
            }
        }
    }
}

#[test]
fn both_ends_can_send_more_than_sockets_hold_at_the_same_time() {
    let (client, server) = pair();
    let bytes = pattern(16 << 20);
    scope(|scope| {
        for (from, to) in [(&client, &server), (&server, &client)] {
            scope.spawn(|| from.send(&bytes, false).unwrap());
            scope.spawn(|| {
                let mut received = vec![0; bytes.len()];
                to.receive_exact(&mut received).unwrap();
                assert!(received == bytes);
            });
        }
    });
}

#[test]
fn what_a_peer_is_trusted_for_is_its_certificate() {
    let good = directories(&SERVER, &CLIENT);
    says(&greet("127.0.0.1", &load(&good)), "well", "well");
    says(&greet("localhost", &load(&good)), "well", "well");

    let here = "not signed by the CA in ca-cert.pem here";
    let there = "refuses the certificate of this host: it is not signed by the CA in ca-cert.pem";
    for name in ["another CA", "CA"] {
        let stranger = directories(&SERVER, &CLIENT);
        Authority::new(name).sign(stranger[1].path(), "server", &SERVER);
        says(&greet("127.0.0.1", &load(&stranger)), here, there);
        Authority::new(name).sign(good[0].path(), "client", &CLIENT);
        says(&greet("127.0.0.1", &load(&good)), there, here);
    }
}

#[test]
fn certificates_are_for_a_time_a_name_and_a_purpose() {
    let refuses = "refuses the certificate of this host";
    let old = Subject { until_year: 2002, ..SERVER };
    let said = greet("localhost", &load(&directories(&old, &CLIENT)));
    says(&said, "certificate expired", "it is out of date by the clock there");
    let old = Subject { until_year: 2002, ..CLIENT };
    let said = greet("localhost", &load(&directories(&SERVER, &old)));
    says(&said, "it is out of date by the clock there", "certificate expired");

    let other = Subject { names: &["host-2", "10.0.0.9"], ..SERVER };
    let said = greet("localhost", &load(&directories(&other, &CLIENT)));
    says(&said, "not valid for name \"localhost\"", refuses);
    let said = greet("127.0.0.1", &load(&directories(&other, &CLIENT)));
    says(&said, "not valid for name \"127.0.0.1\"", refuses);

    let wrong = Subject { purpose: ExtendedKeyUsagePurpose::ClientAuth, ..SERVER };
    says(&greet("localhost", &load(&directories(&wrong, &CLIENT))), "is refused", refuses);
    let wrong = Subject { purpose: ExtendedKeyUsagePurpose::ServerAuth, ..CLIENT };
    says(&greet("localhost", &load(&directories(&SERVER, &wrong))), refuses, "is refused");
}

#[test]
fn a_client_without_a_certificate_stays_outside() {
    let directories = directories(&SERVER, &CLIENT);
    let (mut connector, acceptor) = load(&directories);
    let mut roots = RootCertStore::empty();
    for certificate in {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        CertificateDer::pem_file_iter(directories[0].path().join("ca-cert.pem")).unwrap()
    } {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    connector.config = Arc::new(config);
    let said = greet("localhost", &(connector, acceptor));
    says(&said, "it was not presented", "presents no certificate");
}

#[test]
fn a_plain_peer_and_one_with_tls_learn_what_they_met() {
    let ours = Preamble::ours(Channel::Urgent).encode();
    assert_eq!(ours[0], PREAMBLE_FIRST_BYTE);
    assert!(!is_tls(&ours));
    let (connector, acceptor) = load(&directories(&SERVER, &CLIENT));
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", dir.path().join("s").display());
    for address in ["tcp:127.0.0.1:0", unix.as_str()] {
        let listener = Listener::bind(&address.parse().unwrap()).unwrap();
        let address = listener.address();
        scope(|scope| {
            let client = scope.spawn(|| {
                let stream = Stream::connect(address, PATIENCE, None).unwrap();
                stream.send(&ours, false).unwrap();
                let mut answer = [0; PREAMBLE_BYTES];
                stream.receive_exact(&mut answer).unwrap_err();
                answer
            });
            let error = acceptor.accept(listener.accept().unwrap()).unwrap_err();
            assert!(error.to_string().contains("the source does not use TLS"), "{error}");
            assert!(is_tls(&client.join().unwrap()));

            let client = scope.spawn(|| Stream::connect(address, PATIENCE, Some(&connector)));
            let server = listener.accept().unwrap();
            let mut hello = [0; PREAMBLE_BYTES];
            server.receive_exact(&mut hello).unwrap();
            assert!(is_tls(&hello));
            server.send(&ours, false).unwrap();
            drop(server);
            let error = client.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("the receiver does not use TLS"), "{error}");
        });
    }
}

#[test]
fn a_handshake_that_does_not_come_to_its_end_is_an_error() {
    let (_, acceptor) = load(&directories(&SERVER, &CLIENT));
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    // The head of a record with 512 bytes of handshake, and half of what it promises.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[0; 256]].concat();
    let http = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    for (bytes, why) in [
        (Vec::new(), "closed the connection during the TLS handshake"),
        (vec![22], "closed the connection during the TLS handshake"),
        (hello, "closed the connection during the TLS handshake"),
        (http, "does not speak TLS 1.3"),
        (vec![23; 1 << 20], "TLS"),
    ] {
        let client = Stream::connect(listener.address(), PATIENCE, None).unwrap();
        let server = listener.accept().unwrap();
        let sending = spawn(move || {
            // It may be closed before it has taken all.
            let _ = client.send(&bytes, false);
        });
        let error = acceptor.accept(server).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        sending.join().unwrap();
    }
    let silent = Stream::connect(listener.address(), PATIENCE, None).unwrap();
    let error = acceptor.accept(listener.accept().unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    drop(silent);
}

#[test]
fn the_end_of_a_stream_is_something_that_is_said() {
    let (client, server) = pair();
    server.send(b"last", false).unwrap();
    drop(server);
    let mut bytes = [0; 4];
    client.receive_exact(&mut bytes).unwrap();
    assert!(!client.receive_exact_or_end(&mut bytes).unwrap());
    assert!(!client.receive_exact_or_end(&mut bytes).unwrap());

    let (client, server) = pair();
    server.send(b"la", false).unwrap();
    server.shutdown();
    let error = client.receive_exact(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(server.send(b"st", false).is_err());

    let (client, server) = pair();
    server.send(b"last", false).unwrap();
    rustix::net::shutdown(server.fd(), rustix::net::Shutdown::Write).unwrap();
    client.receive_exact(&mut bytes).unwrap();
    let error = client.receive_exact_or_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(error.to_string().contains("cut"), "{error}");
}

#[test]
fn bytes_that_were_changed_on_the_way_end_the_stream_on_both_sides() {
    let (client, server) = pair();
    server.send(b"good", false).unwrap();
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    rustix::net::send(server.fd(), &forged, rustix::net::SendFlags::empty()).unwrap();
    let mut bytes = [0; 4];
    client.receive_exact(&mut bytes).unwrap();
    for _ in 0..2 {
        let error = client.receive(&mut bytes, WhenIdle::Wait).unwrap_err();
        assert!(TlsError::is_in(&error), "{error}");
        assert!(error.to_string().contains("cannot decrypt"), "{error}");
    }
    let error = server.receive(&mut bytes, WhenIdle::Wait).unwrap_err().to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
}

#[test]
fn whoever_polls_does_not_sleep_while_bytes_wait() {
    let (client, server) = pair();
    let mut byte = [0];
    let nothing = |stream: &Stream| {
        let error = stream.receive(&mut [0], WhenIdle::Return).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!readable(stream));
    };
    nothing(&client);
    for count in [2, 3, 40_000] {
        server.send(&pattern(count), false).unwrap();
        for expected in pattern(count) {
            // Until the first bytes have come, nobody may say that there are some.
            if !readable(&client) {
                wait_for(&client);
            }
            while client.receive(&mut byte, WhenIdle::Return).is_err() {
                wait_for(&client);
            }
            assert_eq!(byte[0], expected);
        }
        nothing(&client);
    }
    // Its end comes in the same segment as what is before it.
    server.send(b"ab", false).unwrap();
    drop(server);
    for expected in [1, 1, 0, 0] {
        wait_for(&client);
        assert_eq!(client.receive(&mut byte, WhenIdle::Wait).unwrap(), expected);
    }
    assert!(readable(&client));
}

fn wait_for(stream: &Stream) {
    let mut fds = [PollFd::from_borrowed_fd(stream.pollable(), PollFlags::IN)];
    let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing came");
}

#[test]
fn a_receive_ends_with_its_time_and_with_the_stream() {
    let (client, _server) = pair();
    client.set_receive_timeout(Some(Duration::from_millis(10))).unwrap();
    let error = client.receive(&mut [0], WhenIdle::Wait).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    client.set_receive_timeout(None).unwrap();
    scope(|scope| {
        let waiting = scope.spawn(|| client.receive(&mut [0], WhenIdle::Wait));
        client.shutdown();
        assert!(waiting.join().unwrap().is_err());
    });
}

#[test]
fn keys_that_are_used_up_are_replaced_on_the_way() {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().unwrap();
    // Eight records, where the real limit is 2^24.
    let common = CipherSuiteCommon {
        suite: suite.common.suite,
        hash_provider: suite.common.hash_provider,
        confidentiality_limit: 8,
    };
    let few: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common,
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    }));
    let cipher_suites = vec![SupportedCipherSuite::Tls13(few)];
    let weak = Arc::new(CryptoProvider { cipher_suites, ..(*provider()).clone() });
    let directories = directories(&SERVER, &CLIENT);
    let (_, acceptor) = load(&directories);
    let connector = TlsConnector::load_with(directories[0].path(), weak).unwrap();
    let (client, server) = pair_at("tcp:127.0.0.1:0", &(connector, acceptor));
    let bytes = pattern(16 << 10);
    for _ in 0..100 {
        client.send(&bytes, false).unwrap();
        let mut received = vec![0; bytes.len()];
        server.receive_exact(&mut received).unwrap();
        assert!(received == bytes);
    }
    // The other direction was asked for new keys as well: they come before five bytes in a record.
    server.send(b"still", false).unwrap();
    let mut records = [0; 256];
    let peek = rustix::net::RecvFlags::PEEK;
    let (_, bytes) = rustix::net::recv(client.fd(), &mut records, peek).unwrap();
    assert!(bytes > 5 + 5 + 1 + 16, "{bytes} bytes");
    client.receive_exact(&mut [0; 5]).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let error = |dir: &Path| {
        let error = TlsAcceptor::load(dir).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    };
    let [_, dir] = directories(&SERVER, &CLIENT);
    let dir = dir.path();
    let nowhere = error(&dir.join("nowhere"));
    assert!(nowhere.contains("nowhere/ca-cert.pem"), "{nowhere}");
    assert!(nowhere.contains("a server needs ca-cert.pem, server-cert.pem and"), "{nowhere}");

    let key = dir.join("server-key.pem");
    std::fs::rename(&key, dir.join("aside")).unwrap();
    assert!(error(dir).contains("server-key.pem"), "{}", error(dir));
    std::fs::write(&key, "nonsense").unwrap();
    assert!(error(dir).contains("server-key.pem has no section `BEGIN PRIVATE KEY`"));
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(error(dir).contains("server-key.pem is damaged"), "{}", error(dir));
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(error(dir).contains("server-key.pem cannot be used"), "{}", error(dir));
    let other = KeyPair::generate().unwrap();
    std::fs::write(&key, other.serialize_pem()).unwrap();
    assert!(error(dir).contains("server-cert.pem cannot be used"), "{}", error(dir));
    std::fs::write(dir.join("server-cert.pem"), "").unwrap();
    assert!(error(dir).contains("server-cert.pem has no section `BEGIN CERTIFICATE`"));
}
