//! The first bytes of a connection: preambles and hellos, as both sides read them.

use godwit_migration::limits::PREAMBLE_TIMEOUT;
use godwit_migration::wire::{
    BULK_HELLO_BYTES, BulkHello, Channel, PREAMBLE_BYTES, Preamble, RESUME_HELLO_BYTES,
    ResumeHello, VERSION, VERSION_MIN,
};
use godwit_uffd_testing::fuzz::Bytes;

use crate::dial::{Dial, Reach};
use crate::door::{Door, Greeted, Greeting};
use crate::env::{Env, Me};
use crate::net::End;

/// The session that is under way at the door.
const SESSION: [u8; 16] = *b"a known session!";

/// Reads bytes as the first of a connection: at the side that dialled, and at the one that
/// answers, whole and in pieces.
///
/// # Panics
/// If somebody is taken for what he is not, or is waited for too long.
pub fn handshake(bytes: &[u8]) {
    decoders(bytes);
    let mut input = Bytes::new(bytes);
    let (Some(seed), Some(how)) = (input.byte(), input.byte()) else { return };
    let rest = input.some(usize::MAX);
    let channel = [Channel::Urgent, Channel::Bulk, Channel::Resume][usize::from(how) % 3];
    // What comes behind a good beginning is worth a try of its own.
    let good = how.is_multiple_of(2);
    let said = if good { [&begin(channel), rest].concat() } else { rest.to_vec() };
    dialled(seed, channel, &said);
    greeted(seed, &said);
}

fn decoders(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk()
        && let Ok(preamble) = Preamble::decode(first)
    {
        assert!(preamble.version >= VERSION_MIN && preamble.version_min <= VERSION);
        assert_eq!(preamble.encode()[..14], first[..14]);
    }
    if let Some(hello) = bytes.first_chunk::<BULK_HELLO_BYTES>() {
        assert_eq!(BulkHello::decode(hello).encode()[..20], hello[..20]);
    }
    if let Some(hello) = bytes.first_chunk::<RESUME_HELLO_BYTES>() {
        assert_eq!(ResumeHello::decode(hello).encode()[..44], hello[..44]);
    }
}

/// A preamble, and the session that the door knows.
fn begin(channel: Channel) -> Vec<u8> {
    let preamble = Preamble::ours(channel).encode();
    match channel {
        Channel::Urgent => preamble.to_vec(),
        Channel::Bulk => [&preamble[..], &SESSION].concat(),
        // A resumed session is named behind the guest and the transfer.
        Channel::Resume => [&preamble[..], &[0; 24], &SESSION].concat(),
    }
}

/// Sends `bytes` to the other end, in pieces of the run's choice, and closes now and then.
fn send(env: &mut Env, from: End, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let length = 1 + env.rng.below(bytes.len());
        // Whoever hangs up early does not hear the rest.
        let _ = env.net.send(from, env.now, &bytes[..length], false);
        bytes = &bytes[length..];
    }
    if env.rng.chance(30) {
        env.net.close(from, env.now);
    }
}

/// The side that dials, and what it makes of the answer.
fn dialled(seed: u8, channel: Channel, answer: &[u8]) {
    let mut env = Env::new(seed.into(), None, false);
    let what = (channel, Vec::new());
    let (mut dial, peer) = Dial::begin(&mut env, (0, 1), what, PREAMBLE_TIMEOUT, Reach::Listener);
    let peer = peer.expect("somebody listens");
    send(&mut env, peer, answer);
    let give_up = env.now + 3 * PREAMBLE_TIMEOUT;
    let ended = loop {
        env.now = env.now.max(dial.ready_at(&env));
        assert!(env.now <= give_up, "a dial goes on and on");
        if let Some(ended) = dial.step(&mut env) {
            break ended;
        }
    };
    let is_godwit = answer.first_chunk().is_some_and(|first| Preamble::decode(first).is_ok());
    assert!(ended.is_err() || is_godwit, "{answer:x?} is taken for an answer");
}

/// The side that answers.
fn greeted(seed: u8, said: &[u8]) {
    let mut env = Env::new(seed.into(), None, false);
    let stream = env.net.connect(0, 1);
    let (theirs, ours) = (End { stream, side: 0 }, End { stream, side: 1 });
    let mut door = Door { session: Some(SESSION), ..Door::default() };
    send(&mut env, theirs, said);
    let mut greeting = Greeting::new(ours, env.now);
    let give_up = env.now + 5 * PREAMBLE_TIMEOUT;
    let me = Me { host: 1, id: 1 };
    let greeted = loop {
        env.now = env.now.max(greeting.ready_at(&env));
        assert!(env.now <= give_up, "a greeting goes on and on");
        if let Some(greeted) = greeting.step(&mut env, me, &mut door) {
            break greeted;
        }
    };
    let wanted = said.first_chunk().map(Preamble::decode);
    let wanted = wanted.and_then(Result::ok).map(|preamble| preamble.channel);
    let knows =
        |at: usize| said.get(PREAMBLE_BYTES + at..).is_some_and(|s| s.starts_with(&SESSION));
    match greeted {
        Greeted::Arrival(_) => assert_eq!(wanted, Some(Channel::Urgent)),
        Greeted::Bulk(..) => assert!(wanted == Some(Channel::Bulk) && knows(0), "{said:x?}"),
        Greeted::Resume(..) => assert!(wanted == Some(Channel::Resume) && knows(24), "{said:x?}"),
        Greeted::Over => {}
    }
}
