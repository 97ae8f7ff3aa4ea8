//! One bulk channel of the source: what its thread does, step by step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use godwit_migration::limits::PEER_TIMEOUT;
use godwit_migration::limits::data_pages_per_run_max;
use godwit_migration::page::{PageSet, Sent};
use godwit_migration::schedule::{Gate, PushOrder};
use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use crate::env::Env;
use crate::guest::{Values, page_of};
use crate::net::End;
use crate::runs::{data_frame, end_frame, zero_frame};

/// What the channels of one push share.
#[derive(Debug)]
pub struct Shared {
    pub gate: Gate,
    /// The urgent channel is being answered.
    pub urgent: bool,
    pub stopped: bool,
    order: PushOrder,
}

impl Shared {
    pub fn new(sent: &Sent, written: Arc<PageSet>) -> Shared {
        Shared {
            gate: Gate::default(),
            urgent: false,
            stopped: false,
            order: PushOrder::new(sent, data_pages_per_run_max(PageSize::BASE), written),
        }
    }

    pub fn fault_at(&mut self, page: PageIndex) {
        self.order.fault_at(page);
    }

    fn next(&mut self, sent: &Sent) -> Option<Vec<PageRun>> {
        if self.stopped {
            return None;
        }
        self.order.next(sent)
    }
}

/// The thread of one bulk channel.
#[derive(Debug)]
pub struct Pusher {
    pub end: End,
    runs: VecDeque<PageRun>,
    frames: VecDeque<Vec<u8>>,
    /// Zero pages that were found and not sent.
    zeros: Option<PageRun>,
    /// Everything was taken; what is left are frames.
    ending: bool,
    blocked_since: Option<Duration>,
    pub busy_until: Duration,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    NotYet,
    All,
    /// The push was told to end.
    Closed,
    Failed(String),
}

impl Pusher {
    pub fn new(end: End) -> Pusher {
        Pusher {
            end,
            runs: VecDeque::new(),
            frames: VecDeque::new(),
            zeros: None,
            ending: false,
            blocked_since: None,
            busy_until: Duration::ZERO,
        }
    }

    fn fits(&self, env: &Env) -> bool {
        self.frames.is_empty() || env.net.in_flight(self.end) < env.plan.window
    }

    pub fn ready_at(&self, env: &Env, shared: &Shared) -> Option<Duration> {
        let ready = if self.fits(env) {
            if self.frames.is_empty() && self.runs.is_empty() && shared.urgent {
                return None;
            }
            Duration::ZERO
        } else {
            self.blocked_since.map_or(Duration::ZERO, |since| since + PEER_TIMEOUT)
        };
        Some(ready.max(self.busy_until))
    }

    pub fn step(
        &mut self,
        env: &mut Env,
        (sent, memory): (&Sent, &[Values]),
        shared: &mut Shared,
    ) -> Pushed {
        if !self.fits(env) {
            let since = *self.blocked_since.get_or_insert(env.now);
            if env.now >= since + PEER_TIMEOUT {
                return Pushed::Failed("the peer takes nothing".into());
            }
            return Pushed::NotYet;
        }
        self.blocked_since = None;
        if let Some(frame) = self.frames.pop_front() {
            return match env.net.send(self.end, env.now, &frame, true) {
                Ok(()) if self.ending && self.frames.is_empty() => Pushed::All,
                Ok(()) => Pushed::NotYet,
                Err(_) => Pushed::Failed("the stream is broken".into()),
            };
        }
        if let Some(run) = self.runs.pop_front() {
            self.split(run, memory);
            return Pushed::NotYet;
        }
        // A pass does not wait: nobody is inside.
        if !shared.gate.pass() {
            return Pushed::Closed;
        }
        match shared.next(sent) {
            Some(runs) => self.runs.extend(runs),
            None => {
                self.flush_zeros();
                self.frames.push_back(end_frame());
                self.ending = true;
                env.mark("source ends a push");
            }
        }
        Pushed::NotYet
    }

    /// Queues a run in pieces that are all zero or all not.
    fn split(&mut self, run: PageRun, memory: &[Values]) {
        let mut data = PageRun { first: run.first, count: 0 };
        for page in run.pages() {
            if memory[page.0 as usize] == Values::default() {
                self.queue_data(data, memory);
                data = PageRun { first: PageIndex(page.0 + 1), count: 0 };
                match &mut self.zeros {
                    Some(zeros) if zeros.end() == u64::from(page.0) => zeros.count += 1,
                    _ => {
                        self.flush_zeros();
                        self.zeros = Some(PageRun::one(page));
                    }
                }
            } else {
                data.count += 1;
            }
        }
        self.queue_data(data, memory);
    }

    fn queue_data(&mut self, run: PageRun, memory: &[Values]) {
        if run.count == 0 {
            return;
        }
        self.flush_zeros();
        let pages = run.pages().map(|page| page_of(memory[page.0 as usize]));
        let contents: Vec<u8> = pages.flatten().collect();
        self.frames.push_back(data_frame(run, &contents));
    }

    fn flush_zeros(&mut self) {
        self.frames.extend(self.zeros.take().map(zero_frame));
    }
}
