//! What a fuzzer feeds: any bytes are read as messages, or as operations on the model alone, and
//! what comes of them has to be possible. Operations that once came to something else are kept in
//! `tests/fuzz/regressions`, with messages of each kind, and repeated by a test of this crate.

mod bytes;
mod check;
mod operation;
mod player;

pub use bytes::Bytes;
use godwit_uffd::Event;
use godwit_uffd::abi::{MESSAGE_BYTES, RawMessage};
use godwit_uffd::message::{MessageError, decode, decode_all, encode};

/// Decodes bytes as messages: whole ones come out as they went in, all else is an error that
/// says what is wrong.
///
/// # Panics
///
/// If the decoder is wrong.
pub fn messages(bytes: &[u8]) {
    let decoded: Vec<_> = decode_all(bytes).collect();
    assert_eq!(decoded.len(), bytes.len().div_ceil(MESSAGE_BYTES), "one for each message");
    for (part, message) in bytes.chunks(MESSAGE_BYTES).zip(decoded) {
        match message {
            Ok(message) => one_message(part, message),
            Err(MessageError::Length { bytes }) => {
                assert_eq!(bytes, part.len());
                assert!(bytes < MESSAGE_BYTES, "a whole message is not cut");
            }
            Err(MessageError::Kind { kind }) => assert_eq!(kind, part[0]),
            Err(error @ MessageError::Flags { .. }) => panic!("{error} before it has a meaning"),
        }
    }
}

fn one_message(bytes: &[u8], message: RawMessage) {
    let again = encode(message);
    assert_eq!(decode(&again), Ok(message), "it comes back");
    let kept = |(ours, given): (&u8, &u8)| ours == given || *ours == 0;
    assert!(again.iter().zip(bytes).all(kept), "{message:?} is {again:x?} and was {bytes:x?}");
    match (Event::try_from(message), message) {
        (Ok(_), _) => {}
        (Err(MessageError::Flags { flags }), RawMessage::Pagefault { flags: given, .. }) => {
            assert_eq!(flags, given);
        }
        (Err(error), _) => panic!("{message:?}: {error}"),
    }
}

/// Reads bytes as operations, does them on a model, and ends it in order.
///
/// # Panics
///
/// If the model does what it never may.
pub fn operations(bytes: &[u8]) {
    player::play(&mut bytes::Bytes::new(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    use crate::differential::random::Random;

    /// The inputs that are kept for a target, and the names of their files.
    fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fuzz/regressions")
            .join(target);
        let files = fs::read_dir(&folder).expect("a folder of inputs");
        files
            .map(|file| {
                let path = file.expect("a file").path();
                let bytes = fs::read(&path).expect("an input");
                (path.display().to_string(), bytes)
            })
            .collect()
    }

    fn random_bytes(random: &mut Random, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).flat_map(|_| random.word().to_ne_bytes());
        words.take(length).collect()
    }

    #[test]
    fn kept_inputs_pass() {
        for (target, run) in [("messages", messages as fn(&[u8])), ("operations", operations)] {
            let inputs = kept(target);
            assert!(!inputs.is_empty(), "no inputs of {target}");
            for (name, bytes) in inputs {
                eprintln!("{name}");
                run(&bytes);
            }
        }
    }

    #[test]
    fn random_bytes_are_messages_or_errors() {
        let mut random = Random::new(1);
        for length in 0..200 {
            let mut bytes = random_bytes(&mut random, length);
            messages(&bytes);
            bytes.chunks_mut(MESSAGE_BYTES).for_each(|one| one[0] = 0x12 + one[0] % 5);
            messages(&bytes);
        }
    }

    #[test]
    fn random_bytes_are_operations() {
        let mut random = Random::new(1);
        for _ in 0..300 {
            operations(&random_bytes(&mut random, 600));
        }
    }
}
