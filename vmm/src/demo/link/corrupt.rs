//! A tap that changes one page: the proof that the guest would notice what a checksum does not.

use std::sync::{Arc, OnceLock};

use godwit_migration::page::Paging;
use godwit_migration::wire::{
    BULK_HELLO_BYTES, Channel, Encoding, PREAMBLE_BYTES, Preamble, PushFrame, RUN_HEAD_BYTES,
    RunHead,
};
use godwit_uffd::page::{PageIndex, PageSize};

use super::tap::{Fate, Tap};

/// Bytes by which a bulk channel says to which migration it belongs.
const SESSION_BYTES: usize = BULK_HELLO_BYTES;
/// The first byte of the page that is changed: somewhere in the middle.
const BYTE_IN_PAGE: usize = 2025;
/// The bits that are changed from there on: the polynomial of CRC-32C itself, as it is on the wire.
/// Whatever it is added to keeps its checksum, so that only the guest can notice.
const CHANGE: [u8; 5] = [0xf1, 0x76, 0xec, 0x05, 0x01];

/// The page that was changed, once one was. Shared by the taps of all connections.
#[derive(Debug, Clone, Default)]
pub struct Corrupted(Arc<OnceLock<PageIndex>>);

impl Corrupted {
    /// The page, if any was changed yet.
    pub fn page(&self) -> Option<PageIndex> {
        self.0.get().copied()
    }
}

/// Follows the frames of a bulk channel to the first page that travels as it is, from a given one
/// on, and changes a few bytes of it. Other channels pass as they are.
#[derive(Debug)]
pub struct Corrupter {
    corrupted: Corrupted,
    first: PageIndex,
    page_count: u32,
    state: State,
}

/// What the next bytes belong to.
#[derive(Debug)]
enum State {
    Preamble(Vec<u8>),
    Session(usize),
    Head(Vec<u8>),
    Contents {
        left: usize,
        /// Bytes before those to change, and those that are left of the change.
        target: Option<(usize, &'static [u8])>,
    },
    /// Nothing more is to be done here.
    Done,
}

impl Corrupter {
    /// Changes a page from `first` on, of a guest of `page_count` base pages.
    pub fn new(first: PageIndex, page_count: u32, corrupted: Corrupted) -> Corrupter {
        Corrupter { corrupted, first, page_count, state: State::Preamble(Vec::new()) }
    }

    /// Takes what it can from the front of `bytes` and says how many that were, at least one.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.state {
            State::Preamble(seen) => {
                let taken = collect(seen, bytes, PREAMBLE_BYTES);
                if let Ok(whole) = <[u8; PREAMBLE_BYTES]>::try_from(seen.as_slice()) {
                    let bulk = Preamble::decode(&whole).is_ok_and(|p| p.channel == Channel::Bulk);
                    self.state = if bulk { State::Session(SESSION_BYTES) } else { State::Done };
                }
                taken
            }
            State::Session(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.state = State::Head(Vec::new());
                }
                taken
            }
            State::Head(seen) => {
                let taken = collect(seen, bytes, RUN_HEAD_BYTES);
                if let Ok(whole) = <[u8; RUN_HEAD_BYTES]>::try_from(seen.as_slice()) {
                    self.state = self.after_head(&whole);
                }
                taken
            }
            State::Contents { left, target } => {
                let taken = bytes.len().min(*left);
                *target =
                    target.and_then(|(at, change)| change_at(&mut bytes[..taken], at, change));
                *left -= taken;
                if *left == 0 {
                    self.state = State::Head(Vec::new());
                }
                taken
            }
            State::Done => bytes.len(),
        }
    }

    fn after_head(&self, head: &[u8; RUN_HEAD_BYTES]) -> State {
        let Ok(PushFrame::Pages(head)) = PushFrame::decode(head, Paging::base(self.page_count))
        else {
            return State::Done;
        };
        match head.content_bytes() {
            0 => State::Head(Vec::new()),
            left => State::Contents { left, target: self.choose(&head) },
        }
    }

    /// What to change in the run and where, if it has a page to change and none was before.
    fn choose(&self, head: &RunHead) -> Option<(usize, &'static [u8])> {
        let page = head.run.first.max(self.first);
        let has = head.encoding == Encoding::Raw && u64::from(page.0) < head.run.end();
        let chosen = has && self.corrupted.0.set(page).is_ok();
        let pages = (page.0 - head.run.first.0) as usize;
        chosen.then_some((pages * PageSize::BASE.bytes() + BYTE_IN_PAGE, &CHANGE[..]))
    }
}

impl Tap for Corrupter {
    fn see(&mut self, mut bytes: &mut [u8]) -> Fate {
        while !bytes.is_empty() {
            let taken = self.take(bytes);
            bytes = &mut bytes[taken..];
        }
        Fate::Pass
    }
}

/// Adds `change` to `bytes` from `at` on; where and what is left of it behind them.
fn change_at<'a>(bytes: &mut [u8], at: usize, change: &'a [u8]) -> Option<(usize, &'a [u8])> {
    let within = bytes.get_mut(at..).unwrap_or_default();
    let (now, later) = change.split_at(within.len().min(change.len()));
    within.iter_mut().zip(now).for_each(|(byte, bits)| *byte ^= bits);
    let at = at.saturating_sub(bytes.len());
    (!later.is_empty()).then_some((at, later))
}

/// Moves bytes from the front of `bytes` to `seen` until that has `wanted`; says how many.
fn collect(seen: &mut Vec<u8>, bytes: &[u8], wanted: usize) -> usize {
    let taken = bytes.len().min(wanted - seen.len());
    seen.extend_from_slice(&bytes[..taken]);
    taken
}

#[cfg(test)]
mod tests {
    use godwit_uffd::page::PageRun;

    use super::*;

    const PAGES: u32 = 1000;

    fn run(first: u32, count: u32, encoding: Encoding) -> Vec<u8> {
        let contents = match encoding {
            Encoding::Raw => vec![0x55; count as usize * 4096],
            Encoding::Word => vec![0x55; 8],
            Encoding::Lz4 => vec![0x55; 4000],
            Encoding::Zero | Encoding::Poison | Encoding::Same => Vec::new(),
        };
        let run = PageRun { first: PageIndex(first), count };
        let head = RunHead::new(PageSize::BASE, run, encoding, &contents);
        let mut bytes = PushFrame::Pages(head).encode().to_vec();
        bytes.extend(contents);
        bytes
    }

    fn channel(channel: Channel) -> Vec<u8> {
        let mut bytes = Preamble::ours(channel).encode().to_vec();
        bytes.extend([7; SESSION_BYTES]);
        for (first, count, encoding) in [
            (0, 64, Encoding::Raw),
            (64, 400, Encoding::Zero),
            (480, 60, Encoding::Lz4),
            (540, 10, Encoding::Word),
            (490, 20, Encoding::Raw),
            (600, 3, Encoding::Raw),
        ] {
            bytes.extend(run(first, count, encoding));
        }
        bytes.extend(PushFrame::End.encode());
        bytes
    }

    /// The bytes that differ after a pass through a tap, in pieces of `piece` bytes.
    fn changed(sent: &[u8], piece: usize, corrupted: &Corrupted) -> Vec<usize> {
        let mut tap = Corrupter::new(PageIndex(500), PAGES, corrupted.clone());
        let mut received = sent.to_vec();
        for bytes in received.chunks_mut(piece) {
            assert_eq!(tap.see(bytes), Fate::Pass);
        }
        (0..sent.len()).filter(|&at| sent[at] != received[at]).collect()
    }

    #[test]
    fn the_first_page_from_there_on_changes_however_the_bytes_come() {
        let sent = channel(Channel::Bulk);
        let before = PREAMBLE_BYTES + SESSION_BYTES + 5 * RUN_HEAD_BYTES + 64 * 4096 + 4000 + 8;
        let first = before + 10 * 4096 + BYTE_IN_PAGE;
        let wanted: Vec<_> = (first..first + CHANGE.len()).collect();
        for piece in [1, 7, 4096, 65536, usize::MAX] {
            let corrupted = Corrupted::default();
            assert_eq!(changed(&sent, piece, &corrupted), wanted, "pieces of {piece}");
            assert_eq!(corrupted.page(), Some(PageIndex(500)));
            assert!(changed(&sent, piece, &corrupted).is_empty(), "a second channel");
        }
    }

    #[test]
    fn no_checksum_sees_the_change() {
        for at in [0, 1, 4095, 2 * 4096 - CHANGE.len()] {
            let (run, mut contents) = (PageRun { first: PageIndex(7), count: 2 }, vec![0x55; 8192]);
            let head = RunHead::new(PageSize::BASE, run, Encoding::Raw, &contents);
            assert_eq!(change_at(&mut contents, at, &CHANGE), None);
            assert_eq!(head.verify(&contents), Ok(()), "at {at}");
            contents[at] ^= 1;
            assert!(head.verify(&contents).is_err());
        }
    }

    #[test]
    fn other_channels_and_strangers_pass_as_they_are() {
        let corrupted = Corrupted::default();
        assert!(changed(&channel(Channel::Urgent), 100, &corrupted).is_empty());
        assert!(changed(&[0xaa; 100_000], 100, &corrupted).is_empty());
        assert_eq!(corrupted.page(), None);
    }
}
