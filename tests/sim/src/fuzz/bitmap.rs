//! Sets of pages: as they travel, in the claims, and among what was sent.

use godwit_migration::page::{Claims, Class, PageSet, Paging, Sent};
use godwit_migration::wire::{BitmapPart, Kind, Message, decode, encode};
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd_testing::fuzz::Bytes;

use super::words::{frame, page, run};

/// Sizes of guests: words that are full, and that are not.
const PAGES: [u32; 7] = [1, 63, 64, 65, 128, 200, 1000];

/// Reads bytes as operations on a set of pages, and on the same set as a list of truths.
///
/// # Panics
/// If the two differ.
pub fn bitmap(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let Some(pages) = bytes.pick(&PAGES) else { return };
    let mut sets = Sets::new(pages);
    while sets.act(&mut bytes).is_some() {
        sets.agree();
    }
    sets.travel();
    sets.is_received();
    sets.is_given_back();
}

struct Sets {
    pages: u32,
    set: PageSet,
    truth: Vec<bool>,
}

impl Sets {
    fn new(pages: u32) -> Sets {
        Sets { pages, set: PageSet::empty(pages), truth: vec![false; pages as usize] }
    }

    fn fill(&mut self, run: PageRun, value: bool) {
        for page in run.pages() {
            self.truth[page.0 as usize] = value;
        }
    }

    fn act(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.below(6)? {
            0 => {
                let run = run(bytes, self.pages)?;
                self.set.insert_run(run);
                self.fill(run, true);
            }
            1 => {
                let run = run(bytes, self.pages)?;
                self.set.remove_run(run);
                self.fill(run, false);
            }
            2 => {
                let page = page(bytes, self.pages)?;
                self.set.insert(page);
                self.fill(PageRun::one(page), true);
            }
            3 => {
                let other = PageSet::full(self.pages);
                let mut part = other.clone();
                part.remove_run(run(bytes, self.pages)?);
                self.set.insert_all(&part);
                let put_in = part.runs().collect::<Vec<_>>();
                put_in.into_iter().for_each(|run| self.fill(run, true));
            }
            4 => {
                self.set.clear();
                self.truth.fill(false);
            }
            _ => self.arrive(bytes)?,
        }
        Some(())
    }

    /// A part that a peer has made up, which may reach behind the guest.
    fn arrive(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let first = u32::from(bytes.below(20)?);
        let length = usize::from(bytes.below(40)?);
        let payload = [&first.to_le_bytes()[..], bytes.some(length)].concat();
        let made_up = frame(Kind::Received, &payload);
        let decoded = decode(&made_up).expect("it is short").expect("it is whole");
        let words = u64::from(first) + (payload.len() as u64 - 4) / 8;
        let fits = payload.len().is_multiple_of(4) && (payload.len() - 4).is_multiple_of(8);
        let fits = fits && words <= u64::from(self.pages.div_ceil(64));
        let Ok(Message::Received(part)) = Message::read(&decoded, Paging::base(self.pages)) else {
            assert!(!fits, "{payload:?} is a part of {} pages", self.pages);
            return Some(());
        };
        assert!(fits, "{payload:?} is no part of {} pages", self.pages);
        part.add_to(&mut self.set);
        for (word, bits) in (part.first..).zip(&part.words) {
            let inside = (word * 64..self.pages).take(64);
            for page in inside.filter(|page| bits >> (page % 64) & 1 == 1) {
                self.truth[page as usize] = true;
            }
        }
        Some(())
    }

    fn agree(&self) {
        let Sets { set, truth, .. } = self;
        let members = truth.iter().filter(|is_in| **is_in).count();
        assert_eq!((set.len() as usize, set.is_empty()), (members, members == 0));
        for (page, is_in) in (0..).zip(truth) {
            assert_eq!(set.contains(PageIndex(page)), *is_in, "page {page}");
        }
        let mut end = 0;
        for run in set.runs() {
            assert!(u64::from(run.first.0) >= end && run.count > 0, "{run} behind page {end}");
            let before = run.first.0.checked_sub(1);
            assert!(before.is_none_or(|page| !truth[page as usize]), "{run} begins before");
            assert!(run.pages().all(|page| truth[page.0 as usize]), "{run}");
            end = run.end();
        }
        assert!(truth.iter().skip(usize::try_from(end).expect("a page")).all(|is_in| !is_in));
    }

    /// It is the same set at the other side.
    fn travel(&self) {
        let mut arrived = PageSet::empty(self.pages);
        for part in BitmapPart::of(&self.set) {
            let mut bytes = Vec::new();
            encode(&Message::Discard(part), &mut bytes);
            let frame = decode(&bytes).expect("our own").expect("it is whole");
            match Message::read(&frame, Paging::base(self.pages)) {
                Ok(Message::Discard(part)) => part.add_to(&mut arrived),
                other => panic!("a part is {other:?}"),
            }
        }
        assert_eq!(arrived, self.set);
    }

    /// What was installed is received, and what is discarded is missing.
    fn is_received(&self) {
        let claims = Claims::new(self.pages);
        for run in self.set.runs() {
            claims.begin(run).expect("it is missing");
            claims.finish(run, Class::Data, |_| panic!("nobody has asked"));
        }
        assert_eq!(claims.received(), self.set);
        assert_eq!(claims.remaining(), self.pages - self.set.len());
        for run in self.set.runs() {
            claims.discard(run).expect("nobody waits for it");
            claims.emptied(run);
        }
        assert!(claims.received().is_empty());
        assert_eq!((claims.remaining(), claims.missing()), (self.pages, self.pages));
    }

    /// What is given back has to be sent again, and nothing else.
    fn is_given_back(&self) {
        let sent = Sent::new(self.pages);
        for first in (0..self.pages).step_by(64) {
            sent.take_of_group(PageRun { first: PageIndex(first), count: 64 }, u64::MAX);
        }
        assert_eq!(sent.remaining(), 0);
        assert_eq!(sent.give_back(&self.set), self.set.len());
        assert_eq!(sent.remaining(), self.set.len());
        for (page, is_in) in (0..).zip(&self.truth) {
            assert_eq!(sent.take(PageIndex(page)), *is_in, "page {page}");
        }
    }
}
