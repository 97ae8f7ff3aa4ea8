//! Writes that are held up while a round is sent: the live write-protect stream.
//!
//! All memory is write-protected when the rounds begin. Who writes a page whose bytes are not on
//! the wire yet waits: the page is pushed before all others, then the write goes on and is noted.
//! So a round carries the memory as it was when the round began, while the guest runs. Pages that
//! were written are protected again when the notes are collected.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use godwit_uffd::page::{PageIndex, PageRun};

use super::channel::wait_readable;
use super::dirty::WriteGuard;
use super::notify::Notifier;
use crate::metrics::Progress;
use crate::page::{PageSet, Sent};

/// The thread that answers writers, for as long as writes are noted. Ends when dropped.
pub(super) struct HeldStream {
    writes: Arc<HeldWrites>,
    over: Arc<Notifier<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What that thread and the threads of the push share.
pub(super) struct HeldWrites {
    inner: Mutex<Inner>,
    progress: Arc<Progress>,
}

struct Inner {
    /// None after a failure: nobody is held up any more, and writes are not noted.
    guard: Option<Arc<dyn WriteGuard>>,
    failure: Option<String>,
    /// Pages whose bytes the push under way has still to put on the wire; none without one.
    unsent: PageSet,
    /// Of these, the ones for which writers wait.
    waiting: PageSet,
    /// The same in their order, and perhaps some that nobody waits for any more.
    first: VecDeque<PageIndex>,
    /// Pages that may have been written since the collection before.
    written: PageSet,
}

impl HeldStream {
    /// Begins to answer the writers of a guest of `pages` pages that `guard` holds up.
    ///
    /// # Errors
    /// No descriptor or no thread to be had; the guard is dropped then.
    pub fn start(
        guard: Arc<dyn WriteGuard>,
        pages: u32,
        progress: Arc<Progress>,
    ) -> io::Result<HeldStream> {
        let inner = Inner {
            guard: Some(Arc::clone(&guard)),
            failure: None,
            unsent: PageSet::empty(pages),
            waiting: PageSet::empty(pages),
            first: VecDeque::new(),
            written: PageSet::empty(pages),
        };
        let writes = Arc::new(HeldWrites { inner: Mutex::new(inner), progress });
        let over = Arc::new(Notifier::new()?);
        let (answering, ended) = (Arc::clone(&writes), Arc::clone(&over));
        let answer = move || answering.answer_until(&ended, &*guard);
        let thread = std::thread::Builder::new().name("godwit-writes".into()).spawn(answer)?;
        Ok(HeldStream { writes, over, thread: Some(thread) })
    }

    /// A push of what `sent` lacks begins.
    pub fn begin_push(&self, sent: &Sent) -> Arc<HeldWrites> {
        self.writes.inner().unsent = sent.left();
        Arc::clone(&self.writes)
    }

    /// The pages that may have been written since the call before, or since the start. They are
    /// protected again, so that later writes are in the next collection.
    ///
    /// # Errors
    /// What went wrong, in a line, now or while writers were answered.
    pub fn collect(&self) -> Result<PageSet, String> {
        let mut inner = self.writes.inner();
        let (guard, written) = (inner.guard.clone(), inner.written.clone());
        let guard = guard.ok_or_else(|| inner.failure.clone().unwrap_or_default())?;
        written.runs().try_for_each(|run| guard.hold(run))?;
        inner.written.clear();
        Ok(written)
    }
}

impl Drop for HeldStream {
    fn drop(&mut self) {
        self.over.send(());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("writers are answered without a panic");
        }
        self.writes.inner().guard = None;
    }
}

impl HeldWrites {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that goes before all others, taken from `sent`.
    pub fn take_first(&self, sent: &Sent) -> Option<PageIndex> {
        let mut inner = self.inner();
        loop {
            let page = inner.first.pop_front()?;
            if sent.take(page) {
                self.progress.held_page_pushed();
                return Some(page);
            }
        }
    }

    /// The bytes of `run` are on the wire.
    pub fn sent(&self, run: PageRun) {
        let mut inner = self.inner();
        inner.unsent.remove_run(run);
        if inner.waiting.is_empty() {
            return;
        }
        for page in run.pages().filter(|&page| inner.waiting.contains(page)).collect::<Vec<_>>() {
            inner.let_write(page);
        }
    }

    /// The push is over, whatever is left.
    pub fn end_push(&self) {
        let mut inner = self.inner();
        inner.unsent.clear();
        inner.first.clear();
        let waiting: Vec<_> = inner.waiting.runs().flat_map(|run| run.pages()).collect();
        waiting.into_iter().for_each(|page| inner.let_write(page));
    }

    fn answer_until(&self, over: &Notifier<()>, guard: &dyn WriteGuard) {
        let mut pages = Vec::new();
        loop {
            let answered = match wait_readable([guard.as_fd(), over.as_fd()], None) {
                Ok([_, true]) => return,
                Ok(_) => guard.waiting(&mut pages),
                Err(error) => Err(error.to_string()),
            };
            let mut inner = self.inner();
            self.progress.writes_held(pages.len());
            pages.drain(..).for_each(|page| inner.wants_to_write(page));
            if let Err(error) = answered {
                inner.failed(error);
            }
            if inner.guard.is_none() {
                return;
            }
        }
    }
}

impl Inner {
    fn wants_to_write(&mut self, page: PageIndex) {
        if !self.unsent.contains(page) {
            self.let_write(page);
        } else if !self.waiting.contains(page) {
            self.waiting.insert(page);
            self.first.push_back(page);
        }
    }

    /// Under the lock from the note to the permission: a collection in between would protect the
    /// page before it is allowed, and miss what is written then.
    fn let_write(&mut self, page: PageIndex) {
        self.waiting.remove_run(PageRun::one(page));
        self.written.insert(page);
        let allowed = self.guard.as_ref().map_or(Ok(()), |guard| guard.allow(PageRun::one(page)));
        if let Err(error) = allowed {
            self.failed(error);
        }
    }

    fn failed(&mut self, error: String) {
        tracing::warn!(error, "writes cannot be held up any more; the round cannot be completed");
        self.failure = Some(error);
        self.guard = None;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::{Duration, Instant};

    use super::*;

    const PAGES: u32 = 8;

    /// A guard whose writers are made up, and that tells what it is asked for.
    struct Guard {
        writers: Arc<Notifier<PageIndex>>,
        asked: Mutex<Sender<(&'static str, u32)>>,
        broken: bool,
    }

    impl Guard {
        fn tell(&self, what: &'static str, run: PageRun) -> Result<(), String> {
            let asked = self.asked.lock().unwrap();
            run.pages().for_each(|page| asked.send((what, page.0)).unwrap());
            Ok(())
        }
    }

    impl AsFd for Guard {
        fn as_fd(&self) -> BorrowedFd<'_> {
            (*self.writers).as_fd()
        }
    }

    impl WriteGuard for Guard {
        fn waiting(&self, into: &mut Vec<PageIndex>) -> Result<(), String> {
            into.extend(self.writers.take());
            if self.broken { Err("broken".to_owned()) } else { Ok(()) }
        }

        fn allow(&self, run: PageRun) -> Result<(), String> {
            self.tell("allow", run)
        }

        fn hold(&self, run: PageRun) -> Result<(), String> {
            self.tell("hold", run)
        }
    }

    struct World {
        writers: Arc<Notifier<PageIndex>>,
        asked: Receiver<(&'static str, u32)>,
        stream: HeldStream,
        sent: Sent,
    }

    impl World {
        fn new(broken: bool) -> World {
            let (writers, (tell, asked)) = (Arc::new(Notifier::new().unwrap()), mpsc::channel());
            let guard = Guard { writers: Arc::clone(&writers), asked: Mutex::new(tell), broken };
            let progress = Arc::new(Progress::new("peer".into()));
            let stream = HeldStream::start(Arc::new(guard), PAGES, progress).unwrap();
            World { writers, asked, stream, sent: Sent::new(PAGES) }
        }

        fn write(&self, page: u32) {
            self.writers.send(PageIndex(page));
        }

        fn next(&self) -> (&'static str, u32) {
            self.asked.recv_timeout(Duration::from_secs(60)).unwrap()
        }

        fn collected(&self) -> Vec<u32> {
            let pages = self.stream.collect().unwrap();
            let pages: Vec<_> = pages.runs().flat_map(|run| run.pages()).map(|p| p.0).collect();
            pages.iter().for_each(|&page| assert_eq!(self.next(), ("hold", page)));
            pages
        }

        fn first(&self, writes: &HeldWrites) -> Option<u32> {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let first = writes.take_first(&self.sent);
                if first.is_some() || Instant::now() > end {
                    return first.map(|page| page.0);
                }
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn without_a_push_writes_go_on_and_are_noted_until_they_are_collected() {
        let world = World::new(false);
        world.write(3);
        assert_eq!(world.next(), ("allow", 3));
        assert_eq!(world.collected(), [3]);
        assert_eq!(world.collected(), [0; 0]);
    }

    #[test]
    fn a_page_that_somebody_wants_to_write_goes_first_and_is_allowed_once_it_is_sent() {
        let world = World::new(false);
        world.sent.take(PageIndex(1));
        let writes = world.stream.begin_push(&world.sent);
        world.write(5);
        assert_eq!(world.first(&writes), Some(5));
        // It is taken, and its bytes are not on the wire yet; page 1 is.
        world.write(1);
        assert_eq!(world.next(), ("allow", 1));
        writes.sent(PageRun { first: PageIndex(4), count: 2 });
        assert_eq!(world.next(), ("allow", 5));
        world.write(4);
        assert_eq!(world.next(), ("allow", 4));
        assert_eq!(world.collected(), [1, 4, 5]);
        assert_eq!(writes.take_first(&world.sent), None);
    }

    #[test]
    fn a_push_that_ends_early_keeps_nobody_waiting() {
        let world = World::new(false);
        let writes = world.stream.begin_push(&world.sent);
        world.write(2);
        assert_eq!(world.first(&writes), Some(2));
        writes.end_push();
        assert_eq!(world.next(), ("allow", 2));
        world.write(6);
        assert_eq!(world.next(), ("allow", 6));
    }

    #[test]
    fn a_guard_that_fails_lets_all_go_on_and_fails_the_collection() {
        let world = World::new(true);
        world.write(2);
        // The guard is dropped by all who have it.
        while world.asked.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
            std::thread::yield_now();
        }
        assert_eq!(world.stream.collect().unwrap_err(), "broken");
    }
}
