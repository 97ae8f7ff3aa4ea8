//! The background push: threads that send what nobody asked for, and stand back for requests.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use super::held::HeldWrites;
use crate::limits::{PUSH_WALKS_MAX, data_pages_per_run_max, zero_pages_held_max};
use crate::metrics::Progress;
use crate::page::{PageSet, Sent};
use crate::provider::GuestPages;
use crate::schedule::{Compression, CompressionPolicy, Gate, Pacer, PushOrder};
use crate::snapshot::Base;
use crate::transport::Stream;
use crate::wire::{Encoding, PageKind, PushFrame, RunBuffer, RunHead};

/// No page: no guest has as many.
const NO_PAGE: u32 = u32::MAX;

/// How the operator wants pages pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Whether data is packed.
    pub compression: Compression,
    /// The most bytes that all bulk channels together may send in a second; none for no cap.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// What the urgent thread and the threads of one push share.
pub(super) struct PushShared {
    pub gate: Gate,
    faults: LatestFaults,
    order: Mutex<PushOrder>,
    stopped: AtomicBool,
    pacer: Option<Mutex<Pacer>>,
    compression: Compression,
    /// Writers that wait for pages of this push.
    held: Option<Arc<HeldWrites>>,
    /// What the destination has as well.
    base: Option<Base>,
}

impl PushShared {
    /// A push of what is not `sent`, pages of this size of which the guest wrote `written` last.
    /// Those that writers wait for in `held` go first.
    pub fn new(
        sent: &Sent,
        page_size: PageSize,
        written: Arc<PageSet>,
        options: PushOptions,
        held: Option<Arc<HeldWrites>>,
    ) -> PushShared {
        let group = data_pages_per_run_max(page_size);
        PushShared {
            gate: Gate::default(),
            faults: LatestFaults::new(group),
            order: Mutex::new(PushOrder::new(sent, group, written)),
            stopped: AtomicBool::new(false),
            pacer: options.bandwidth_bytes_per_s.map(|rate| Mutex::new(Pacer::new(rate))),
            compression: options.compression,
            held,
            base: None,
        }
    }

    /// The same, without the contents of pages that are still as in `base`.
    pub fn with_base(self, base: Option<Base>) -> PushShared {
        PushShared { base, ..self }
    }

    /// No thread pushes any more.
    pub fn over(&self) {
        if let Some(held) = &self.held {
            held.end_push();
        }
    }

    /// Ends the push early: what is not taken stays.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The push goes on around `page`. Called by one thread, which never waits.
    pub fn fault_at(&self, page: PageIndex) {
        self.faults.add(page);
    }

    /// The runs that the caller sends next, taken from `sent`.
    fn next(&self, sent: &Sent) -> Option<Vec<PageRun>> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(page) = self.held.as_ref().and_then(|held| held.take_first(sent)) {
            return Some(vec![PageRun::one(page)]);
        }
        let mut order = lock(&self.order);
        self.faults.take().for_each(|page| order.fault_at(page));
        order.next(sent)
    }

    /// Counts `bytes` that are sent now against the cap.
    fn pace(&self, bytes: usize) {
        if let Some(pacer) = &self.pacer {
            lock(pacer).sent(bytes, Instant::now());
        }
    }
}

/// The latest faults that no thread of the push has looked at, without a lock: whoever answers them
/// is not kept waiting by threads of a lower priority.
#[derive(Debug)]
pub(super) struct LatestFaults {
    /// The oldest is lost if there are too many.
    pages: [AtomicU32; PUSH_WALKS_MAX],
    next: AtomicU32,
    /// The group of the latest: a walk within one group is one fault.
    group: AtomicU32,
    pages_in_group: u32,
}

impl LatestFaults {
    pub fn new(pages_in_group: u32) -> LatestFaults {
        LatestFaults {
            pages: [const { AtomicU32::new(NO_PAGE) }; PUSH_WALKS_MAX],
            next: AtomicU32::new(0),
            group: AtomicU32::new(NO_PAGE),
            pages_in_group,
        }
    }

    pub fn add(&self, page: PageIndex) {
        let group = page.0 / self.pages_in_group;
        if self.group.swap(group, Ordering::Relaxed) != group {
            let slot = self.next.fetch_add(1, Ordering::Relaxed) as usize % PUSH_WALKS_MAX;
            self.pages[slot].store(page.0, Ordering::Relaxed);
        }
    }

    pub fn take(&self) -> impl Iterator<Item = PageIndex> {
        let there = |page: &&AtomicU32| page.load(Ordering::Relaxed) != NO_PAGE;
        let pages = self.pages.iter().filter(there);
        let pages = pages.map(|page| page.swap(NO_PAGE, Ordering::Relaxed));
        // Nobody else takes any: the order is locked.
        pages.map(PageIndex)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The push over one bulk channel, by one thread. Others may push the same guest over theirs.
pub(super) struct Push<'a> {
    pub pages: &'a GuestPages,
    pub sent: &'a Sent,
    pub shared: &'a PushShared,
    pub stream: &'a Stream,
    pub progress: &'a Progress,
}

impl Push<'_> {
    /// Sends what is not sent and nobody else sends, then the end. False if the gate was closed
    /// before.
    pub fn run(self) -> io::Result<bool> {
        let policy = CompressionPolicy::new(self.shared.compression);
        let (buffer, base_pages) = (RunBuffer::new(self.pages.page_size()), Vec::new());
        Pushing { push: self, buffer, base_pages, policy, zeros: None }.run()
    }
}

/// A push under way.
struct Pushing<'a> {
    push: Push<'a>,
    buffer: RunBuffer,
    /// Room for the pages of the base that are compared.
    base_pages: Vec<u8>,
    policy: CompressionPolicy,
    /// Zero pages that were found and not sent yet: they cost the wire a head however many. Whoever
    /// asks for one of them waits, because it counts as sent; so there are few, and nothing is sent
    /// before them.
    zeros: Option<PageRun>,
}

impl Pushing<'_> {
    fn run(mut self) -> io::Result<bool> {
        while self.may_go_on()? {
            let Some(runs) = self.push.shared.next(self.push.sent) else {
                self.flush_zeros()?;
                self.push.stream.send(&PushFrame::End.encode(), false)?;
                return Ok(true);
            };
            for run in runs {
                self.push_run(run)?;
            }
        }
        Ok(false)
    }

    /// Waits while urgent work exists or the cap on bandwidth is used up. Pages are taken after it,
    /// so that nobody who asks for one waits as well. False once the gate is closed.
    fn may_go_on(&mut self) -> io::Result<bool> {
        let gate = &self.push.shared.gate;
        if let Some(pacer) = &self.push.shared.pacer {
            let begun = Instant::now();
            let wait = lock(pacer).wait(begun);
            if !wait.is_zero() {
                self.flush_zeros()?;
                if !gate.pause(wait) {
                    return Ok(false);
                }
                self.policy.waited(begun.elapsed());
            }
        }
        Ok(gate.pass())
    }

    /// Sends `run` in pieces of the same kind.
    fn push_run(&mut self, run: PageRun) -> io::Result<()> {
        let lost = self.push.pages.read_run(run, self.buffer.pages_mut(run.count))?;
        let lost = lost.iter().map(|page| page.0 - run.first.0);
        let mut at = 0;
        for (kind, count) in self.buffer.stretches(run.count, lost) {
            let piece = PageRun { first: PageIndex(run.first.0 + at), count };
            match kind {
                PageKind::Zero => self.add_zeros(piece)?,
                PageKind::Word(word) => {
                    self.flush_zeros()?;
                    self.push.send_bare(piece, Encoding::Word, &word)?;
                }
                PageKind::Data => self.send_changed(piece, at)?,
                PageKind::Lost => {
                    self.flush_zeros()?;
                    self.push.send_bare(piece, Encoding::Poison, &[])?;
                }
            }
            at += count;
        }
        Ok(())
    }

    /// Sends data, of which the first page is page `at` of the buffer; of pages that are those of
    /// the base only that they are.
    fn send_changed(&mut self, run: PageRun, at: u32) -> io::Result<()> {
        let Some(base) = &self.push.shared.base else { return self.send_data(run, at) };
        let (size, pages) = (self.push.pages.page_size(), self.buffer.pages(at, run.count));
        let compared = base.compare(run, pages, &mut self.base_pages).unwrap_or_else(|error| {
            tracing::warn!(%run, %error, "the base cannot be read here; these pages are sent");
            vec![(false, run.count)]
        });
        let mut done = 0;
        for (same, count) in compared {
            let piece = PageRun { first: PageIndex(run.first.0 + done), count };
            match same {
                true => {
                    self.flush_zeros()?;
                    let head = RunHead::same(size, piece, self.buffer.pages(at + done, count));
                    self.push.send(&head, &PushFrame::Pages(head).encode())?;
                }
                false => self.send_data(piece, at + done)?,
            }
            done += count;
        }
        Ok(())
    }

    /// Sends data, of which the first page is page `at` of the buffer.
    fn send_data(&mut self, run: PageRun, at: u32) -> io::Result<()> {
        self.flush_zeros()?;
        let begun = Instant::now();
        let packs = self.policy.packs();
        let (head, frame) = self.buffer.frame(run, at, packs);
        if packs {
            self.policy.packed(head.page_bytes(), frame.len(), begun.elapsed());
        }
        self.push.send(&head, frame)?;
        self.policy.sent(head.page_bytes(), begun.elapsed());
        Ok(())
    }

    fn add_zeros(&mut self, run: PageRun) -> io::Result<()> {
        let most = zero_pages_held_max(self.push.pages.page_size());
        match &mut self.zeros {
            Some(held)
                if held.end() == u64::from(run.first.0) && held.count + run.count <= most =>
            {
                held.count += run.count;
                Ok(())
            }
            _ => {
                self.flush_zeros()?;
                self.zeros = Some(run);
                Ok(())
            }
        }
    }

    fn flush_zeros(&mut self) -> io::Result<()> {
        match self.zeros.take() {
            Some(run) => self.push.send_bare(run, Encoding::Zero, &[]),
            None => Ok(()),
        }
    }
}

impl Push<'_> {
    /// Sends pages whose contents are few bytes or none.
    fn send_bare(&self, run: PageRun, encoding: Encoding, contents: &[u8]) -> io::Result<()> {
        let head = RunHead::new(self.pages.page_size(), run, encoding, contents);
        self.send(&head, &[&PushFrame::Pages(head).encode()[..], contents].concat())
    }

    fn send(&self, head: &RunHead, frame: &[u8]) -> io::Result<()> {
        self.shared.pace(frame.len());
        self.stream.send(frame, false)?;
        if let Some(held) = &self.shared.held {
            held.sent(head.run);
        }
        self.progress.run(head, |page| self.pages.gpa_of(page));
        self.progress.bytes(frame.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::page::Paging;
    use crate::provider::{GuestRam, LOST, copy_up_to_lost};
    use crate::wire::{RUN_HEAD_BYTES, unpack};

    /// A guest of `pages` pages, with these words at the beginning and the end of some.
    fn guest(pages: u32, data: &[(u32, u64, u64)]) -> GuestPages {
        let bytes = pages as usize * 4096;
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        for &(page, first, last) in data {
            let at = |offset| GuestAddress(u64::from(page) * 4096 + offset);
            memory.write_slice(&first.to_le_bytes().repeat(511), at(0)).unwrap();
            memory.write_obj(last, at(4088)).unwrap();
        }
        GuestPages::new(Arc::new(memory), PageSize::BASE, copy_up_to_lost)
    }

    fn nothing() -> Arc<PageSet> {
        Arc::new(PageSet::empty(0))
    }

    /// The runs that `threads` threads push of a guest, by channel, and what its memory is then.
    fn pushed(
        pages: &GuestPages,
        options: PushOptions,
        threads: usize,
    ) -> (Vec<Vec<RunHead>>, Vec<u8>) {
        pushed_with(pages, options, threads, None)
    }

    /// The same with a base.
    fn pushed_with(
        pages: &GuestPages,
        options: PushOptions,
        threads: usize,
        base: Option<&Base>,
    ) -> (Vec<Vec<RunHead>>, Vec<u8>) {
        let sent = Sent::new(pages.page_count());
        let shared = PushShared::new(&sent, pages.page_size(), nothing(), options, None);
        let shared = shared.with_base(base.cloned());
        let progress = Progress::new("destination".into());
        let page_bytes = pages.page_size().bytes();
        let mut memory = vec![0xee; pages.page_count() as usize * page_bytes];
        let channels = std::thread::scope(|scope| {
            let (sent, shared, progress) = (&sent, &shared, &progress);
            let channel = |_| {
                let (source, destination) = UnixStream::pair().unwrap();
                let source = Stream::new(source.into(), "destination".into()).unwrap();
                let destination = Stream::new(destination.into(), "source".into()).unwrap();
                scope.spawn(move || {
                    let stream = &source;
                    assert!(Push { pages, sent, shared, stream, progress }.run().unwrap());
                });
                scope.spawn(move || received(&destination, pages.paging(), base))
            };
            let receivers: Vec<_> = (0..threads).map(channel).collect();
            receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect::<Vec<_>>()
        });
        let mut heads = Vec::new();
        for channel in channels {
            heads.push(channel.iter().map(|(head, _)| *head).collect());
            for (head, bytes) in channel {
                let at = head.run.first.0 as usize * page_bytes;
                memory[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        (heads, memory)
    }

    /// The runs that come before the end of the push, verified and unpacked.
    fn received(stream: &Stream, paging: Paging, base: Option<&Base>) -> Vec<(RunHead, Vec<u8>)> {
        let (mut runs, mut head) = (Vec::new(), [0; RUN_HEAD_BYTES]);
        loop {
            stream.receive_exact(&mut head).unwrap();
            let PushFrame::Pages(head) = PushFrame::decode(&head, paging).unwrap() else {
                return runs;
            };
            let mut contents = vec![0; head.content_bytes()];
            stream.receive_exact(&mut contents).unwrap();
            let mut bytes = vec![0; head.page_bytes()];
            if head.encoding == Encoding::Same {
                base.unwrap().read(head.run, &mut bytes).unwrap();
                head.verify(&bytes).unwrap();
                runs.push((head, bytes));
                continue;
            }
            head.verify(&contents).unwrap();
            match head.encoding {
                Encoding::Raw => bytes = contents,
                Encoding::Zero | Encoding::Poison => {}
                _ => unpack(&head, &contents, &mut bytes).unwrap(),
            }
            runs.push((head, bytes));
        }
    }

    fn heads(pages: &GuestPages, compression: Compression) -> Vec<(u32, u32, Encoding)> {
        let options = PushOptions { compression, ..PushOptions::default() };
        let (heads, memory) = pushed(pages, options, 1);
        assert!(memory == bytes_of(pages), "not the guest's memory");
        heads[0].iter().map(|head| (head.run.first.0, head.run.count, head.encoding)).collect()
    }

    fn bytes_of(pages: &GuestPages) -> Vec<u8> {
        let all = PageRun { first: PageIndex(0), count: pages.page_count() };
        let mut bytes = vec![0; pages.page_size().length_of(all.count)];
        pages.read_run(all, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn pages_of_the_base_go_without_contents_and_only_they_do() {
        use Encoding::{Raw, Same, Word, Zero};
        // Saved, and then pages 5 and 9 change, 7 is zero from then on, and 8 is no longer.
        let mut data: Vec<_> = [2, 3, 4, 5, 6, 7, 9].map(|page| (page, 1, 2)).into();
        data.extend((20..30).map(|page| (page, 7, 7)));
        let folder = tempfile::TempDir::new().unwrap();
        let base = saved(&guest(40, &data), &folder.path().join("base"));
        data[3].2 = 3;
        data[5] = (8, 1, 2);
        data[6].1 = 9;
        let pages = guest(40, &data);
        let options = PushOptions { compression: Compression::None, ..PushOptions::default() };
        let (heads, memory) = pushed_with(&pages, options, 1, Some(&base));
        assert!(memory == bytes_of(&pages), "not the guest's memory");
        let heads = heads[0].iter();
        let heads: Vec<_> =
            heads.map(|head| (head.run.first.0, head.run.count, head.encoding)).collect();
        assert_eq!(
            heads,
            [
                (0, 2, Zero),
                (2, 3, Same),
                (5, 1, Raw),
                (6, 1, Same),
                (7, 1, Zero),
                (8, 2, Raw),
                (10, 10, Zero),
                (20, 10, Word),
                (30, 10, Zero)
            ]
        );
    }

    /// A snapshot of these pages.
    fn saved(pages: &GuestPages, dir: &std::path::Path) -> Base {
        use crate::snapshot::{Facts, Writer};
        use crate::wire::MemslotLayout;
        let count = pages.page_count();
        let bytes = bytes_of(pages);
        let facts = Facts {
            guest: uuid::Uuid::from_u128(1),
            generation: 0,
            created_unix_s: 0,
            memslots: vec![MemslotLayout { gpa: 0, bytes: bytes.len() as u64 }],
            machine: serde_json::Value::Null,
        };
        let mut writer = Writer::create(dir, count).unwrap();
        writer.add(PageRun { first: PageIndex(0), count }, &bytes).unwrap();
        writer.finish(facts, &[]).unwrap();
        Base::open(dir).unwrap()
    }

    #[test]
    fn zero_pages_are_not_held_back_for_data_behind_them() {
        use Encoding::{Raw, Zero};
        let pages = guest(70, &[(2, 1, 2), (3, 1, 2), (66, 1, 2)]);
        assert_eq!(
            heads(&pages, Compression::None),
            [(0, 2, Zero), (2, 2, Raw), (4, 62, Zero), (66, 1, Raw), (67, 3, Zero)]
        );
    }

    #[test]
    fn many_zero_pages_are_one_run_up_to_a_limit() {
        use Encoding::Zero;
        let (most, more) = (zero_pages_held_max(PageSize::BASE), 5);
        assert_eq!(
            heads(&guest(most + more, &[]), Compression::Auto),
            [(0, most, Zero), (most, more, Zero)]
        );
    }

    #[test]
    fn each_kind_of_page_travels_in_its_way() {
        use Encoding::{Lz4, Raw, Word, Zero};
        let words = |page| (page, 7, 7);
        let mut data: Vec<_> = (10..20).map(words).collect();
        data.extend([(20, 7, 8), words(30), (31, 1, 2)]);
        let pages = guest(40, &data);
        for (compression, packed) in [(Compression::None, Raw), (Compression::Lz4, Lz4)] {
            assert_eq!(
                heads(&pages, compression),
                [
                    (0, 10, Zero),
                    (10, 10, Word),
                    (20, 1, packed),
                    (21, 9, Zero),
                    // One page of words is no run of its own.
                    (30, 2, packed),
                    (32, 8, Zero),
                ]
            );
        }
    }

    #[test]
    fn pages_that_cannot_be_read_travel_as_lost() {
        use Encoding::{Poison, Raw, Zero};
        let lost = u64::from_le_bytes(LOST);
        let pages = guest(9, &[(1, lost, 1), (2, 1, 2), (4, lost, 1), (5, lost, 1), (6, 1, 2)]);
        let (heads, _) = pushed(&pages, PushOptions::default(), 1);
        let sent = heads[0].iter().map(|head| (head.run.first.0, head.run.count, head.encoding));
        assert_eq!(
            sent.collect::<Vec<_>>(),
            [
                (0, 1, Zero),
                (1, 1, Poison),
                (2, 1, Raw),
                (3, 1, Zero),
                (4, 2, Poison),
                (6, 1, Raw),
                (7, 2, Zero)
            ]
        );
    }

    #[test]
    fn huge_pages_travel_one_by_one_and_zeros_a_few_at_once() {
        use Encoding::{Lz4, Zero};
        let huge = PageSize::HUGE;
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), huge.length_of(8))]).unwrap();
        for page in [0, 1, 7] {
            memory.write_obj(9u8, GuestAddress(huge.bytes_of(page) + 4096)).unwrap();
        }
        let pages = GuestPages::new(Arc::new(memory), huge, copy_up_to_lost);
        assert_eq!(
            heads(&pages, Compression::Lz4),
            [(0, 1, Lz4), (1, 1, Lz4), (2, 4, Zero), (6, 1, Zero), (7, 1, Lz4)]
        );
    }

    #[test]
    fn the_latest_faults_are_taken_once_and_a_group_counts_once() {
        let shared = PushShared::new(
            &Sent::new(64_000),
            PageSize::BASE,
            nothing(),
            PushOptions::default(),
            None,
        );
        let faults = || shared.faults.take().map(|page| page.0).collect::<Vec<_>>();
        assert!(faults().is_empty());
        [640, 641, 703, 64, 640].into_iter().for_each(|page| shared.fault_at(PageIndex(page)));
        assert_eq!((faults(), faults()), (vec![640, 64, 640], vec![]));
        (0..=8).for_each(|group| shared.fault_at(PageIndex(group * 64)));
        assert_eq!(faults().len(), PUSH_WALKS_MAX);
    }

    #[test]
    fn faults_and_what_was_written_last_come_first() {
        let (sent, mut written) = (Sent::new(64 * 10), PageSet::empty(64 * 10));
        written.insert_run(PageRun { first: PageIndex(130), count: 3 });
        let shared =
            PushShared::new(&sent, PageSize::BASE, Arc::new(written), PushOptions::default(), None);
        shared.fault_at(PageIndex(500));
        let firsts = [(); 3].map(|()| shared.next(&sent).unwrap()[0].first.0);
        assert_eq!(firsts, [448, 130, 512]);
    }

    #[test]
    fn several_threads_push_each_page_once_and_each_its_end() {
        let data: Vec<_> = (0..1000).map(|page| (page, page.into(), 1)).collect();
        let pages = guest(3000, &data);
        let (heads, memory) = pushed(&pages, PushOptions::default(), 3);
        assert!(memory == bytes_of(&pages));
        let sent: u32 = heads.iter().flatten().map(|head| head.run.count).sum();
        assert_eq!((heads.len(), sent), (3, 3000));
    }

    #[test]
    fn a_cap_is_kept_by_all_threads_together() {
        let data: Vec<_> = (0..256).map(|page| (page, page.into(), 1)).collect();
        let pages = guest(256, &data);
        let options =
            PushOptions { compression: Compression::None, bandwidth_bytes_per_s: Some(10_000_000) };
        let begun = Instant::now();
        let (_, memory) = pushed(&pages, options, 2);
        assert!(memory == bytes_of(&pages));
        // A megabyte takes 105 ms, less the burst and the last run of each thread.
        assert!(begun.elapsed().as_millis() >= 30, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_closed_gate_ends_the_wait_for_a_cap() {
        let pages = guest(256, &[(0, 1, 2), (100, 1, 2), (200, 1, 2)]);
        let (source, destination) = UnixStream::pair().unwrap();
        let stream = Stream::new(source.into(), "destination".into()).unwrap();
        let sent = Sent::new(256);
        let options = PushOptions { bandwidth_bytes_per_s: Some(1), ..PushOptions::default() };
        let shared = PushShared::new(&sent, PageSize::BASE, nothing(), options, None);
        let progress = Progress::new("destination".into());
        std::thread::scope(|scope| {
            let push = Push {
                pages: &pages,
                sent: &sent,
                shared: &shared,
                stream: &stream,
                progress: &progress,
            };
            let push = scope.spawn(move || push.run().unwrap());
            let destination = Stream::new(destination.into(), "source".into()).unwrap();
            destination.receive_exact(&mut [0; 1]).unwrap();
            shared.gate.close();
            assert!(!push.join().unwrap());
        });
    }
}
