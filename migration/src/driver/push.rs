//! The background push: a thread that sends what nobody asked for, and stands back for requests.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use godwit_uffd::page::{PageIndex, PageRun};

use super::background::stand_back;
use crate::limits::ZERO_PAGES_HELD_MAX;
use crate::metrics::Progress;
use crate::page::{Class, Sent};
use crate::provider::GuestPages;
use crate::schedule::{Gate, PushOrder};
use crate::transport::Stream;
use crate::wire::{Encoding, PushFrame, RUN_HEAD_BYTES, RunHead};

/// No fault since the push looked last.
const NO_FAULT: u32 = u32::MAX;

/// What the urgent thread and the push share.
#[derive(Debug)]
pub(super) struct PushShared {
    pub gate: Gate,
    latest_fault: AtomicU32,
}

impl PushShared {
    pub fn new() -> PushShared {
        PushShared { gate: Gate::default(), latest_fault: AtomicU32::new(NO_FAULT) }
    }

    /// The push goes on from `page`.
    pub fn fault_at(&self, page: PageIndex) {
        self.latest_fault.store(page.0, Ordering::Relaxed);
    }

    fn take_fault(&self) -> Option<PageIndex> {
        if self.latest_fault.load(Ordering::Relaxed) == NO_FAULT {
            return None;
        }
        let page = self.latest_fault.swap(NO_FAULT, Ordering::Relaxed);
        (page != NO_FAULT).then_some(PageIndex(page))
    }
}

/// The background push of one guest over one bulk channel.
pub(super) struct Push<'a> {
    pub pages: &'a GuestPages,
    pub sent: &'a Sent,
    pub shared: &'a PushShared,
    pub stream: &'a Stream,
    pub progress: &'a Progress,
    /// Zero pages that were found and not sent yet: they cost the wire a head however many. Whoever
    /// asks for one of them waits, because it counts as sent; so there are few, and nothing is sent
    /// before them.
    pub zeros: Option<PageRun>,
}

impl Push<'_> {
    /// Sends everything that is not sent, then the end. False if the gate was closed before.
    pub fn run(mut self) -> io::Result<bool> {
        stand_back();
        let mut order = PushOrder::new(self.sent);
        while let Some(runs) = order.next(self.sent, self.shared.take_fault()) {
            for run in runs {
                self.send_run(run)?;
            }
            if !self.shared.gate.pass() {
                return Ok(false);
            }
        }
        self.flush_zeros()?;
        self.stream.send(&PushFrame::End.encode(), false)?;
        Ok(true)
    }

    /// Sends `run` in pieces that are all zero or all not.
    fn send_run(&mut self, run: PageRun) -> io::Result<()> {
        let mut data = PageRun { first: run.first, count: 0 };
        for page in run.pages() {
            if self.pages.is_zero(page)? {
                self.send_data(data)?;
                data = PageRun { first: PageIndex(page.0 + 1), count: 0 };
                self.add_zero(page)?;
            } else {
                data.count += 1;
            }
        }
        self.send_data(data)
    }

    fn send_data(&mut self, run: PageRun) -> io::Result<()> {
        if run.count == 0 {
            return Ok(());
        }
        self.flush_zeros()?;
        let head = RunHead { run, encoding: Encoding::Raw };
        self.stream.send(&PushFrame::Pages(head).encode(), true)?;
        match self.stream.plain_socket() {
            Some(socket) => self.pages.write_to(run, socket)?,
            None => self.stream.send(&self.pages.read_run(run)?, false)?,
        }
        self.progress.pages_sent(Class::Data, run.count);
        self.progress.bytes(RUN_HEAD_BYTES + head.content_bytes());
        Ok(())
    }

    fn add_zero(&mut self, page: PageIndex) -> io::Result<()> {
        match &mut self.zeros {
            Some(run) if run.end() == u64::from(page.0) && run.count < ZERO_PAGES_HELD_MAX => {
                run.count += 1;
                Ok(())
            }
            _ => {
                self.flush_zeros()?;
                self.zeros = Some(PageRun::one(page));
                Ok(())
            }
        }
    }

    fn flush_zeros(&mut self) -> io::Result<()> {
        let Some(run) = self.zeros.take() else {
            return Ok(());
        };
        let head = RunHead { run, encoding: Encoding::Zero };
        self.stream.send(&PushFrame::Pages(head).encode(), false)?;
        self.progress.pages_sent(Class::Zero, run.count);
        self.progress.bytes(RUN_HEAD_BYTES);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// The heads that are pushed for a guest of `pages` pages, of which `data` are not zero.
    fn pushed(pages: u32, data: &[u32]) -> Vec<(u32, u32, Encoding)> {
        let bytes = pages as usize * 4096;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        for page in data {
            memory.write_obj(1u8, GuestAddress(u64::from(*page) * 4096)).unwrap();
        }
        let (source, destination) = UnixStream::pair().unwrap();
        let source = Stream::new(source.into(), "destination".into()).unwrap();
        let destination = Stream::new(destination.into(), "source".into()).unwrap();
        let (pages, sent) = (GuestPages::new(Arc::new(memory)), Sent::new(pages));
        let (shared, progress) = (PushShared::new(), Progress::new("destination".into()));
        std::thread::scope(|scope| {
            let push = Push {
                pages: &pages,
                sent: &sent,
                shared: &shared,
                stream: &source,
                progress: &progress,
                zeros: None,
            };
            scope.spawn(move || assert!(push.run().unwrap()));
            heads(&destination, pages.page_count())
        })
    }

    fn heads(stream: &Stream, pages: u32) -> Vec<(u32, u32, Encoding)> {
        let (mut heads, mut head) = (Vec::new(), [0; RUN_HEAD_BYTES]);
        loop {
            stream.receive_exact(&mut head).unwrap();
            let PushFrame::Pages(head) = PushFrame::decode(&head, pages).unwrap() else {
                return heads;
            };
            stream.receive_exact(&mut vec![0; head.content_bytes()]).unwrap();
            heads.push((head.run.first.0, head.run.count, head.encoding));
        }
    }

    #[test]
    fn zero_pages_are_not_held_back_for_data_behind_them() {
        use Encoding::{Raw, Zero};
        assert_eq!(
            pushed(70, &[2, 3, 66]),
            [(0, 2, Zero), (2, 2, Raw), (4, 62, Zero), (66, 1, Raw), (67, 3, Zero)]
        );
    }

    #[test]
    fn many_zero_pages_are_one_run_up_to_a_limit() {
        use Encoding::Zero;
        let (most, more) = (ZERO_PAGES_HELD_MAX, 5);
        assert_eq!(pushed(most + more, &[]), [(0, most, Zero), (most, more, Zero)]);
    }
}
