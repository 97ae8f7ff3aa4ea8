//! Guests that move over TLS, and those who are turned away because they have none, or the wrong
//! certificate, or listen where strangers could come.

use std::sync::{Arc, Mutex};

use godwit_migration::transport::Address;
use godwit_tests::certificates::Authority;
use godwit_tests::stage::{Machine, Node, SMALL, Stage, Transport};
use godwit_tests::{Process, Stream, require_kvm, until};
use godwit_vmm::api::types::{GuestState, MigrationState};
use godwit_vmm::demo::link::{CutAt, Direction, Fate, Options, Proxy, Tap};

use crate::GODWIT;
use crate::moving::{self, is_whole, runs_on};

/// Names by which a receiver on this host is dialled.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

/// A stage, and a `--tls-dir` for both sides.
fn stage() -> (Stage, String) {
    let stage = Stage::new(GODWIT);
    let tls_dir = Authority::new().equip(stage.folder().path("tls"), &NAMES);
    (stage, tls_dir)
}

/// A proxy on the loopback.
fn link(to: &Address, options: Options) -> Proxy {
    let here = "tcp:127.0.0.1:0".parse().expect("an address");
    Proxy::start(&here, to.clone(), options).expect("starts")
}

/// `migrate` fails with this reason, and the guest runs on at the source.
fn fails(mut migrate: Process, source: &Node, says: &str) {
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains(says), "{}", migrate.failure(&format!("does not say {says:?}")));
    let status = source.status();
    assert!(status.owner.owns, "{status:?}");
    source.until("a guest that runs", |status| status.guest == GuestState::Running);
}

/// Remembers the bytes that pass.
struct Recorder(Arc<Mutex<Vec<u8>>>);

impl Tap for Recorder {
    fn see(&mut self, bytes: &mut [u8]) -> Fate {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Fate::Pass
    }
}

#[test]
fn a_guest_moves_over_tls_and_nothing_travels_in_the_clear() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let mut source = stage.launch_filled("source", &Machine { cpus: 2, ..SMALL });
    let options = ["--tls-dir", &tls_dir];
    let destination = stage.receive_with("destination", Transport::Tcp, &options);
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let taps = {
        let bytes = Arc::clone(&bytes);
        move |_, _| Some(Box::new(Recorder(Arc::clone(&bytes))) as Box<dyn Tap>)
    };
    let link = link(destination.address(), Options { link: None, taps: Some(Box::new(taps)) });
    stage.migrate_with(&source, link.address(), &options).wait_success();
    assert_eq!(destination.verdict(2).corrupt, 0);
    destination.until_migration(MigrationState::Completed);
    source.process.wait_success();

    let bytes = bytes.lock().expect("no panic");
    assert!(bytes.len() > 32 << 20, "{} bytes", bytes.len());
    // Not the preamble, and no page of anything that compresses, such as zeros.
    assert!(!bytes.windows(6).any(|window| window == b"GODWIT"));
    assert!(!bytes.windows(64).any(|window| window.iter().all(|byte| *byte == window[0])));
}

#[test]
fn a_guest_moves_over_tls_through_a_unix_socket_and_back() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let mut source = stage.launch_filled("source", &SMALL);
    let options = ["--tls-dir", &tls_dir];
    let there = stage.receive_with("there", Transport::Unix, &options);
    let back = stage.receive_with("back", Transport::Tcp, &options);
    stage.migrate_with(&source, there.address(), &options).wait_success();
    source.process.wait_success();
    stage.migrate_with(&there, back.address(), &options).wait_success();
    assert_eq!(back.verdict_from_now(1).corrupt, 0);
    assert_eq!(back.status().owner.grant, 2);
}

#[test]
fn certificates_decide_who_comes_in_and_the_guest_of_others_stays_where_it_is() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let equip =
        |name: &str, names: &[&str]| Authority::new().equip(stage.folder().path(name), names);
    let stranger = equip("stranger", &NAMES);
    let source = stage.launch_filled("source", &SMALL);
    let destination = stage.receive_with("destination", Transport::Tcp, &["--tls-dir", &tls_dir]);
    let to = destination.address();
    let with = |dir: &str| stage.migrate_with(&source, to, &["--tls-dir", dir]);

    // Nobody trusts the other; then the source trusts, and is not trusted.
    fails(with(&stranger), &source, "is not signed by the CA in ca-cert.pem here");
    destination.wait_log("refuses the certificate of this host");
    let ca = |dir: &str| format!("{dir}/ca-cert.pem");
    std::fs::copy(ca(&tls_dir), ca(&stranger)).expect("copies");
    fails(with(&stranger), &source, "refuses the certificate of this host");
    destination.wait_log("the certificate of the source is not signed by the CA");
    fails(stage.migrate(&source, to), &source, "it wants TLS: give --tls-dir");
    destination.wait_log("the source does not use TLS");

    // A receiver of another name.
    let authority = Authority::new();
    let elsewhere = authority.equip(stage.folder().path("elsewhere"), &["host-2"]);
    let mut other = stage.receive_with("other", Transport::Tcp, &["--tls-dir", &elsewhere]);
    let migrate = stage.migrate_with(&source, other.address(), &["--tls-dir", &elsewhere]);
    fails(migrate, &source, "not valid for name \"127.0.0.1\"");
    assert!(other.process.is_running());

    assert_eq!(source.verdict_from_now(1).corrupt, 0);
    with(&tls_dir).wait_success();
    assert_eq!(destination.verdict(1).corrupt, 0);
}

#[test]
fn a_source_with_tls_and_a_receiver_without_say_so() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let source = stage.launch_filled("source", &SMALL);
    for (name, transport) in [("tcp", Transport::Tcp), ("unix", Transport::Unix)] {
        let destination = stage.receive(name, transport);
        let migrate = stage.migrate_with(&source, destination.address(), &["--tls-dir", &tls_dir]);
        fails(migrate, &source, "the receiver does not use TLS: give --tls-dir");
        destination.wait_log("it wants TLS: give --tls-dir to `godwit receive`");
    }
}

/// Where a connection of a link breaks without a farewell: after so many bytes in this direction.
type Cut = Option<(Direction, u64)>;

/// A link of which each connection, in their order, breaks where `cuts` say, and none after those.
fn link_that_cuts(to: &Address, cuts: &'static [Cut]) -> Proxy {
    let taps = move |number: usize, direction| {
        let (cut_in, bytes) = cuts.get(number).copied().flatten()?;
        (cut_in == direction).then(|| Box::new(CutAt::new(bytes)) as Box<dyn Tap>)
    };
    link(to, Options { link: None, taps: Some(Box::new(taps)) })
}

/// The urgent channel breaks in its handshake, at either side, and behind it; the bulk channel in
/// its handshake and in the first round.
#[test]
fn a_connection_with_tls_that_is_cut_before_the_switchover_leaves_the_guest_where_it_is() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let mut source = stage.launch_filled("source", &SMALL);
    let options = ["--tls-dir", &tls_dir];
    let destination = stage.receive_with("destination", Transport::Tcp, &options);
    let cuts: [(&[Cut], bool); 6] = [
        (&[Some((Direction::ToDestination, 64))], false),
        (&[Some((Direction::ToSource, 64))], false),
        (&[Some((Direction::ToDestination, 3000))], false),
        (&[None, Some((Direction::ToDestination, 64))], true),
        (&[None, Some((Direction::ToSource, 64))], true),
        (&[None, Some((Direction::ToDestination, 8 << 20))], true),
    ];
    let mut log = destination.process.new_lines(Stream::Stderr);
    for (cuts, accepted) in cuts {
        let link = link_that_cuts(destination.address(), cuts);
        let options = [&options[..], &["--mode", "hybrid"]].concat();
        moving::fails(stage.migrate_with(&source, link.address(), &options));
        runs_on(&source);
        if accepted {
            log.wait("that it listens again", |line| line.contains("listening again"));
        }
    }
    until("nobody on his way", || (destination.status().guest == GuestState::None).then_some(()));
    stage.migrate_with(&source, destination.address(), &options).wait_success();
    is_whole(&destination, &source);
    source.process.wait_success();
}

/// After the switchover: while pages are pushed, again and again, and while the session is resumed,
/// in the handshake of each channel.
#[test]
fn connections_with_tls_that_are_cut_are_dialled_again_until_they_hold() {
    require_kvm!();
    const CUTS: &[Cut] = &[
        None,
        Some((Direction::ToDestination, 12 << 20)),
        // The channel that resumes, and the bulk channel behind it.
        Some((Direction::ToDestination, 64)),
        Some((Direction::ToSource, 64)),
        None,
        Some((Direction::ToDestination, 64)),
        None,
        Some((Direction::ToSource, 64)),
        None,
        Some((Direction::ToDestination, 8 << 20)),
        None,
        Some((Direction::ToDestination, 8 << 20)),
    ];
    let (stage, tls_dir) = stage();
    let mut source = stage.launch_filled("source", &SMALL);
    let options = ["--tls-dir", &tls_dir, "--compression", "none"];
    let destination = stage.receive_with("destination", Transport::Tcp, &options[..2]);
    let link = link_that_cuts(destination.address(), CUTS);
    let mut migrate = stage.migrate_with(&source, link.address(), &options);
    migrate.wait_success();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("lost after the switchover"), "{}", migrate.failure("says not how"));
    is_whole(&destination, &source);
    let interruptions = destination.migration().interruptions;
    assert!(interruptions >= 3, "{interruptions}");
    source.process.wait_success();
}

#[test]
fn only_who_says_so_listens_where_others_can_come() {
    let (stage, tls_dir) = stage();
    let state = stage.folder().path("state").display().to_string();
    let receive = |words: &[&str]| {
        stage.command("receive", &[&["receive", "--state-dir", &state][..], words].concat())
    };
    let mut refused = receive(&["tcp:0.0.0.0:0"]);
    refused.wait_failure();
    let stderr = refused.text(Stream::Stderr);
    let says = ["tcp:0.0.0.0:0", "--tls-dir", "--insecure"];
    assert!(says.iter().all(|what| stderr.contains(what)), "{}", refused.failure("says not what"));
    for words in [
        &["tcp:0.0.0.0:0", "--insecure"][..],
        &["tcp:0.0.0.0:0", "--tls-dir", &tls_dir],
        &["tcp:localhost:0"],
    ] {
        let receiver = receive(words);
        receiver.wait_line(Stream::Stderr, "an address", |line| line.contains("listening at "));
    }
    let mut both = receive(&["tcp:127.0.0.1:0", "--insecure", "--tls-dir", &tls_dir]);
    both.wait_failure();
    assert!(both.text(Stream::Stderr).contains("cannot be used with"));
}

#[test]
fn certificates_that_are_missing_are_named_before_anything_happens() {
    require_kvm!();
    let (stage, tls_dir) = stage();
    let key = |side: &str| format!("{tls_dir}/{side}-key.pem");
    let source = stage.launch("source", &SMALL);
    let destination = stage.receive_with("destination", Transport::Tcp, &["--tls-dir", &tls_dir]);
    for side in ["server", "client"] {
        std::fs::remove_file(key(side)).expect("removes");
    }
    let migrate = stage.migrate_with(&source, destination.address(), &["--tls-dir", &tls_dir]);
    fails(migrate, &source, &key("client"));
    let mut again =
        stage.command("receive", &["receive", "tcp:127.0.0.1:0", "--tls-dir", &tls_dir]);
    again.wait_failure();
    assert!(
        again.text(Stream::Stderr).contains(&key("server")),
        "{}",
        again.failure("names it not")
    );
}
