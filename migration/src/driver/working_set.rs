//! Recording what a guest touches first after a restore, and bringing that in first.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use uuid::Uuid;

use super::restore::{GROUP_PAGES, Shared};
use super::text::in_full;
use crate::limits::WORKING_SET_PAGES_MAX;
use crate::metrics::Mark;
use crate::page::Contents;
use crate::snapshot::WorkingSet;

const PAGE: PageSize = PageSize::BASE;

/// What is to be recorded, and where.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The file to write.
    pub path: PathBuf,
    /// The identity of the snapshot.
    pub snapshot: Uuid,
    /// For how long the guest is watched, from when it runs.
    pub time: Duration,
    /// How many pages are recorded, at most [`WORKING_SET_PAGES_MAX`].
    pub pages: u32,
}

/// A recording under way. Nothing is brought in meanwhile but what the guest touches.
pub(super) struct Recorder {
    recording: Recording,
    touched: Vec<PageIndex>,
    until: Option<Instant>,
}

impl Recorder {
    pub fn new(recording: Recording) -> Recorder {
        let pages = recording.pages.min(WORKING_SET_PAGES_MAX);
        let recording = Recording { pages, ..recording };
        Recorder { recording, touched: Vec::new(), until: None }
    }

    /// The guest runs.
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + self.recording.time);
    }

    /// When the recording is over for its time; none before the guest runs.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The guest has touched `page` for the first time.
    pub fn touched(&mut self, page: PageIndex) {
        self.touched.push(page);
    }

    /// Whether nothing more is recorded.
    pub fn is_over(&self, now: Instant) -> bool {
        let full = self.touched.len() >= self.recording.pages as usize;
        self.until.is_some_and(|until| full || now >= until)
    }

    /// Writes what was recorded. A failure costs the guest nothing.
    pub fn write(self, shared: &Shared) {
        let Recording { path, snapshot, .. } = &self.recording;
        let touched = &self.touched[..self.touched.len().min(self.recording.pages as usize)];
        match WorkingSet::write(path, *snapshot, &shared.image, touched) {
            Ok(pages) => {
                shared.progress.reached(Mark::Recorded);
                tracing::info!(pages, path = %path.display(), "the working set is recorded");
            }
            Err(error) => tracing::error!(error = in_full(&error), "no working set is recorded"),
        }
    }
}

/// A page of the working set that this thread is to bring in.
#[derive(Clone, Copy)]
struct Item {
    page: PageIndex,
    from: From,
}

/// Where its contents are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// It is zero.
    Nowhere,
    /// In what was read of the working set, behind so many other pages.
    Set(u32),
    /// In the snapshot: those in the working set are not right.
    Image,
}

impl Item {
    /// Whether `next` can be installed in one piece with this one.
    fn goes_on(&self, next: &Item) -> bool {
        let behind = match self.from {
            From::Set(at) => From::Set(at + 1),
            other => other,
        };
        next.page.0 == self.page.0 + 1 && next.from == behind
    }
}

impl Shared {
    /// Brings in the pages of `set`, read from start to end and installed in runs.
    pub(super) fn replay(&self, set: &WorkingSet) -> Result<(), String> {
        let mut room = vec![0; PAGE.length_of(GROUP_PAGES)];
        let mut before = 0;
        for pages in set.pages().chunks(GROUP_PAGES as usize) {
            if !self.gate.pass() {
                return Ok(());
            }
            let data = pages.iter().filter(|page| self.image.data().contains(**page)).count();
            let data = u32::try_from(data).expect("part of a run");
            let contents = &mut room[..PAGE.length_of(data)];
            let read = set.read(before, contents);
            before += data;
            let items = self.take_items(pages, read.is_ok().then_some(&*contents));
            for piece in items.chunk_by(Item::goes_on) {
                self.replay_piece(piece, contents)?;
            }
        }
        self.progress.reached(Mark::WorkingSet);
        tracing::info!(pages = set.pages().len(), "working set in");
        Ok(())
    }

    /// Those of `pages` that nobody has taken yet. `contents` are those of all that have some.
    fn take_items(&self, pages: &[PageIndex], contents: Option<&[u8]>) -> Vec<Item> {
        let mut at = 0;
        let mut items = Vec::new();
        for &page in pages {
            let from = if self.image.data().contains(page) {
                let bytes = contents.map(|all| &all[PAGE.length_of(at)..][..PAGE.bytes()]);
                let right = bytes.is_some_and(|bytes| self.image.matches(page, bytes));
                at += 1;
                if right { From::Set(at - 1) } else { From::Image }
            } else {
                From::Nowhere
            };
            if self.taken.take(page) {
                items.push(Item { page, from });
            }
        }
        items
    }

    fn replay_piece(&self, piece: &[Item], contents: &[u8]) -> Result<(), String> {
        let count = u32::try_from(piece.len()).expect("part of a run");
        let run = PageRun { first: piece[0].page, count };
        match piece[0].from {
            From::Nowhere => self.install(run, Contents::Zero),
            From::Set(at) => {
                let bytes = &contents[PAGE.length_of(at)..PAGE.length_of(at + count)];
                self.install(run, Contents::Data(bytes))
            }
            From::Image => self.bring_in(run, &mut vec![0; PAGE.length_of(count)]),
        }
    }
}
