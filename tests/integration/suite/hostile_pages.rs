//! The test is the source, and its pages are not what their heads say: none of them is installed.

use godwit_migration::wire::{Encoding, Kind, PushFrame, RUN_HEAD_BYTES, RunHead};
use godwit_tests::require_kvm;
use godwit_tests::speaker::Rehearsal;
use godwit_tests::stage::{SMALL, Stage, Transport};
use godwit_uffd::page::{PageRun, PageSize};

use crate::GODWIT;
use crate::hostile_source::{PAGES, ends, pushes, run, still_receives};

/// Where the number of the encoding is in a frame.
const ENCODING_AT: usize = 16;
/// Where its checksum is.
const CRC_AT: usize = 24;

/// A run of pages with these contents on the wire.
fn pages(run: PageRun, encoding: Encoding, contents: &[u8]) -> Vec<u8> {
    let head = PushFrame::Pages(RunHead::new(PageSize::BASE, run, encoding, contents)).encode();
    [&head[..], contents].concat()
}

/// The same with one bit changed on the way.
fn flipped(mut frame: Vec<u8>, byte: usize) -> Vec<u8> {
    frame[byte] ^= 1;
    frame
}

fn encoded_as(mut frame: Vec<u8>, encoding: u8) -> Vec<u8> {
    frame[ENCODING_AT] = encoding;
    frame
}

/// An lz4 block of so many pages of zeros, which is 255 times as short.
fn block_of_zeros(pages: usize) -> Vec<u8> {
    // One literal, a copy of it from one byte before, and the last five bytes as literals.
    let copied = pages * 4096 - 1 - 5 - 4 - 15;
    let mut block = vec![0x1f, 0, 1, 0];
    block.extend(vec![255; copied / 255]);
    block.push(u8::try_from(copied % 255).expect("less than 255"));
    block.extend([0x50, 0, 0, 0, 0, 0]);
    block
}

/// What comes on the bulk channel, and what the receiver says about it.
fn lies() -> Vec<(&'static str, Vec<u8>)> {
    let raw = || pages(run(64, 2), Encoding::Raw, &[0x11; 8192]);
    let zero = || pages(run(5, 1), Encoding::Zero, &[]);
    let word = || pages(run(70, 20), Encoding::Word, &[7; 8]);
    let lz4 = |count, block: &[u8]| pages(run(100, count), Encoding::Lz4, block);
    vec![
        ("the checksum of pages 64..66 is wrong", flipped(raw(), RUN_HEAD_BYTES)),
        ("the checksum of pages 64..66 is wrong", flipped(raw(), RUN_HEAD_BYTES + 8191)),
        ("the checksum of pages 64..66 is wrong", flipped(raw(), CRC_AT)),
        // A page in another's place.
        ("the checksum of pages 65..67 is wrong", flipped(raw(), 8)),
        ("the checksum of pages 4..5 is wrong", flipped(zero(), 8)),
        ("the checksum of pages 5..6 is wrong", encoded_as(zero(), 4)),
        ("the checksum of pages 70..90 is wrong", flipped(word(), RUN_HEAD_BYTES + 3)),
        ("the checksum of pages 100..102 is wrong", flipped(lz4(2, &block_of_zeros(2)), 35)),
        ("pages of a base", encoded_as(zero(), 5)),
        ("unknown encoding 6", encoded_as(zero(), 6)),
        ("not as long as its run", encoded_as(raw(), 2)),
        ("not as long as its run", encoded_as(raw(), 3)),
        ("not as long as its run", encoded_as(raw(), 4)),
        ("not as long as its run", encoded_as(word(), 0)),
        // Bombs: many more pages than their run has, and fewer.
        ("not an lz4 block of its run", lz4(1, &block_of_zeros(200))),
        ("not an lz4 block of its run", lz4(63, &block_of_zeros(64))),
        ("an lz4 block that is shorter than its run", lz4(2, &block_of_zeros(1))),
        ("not an lz4 block of its run", lz4(2, &[0xff; 300])),
        ("at most 64 at once", pages(run(0, 65), Encoding::Word, &[7; 8])),
        ("pages 16383..16385", pages(run(PAGES - 1, 2), Encoding::Poison, &[])),
    ]
}

#[test]
fn pages_that_are_not_what_was_sent_are_never_installed() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let mut rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    for (says, frame) in lies() {
        rehearsal.offer.transfer += 1;
        ends(&receiver, "listening again", says, || {
            pushes(&rehearsal, receiver.address(), &frame);
        });
        // The same on the channel of requests, once pages may come there.
        rehearsal.offer.transfer += 1;
        ends(&receiver, "listening again", says, || {
            let (mut urgent, _bulk) = rehearsal.until_loaded(receiver.address());
            urgent.peer.send(&frame).expect("takes it");
            urgent.expect(Kind::Refused);
        });
    }
    still_receives(&stage, &receiver);
}

/// Pages that the source lost are lost here, too, and counted; where the kernel has no way to say
/// so to the guest, the guest does not come.
#[test]
fn pages_that_the_source_lost_are_poisoned_or_refused() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let rehearsal = Rehearsal::of(&stage, &SMALL);
    let receiver = stage.receive("receiver", Transport::Tcp);
    let (mut urgent, mut bulk) = rehearsal.until_loaded(receiver.address());
    let methods = receiver.status().memory.expect("pages are missing");
    let lost = pages(run(9000, 9), Encoding::Poison, &[]);
    if methods.poison.starts_with("refused") {
        ends(&receiver, "listening again", "POISON does not work", || {
            bulk.peer.send(&lost).expect("takes it");
            urgent.expect(Kind::Refused);
        });
        return;
    }
    bulk.peer.send(&lost).expect("takes it");
    let status = receiver.until("lost pages", |status| {
        status.migration.as_ref().is_some_and(|migration| migration.pages.poisoned == 9)
    });
    let classes = status.migration.expect("a migration").classes;
    assert_eq!((classes.poisoned.pages, classes.poisoned.bytes), (9, 32));
    // They are there as any page is: once.
    ends(&receiver, "listening again", "was sent twice", || {
        bulk.peer.send(&pages(run(9008, 1), Encoding::Zero, &[])).expect("takes it");
        urgent.expect(Kind::Refused);
    });
    still_receives(&stage, &receiver);
}
