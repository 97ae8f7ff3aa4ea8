//! The decoders of frames, messages and runs of pages.

use godwit_migration::limits::{ZERO_PAGES_PER_RUN_MAX, data_pages_per_run_max, run_bytes_max};
use godwit_migration::page::Paging;
use godwit_migration::wire::{
    Encoding, HEADER_BYTES, Kind, Message, PushFrame, RUN_HEAD_BYTES, RunHead, WireError, decode,
    encode, unpack,
};
use godwit_uffd::page::PageSize;
use godwit_uffd_testing::fuzz::Bytes;

/// Sizes of guests.
const PAGES: [u32; 5] = [0, 1, 70, 5000, u32::MAX - 1];

/// Reads bytes as what comes on an urgent channel and on a bulk channel of one guest.
///
/// # Panics
/// If something is taken for a message that is none, or lies outside of the guest.
pub fn frames(bytes: &[u8]) {
    let mut input = Bytes::new(bytes);
    let (Some(count), Some(choice)) = (input.pick(&PAGES), input.byte()) else { return };
    let mut rest = input.some(usize::MAX).to_vec();
    if choice & 1 == 0 {
        // A fuzzer does not guess checksums.
        seal_runs(&mut rest);
    }
    let size = if choice & 2 == 0 { PageSize::BASE } else { PageSize::HUGE };
    let paging = Paging { size, count };
    urgent(&rest, paging);
    bulk(&rest, paging);
}

/// Gives the runs in `bytes`, which are frames as far as they are, the right checksums.
fn seal_runs(bytes: &mut [u8]) {
    let mut at = 0;
    while let Ok(Some(frame)) = decode(&bytes[at..]) {
        let all = frame.wire_bytes();
        if frame.kind == Kind::Pages && all >= RUN_HEAD_BYTES {
            seal(&mut bytes[at..at + all]);
        }
        at += all;
    }
}

fn seal(frame: &mut [u8]) {
    let fields = crc32c::crc32c(&frame[HEADER_BYTES..HEADER_BYTES + 12]);
    let crc = crc32c::crc32c_append(fields, &frame[RUN_HEAD_BYTES..]);
    frame[HEADER_BYTES + 16..HEADER_BYTES + 20].copy_from_slice(&crc.to_le_bytes());
}

fn urgent(mut bytes: &[u8], paging: Paging) {
    while let Ok(Some(frame)) = decode(bytes) {
        assert!(frame.wire_bytes() <= bytes.len(), "it is there");
        bytes = &bytes[frame.wire_bytes()..];
        let Ok(message) = Message::read(&frame, paging) else { continue };
        assert_eq!(message.kind(), frame.kind);
        inside(&message, paging);
        comes_back(&message, paging);
    }
}

/// What a message says about pages is inside the guest and the limits.
fn inside(message: &Message<'_>, paging: Paging) {
    match message {
        Message::Pages(head, contents) => {
            check_head(head, paging);
            assert_eq!(head.content_bytes(), contents.len());
            assert_eq!(head.verify(contents), Ok(()));
            open(head, contents);
        }
        Message::Request(run) => {
            assert!(run.count > 0 && run.end() <= u64::from(paging.count), "{run}");
            assert!(run.count <= data_pages_per_run_max(paging.size), "{run}");
        }
        Message::Discard(part) | Message::Received(part) => {
            let words = u64::from(part.first) + part.words.len() as u64;
            assert!(words <= u64::from(paging.count.div_ceil(64)), "{words} words of {paging:?}");
        }
        Message::Offer(offer) => {
            if let Ok(offered) = offer.paging() {
                let bytes: u64 = offer.memslots.iter().map(|slot| slot.bytes).sum();
                assert_eq!(bytes, offered.bytes());
            }
        }
        _ => {}
    }
}

fn check_head(head: &RunHead, paging: Paging) {
    assert!(head.run.count > 0 && head.run.end() <= u64::from(paging.count), "{head:?}");
    assert!(head.content_bytes() <= run_bytes_max(paging.size), "{head:?}");
    let limit = match head.encoding {
        Encoding::Zero | Encoding::Poison => ZERO_PAGES_PER_RUN_MAX,
        Encoding::Raw | Encoding::Word | Encoding::Lz4 | Encoding::Same => {
            data_pages_per_run_max(paging.size)
        }
    };
    assert!(head.run.count <= limit, "{head:?}");
}

fn open(head: &RunHead, contents: &[u8]) {
    if let Encoding::Word | Encoding::Lz4 = head.encoding {
        let unpacked = unpack(head, contents, &mut vec![0; head.page_bytes()]);
        assert!(unpacked.is_ok() || head.encoding == Encoding::Lz4, "{unpacked:?}");
    }
}

/// A message that was understood is understood again, and means the same.
fn comes_back(message: &Message<'_>, paging: Paging) {
    let mut again = Vec::new();
    encode(message, &mut again);
    let frame = decode(&again).expect("its own").expect("it is whole");
    assert_eq!(frame.wire_bytes(), again.len());
    assert_eq!(Message::read(&frame, paging).as_ref(), Ok(message));
}

fn bulk(mut bytes: &[u8], paging: Paging) {
    while let Some((head, rest)) = bytes.split_first_chunk::<RUN_HEAD_BYTES>() {
        let head = match PushFrame::decode(head, paging) {
            Ok(PushFrame::Pages(head)) => head,
            Ok(PushFrame::End) => {
                bytes = rest;
                continue;
            }
            Err(_) => return,
        };
        check_head(&head, paging);
        let Some((contents, behind)) = rest.split_at_checked(head.content_bytes()) else { return };
        match head.verify(contents) {
            Ok(()) => open(&head, contents),
            Err(WireError::Checksum { got, expected, .. }) => assert_ne!(got, expected),
            Err(error) => panic!("{error}"),
        }
        bytes = behind;
    }
}
