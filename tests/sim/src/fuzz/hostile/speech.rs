//! What a hostile peer says: messages of the right form, with numbers that are now right and now
//! wrong.

use godwit_migration::limits::data_pages_per_run_max;
use godwit_migration::wire::{
    Abort, Accept, BitmapPart, Complete, Encoding, MemslotLayout, Message, Mode, Offer, PushFrame,
    RunBuffer, RunHead, Section,
};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use godwit_uffd_testing::fuzz::Bytes;

use crate::disk::GUEST;
use crate::fuzz::words::number;
use crate::guest::PAGE;

/// A message of any kind but pages, which [`contents`] makes.
pub fn message(bytes: &mut Bytes<'_>, pages: u32) -> Option<Message<'static>> {
    Some(match bytes.below(24)? {
        0 | 1 => Message::Offer(offer(bytes, pages)?),
        2 => Message::Accept(Accept { session: [bytes.byte()?; 16] }),
        3 | 4 => Message::Package(package(bytes)?),
        5 => Message::Loaded { transfer: transfer(bytes)? },
        6 | 7 => Message::Grant { transfer: transfer(bytes)? },
        8 => Message::Owned { transfer: transfer(bytes)? },
        9 => Message::Refused { transfer: transfer(bytes)?, reason: "no".into() },
        10 => Message::Abort(Abort { reason: "no".into() }),
        11 => Message::Request(PageRun { first: PageIndex(number(bytes)?), count: 1 }),
        12 => Message::Complete(Complete::moved_on()),
        13 => Message::Released,
        14 => Message::Alive,
        15 | 16 => Message::Discard(part(bytes, pages)?),
        17 | 18 => Message::Round { number: bytes.below(4)?.into() },
        19 => Message::RoundReady { number: bytes.below(4)?.into() },
        20 => Message::RoundDone { number: bytes.below(4)?.into() },
        21 => Message::Received(part(bytes, pages)?),
        22 => Message::Resumed { epoch: bytes.below(4)?.into() },
        _ => Message::Gone { transfer: transfer(bytes)? },
    })
}

/// Most of the time the first.
fn transfer(bytes: &mut Bytes<'_>) -> Option<u64> {
    bytes.pick(&[1, 1, 1, 1, 1, 2, 0, u64::MAX])
}

fn offer(bytes: &mut Bytes<'_>, pages: u32) -> Option<Offer> {
    let low = u64::from(pages.div_ceil(2)) * 4096;
    let high = u64::from(pages) * 4096 - low;
    let mut memslots =
        vec![MemslotLayout { gpa: 0, bytes: low }, MemslotLayout { gpa: 1 << 32, bytes: high }];
    if bytes.below(8)? == 0 {
        let slots = bytes.below(70)?;
        let slot = |bytes: &mut Bytes<'_>| {
            Some(MemslotLayout { gpa: bytes.word()?, bytes: bytes.word()? })
        };
        memslots = (0..slots).map_while(|_| slot(bytes)).collect();
    }
    Some(Offer {
        guest: GUEST,
        transfer: transfer(bytes)?,
        page_bytes: bytes.pick(&[4096, 4096, 4096, 4096, 4096, 1, 1 << 21])?,
        mode: bytes.pick(&[Mode::Postcopy, Mode::Precopy, Mode::Hybrid])?,
        connections: bytes.pick(&[1, 1, 2, 3, 32, 33, 0, 255])?,
        memslots,
        config: vec![],
        requirements: vec![],
        base: None,
    })
}

fn package(bytes: &mut Bytes<'_>) -> Option<Vec<Section>> {
    let sections = bytes.below(3)?;
    let section = |id| Section { id, version: 1, bytes: vec![0; 3] };
    Some((0..sections.into()).map(section).collect())
}

/// A part of a set, which may reach behind the guest.
fn part(bytes: &mut Bytes<'_>, pages: u32) -> Option<BitmapPart> {
    let words = pages.div_ceil(64) + 1;
    let first = u32::from(bytes.byte()?) % words;
    let length = bytes.below(3)?;
    let words = (0..length).map_while(|_| bytes.word()).collect();
    Some(BitmapPart { first, words })
}

/// A frame of pages, which may be outside the guest, or not what they should be; or the end.
pub fn contents(bytes: &mut Bytes<'_>, pages: u32) -> Option<Vec<u8>> {
    let kind = bytes.below(8)?;
    let first = number(bytes)? % (pages + 2);
    // A frame of data has room for so many; others may claim more than they can have.
    let room = data_pages_per_run_max(PageSize::BASE);
    let most = if kind < 5 { room + 2 } else { room };
    let longest = u32::from(bytes.byte()?) % most + 1;
    // A run that goes to the end of the guest is worth more than one that goes beyond it.
    let inside = longest.min(pages.saturating_sub(first)).max(1);
    let count = if bytes.below(16)? == 0 { longest } else { inside };
    let run = PageRun { first: PageIndex(first), count };
    let fill = bytes.byte()?;
    let sealed = |encoding, contents: &[u8]| {
        let head = PushFrame::Pages(RunHead::new(PageSize::BASE, run, encoding, contents)).encode();
        [&head, contents].concat()
    };
    Some(match kind {
        0 => PushFrame::End.encode().to_vec(),
        1 => sealed(Encoding::Zero, &[]),
        2 => sealed(Encoding::Poison, &[]),
        3 => sealed(Encoding::Word, &[fill; 8]),
        4 => sealed(Encoding::Lz4, &[&[fill][..], bytes.some(fill.into())].concat()),
        5 => {
            let mut buffer = RunBuffer::new(PageSize::BASE);
            buffer.pages_mut(count).fill(fill);
            buffer.frame(run, 0, true).1.to_vec()
        }
        6 => {
            let mut frame = sealed(Encoding::Raw, &vec![fill; PAGE * count as usize]);
            let last = frame.len() - 1;
            frame[last] ^= 1;
            frame
        }
        _ => sealed(Encoding::Raw, &vec![fill; PAGE * count as usize]),
    })
}
