//! The background push: a thread that sends what nobody asked for, and stands back for requests.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use godwit_uffd::page::{PageIndex, PageRun};

use crate::limits::ZERO_PAGES_PER_RUN_MAX;
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
    /// Zero pages that were found and not sent yet: they cost the wire a head however many.
    pub zeros: Option<PageRun>,
}

impl Push<'_> {
    /// Sends everything that is not sent, then the end. False if the gate was closed before.
    pub fn run(mut self) -> io::Result<bool> {
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
        let head = RunHead { run, encoding: Encoding::Raw };
        self.stream.send(&PushFrame::Pages(head).encode(), true)?;
        self.pages.write_to(run, self.stream)?;
        self.progress.pages_sent(Class::Data, run.count);
        self.progress.bytes(RUN_HEAD_BYTES + head.content_bytes());
        Ok(())
    }

    fn add_zero(&mut self, page: PageIndex) -> io::Result<()> {
        match &mut self.zeros {
            Some(run) if run.end() == u64::from(page.0) && run.count < ZERO_PAGES_PER_RUN_MAX => {
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
