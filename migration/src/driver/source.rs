//! The source's threads: one drives the state machine and answers requests, one a bulk channel
//! pushes.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use godwit_uffd::page::PageRun;

use super::answer::answer;
use super::channel::{UrgentChannel, wait_readable};
use super::command::Command;
use super::dial::{dial_bulk, dial_for, dial_resume};
use super::dirty::DirtyTracking;
use super::guest::OutgoingVm;
use super::held::HeldStream;
use super::notify::Notifier;
use super::push::{Push, PushOptions, PushShared};
use super::records::{RecordError, Records};
use super::text::in_full;
use crate::limits::{ANSWERS_BYTES_MAX, REDIAL_TIMEOUT, SETUP_TIMEOUT};
use crate::metrics::Progress;
use crate::page::{PageSet, Sent};
use crate::proto::{
    Outcome, Ownership, PeerError, Phase, Saved, Source, SourceInput, SourceOutput,
};
use crate::provider::GuestPages;
use crate::schedule::RoundLimits;
use crate::snapshot::Base;
use crate::transport::{Address, Stream, TlsConnector};
use crate::wire::{BulkHello, Message, Offer, ResumeHello, RunBuffer};

/// How a guest is to be moved.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub address: Address,
    /// With TLS, if there is one.
    pub tls: Option<TlsConnector>,
    /// When rounds end; without meaning in post-copy.
    pub limits: RoundLimits,
    /// How writes are noted during rounds.
    pub tracking: DirtyTracking,
    /// How pages are pushed.
    pub push: PushOptions,
    /// What the destination has of the guest already.
    pub base: Option<Base>,
}

/// What happens to the source outside its urgent channel. What comes from the threads of one epoch
/// does not count in another.
#[derive(Debug)]
enum Event {
    Command(Command),
    Pushed { epoch: u32 },
    PushFailed { epoch: u32, error: String },
    Dialled { epoch: u32, result: Result<Stream, PeerError> },
}

/// A migration from here to another host.
#[derive(Debug)]
pub struct Outgoing {
    plan: Plan,
    offer: Offer,
    records: Records,
    progress: Arc<Progress>,
    events: Arc<Notifier<Event>>,
}

impl Outgoing {
    /// A migration of the guest of `offer` by `plan`.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(
        plan: Plan,
        offer: Offer,
        records: Records,
        progress: Arc<Progress>,
    ) -> std::io::Result<Outgoing> {
        let events = Arc::new(Notifier::new()?);
        Ok(Outgoing { plan, offer, records, progress, events })
    }

    /// A handle by which other threads say what they want of it.
    pub fn commands(&self) -> impl Fn(Command) + Send + Sync + 'static {
        let events = Arc::clone(&self.events);
        move |command| events.send(Event::Command(command))
    }

    /// Migrates `vm`; returns when it is over, whichever way.
    pub fn run(self, vm: &dyn OutgoingVm) -> Outcome {
        self.progress.is_of(&self.offer);
        let recorded = self.records.prepare(self.offer.guest).map_err(|e| in_full(&e));
        let (address, tls) = (&self.plan.address, self.plan.tls.as_ref());
        let dialled = recorded.and_then(|()| dial_for(&self.offer, address, tls));
        let stream = match dialled {
            Ok(stream) => Arc::new(stream),
            Err(reason) => {
                let outcome = Outcome::Aborted { reason };
                self.progress.ended(&outcome);
                return outcome;
            }
        };
        let pages = vm.pages();
        let sent = Arc::new(Sent::new(pages.page_count()));
        self.progress.count_sent(Arc::clone(&sent), pages.page_size());
        let limits = self.plan.limits;
        let (size, options, nothing) = (pages.page_size(), self.plan.push, PageSet::empty(0));
        let shared = PushShared::new(&sent, size, Arc::new(nothing), options, None);
        Driver {
            machine: Source::new(self.offer.clone(), limits, Arc::clone(&sent), Instant::now()),
            address: self.plan.address.clone(),
            setup: self,
            vm,
            answer: RunBuffer::new(pages.page_size()),
            pages,
            shared: Arc::new(shared),
            sent,
            channel: Some(UrgentChannel::new(stream)),
            asked: Instant::now(),
            bulk: Vec::new(),
            held: None,
            push: Vec::new(),
            outcome: None,
        }
        .run()
    }
}

struct Driver<'a> {
    setup: Outgoing,
    /// Where the destination is, as far as is known now.
    address: Address,
    vm: &'a dyn OutgoingVm,
    pages: GuestPages,
    sent: Arc<Sent>,
    machine: Source,
    /// None while the destination is lost.
    channel: Option<UrgentChannel>,
    /// When the requests that are answered now were read, and room for their pages.
    asked: Instant,
    answer: RunBuffer,
    bulk: Vec<Arc<Stream>>,
    shared: Arc<PushShared>,
    /// Who waits to write, while that is how writes are noted.
    held: Option<HeldStream>,
    push: Vec<JoinHandle<()>>,
    outcome: Option<Outcome>,
}

impl Driver<'_> {
    fn run(mut self) -> Outcome {
        self.drain();
        while self.outcome.is_none() {
            self.wait();
        }
        self.hang_up();
        self.outcome.expect("the loop ends with it")
    }

    fn input(&mut self, input: SourceInput<'_>) {
        self.machine.handle(input, Instant::now());
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.perform(output);
        }
        if self.outcome.is_none() {
            self.setup.progress.stands(self.machine.migration_state());
        }
    }

    /// Sends what the outputs left to be sent.
    fn flush(&mut self) {
        match self.channel.as_mut().map_or(Ok(0), UrgentChannel::flush) {
            Ok(bytes) => self.setup.progress.bytes(bytes),
            Err(error) => self.input(SourceInput::PeerFailed(error)),
        }
    }

    fn perform(&mut self, output: SourceOutput) {
        match output {
            SourceOutput::Send(message) => {
                if let Message::Round { number } = message {
                    self.setup.progress.round(number);
                }
                if let Some(channel) = &mut self.channel {
                    channel.queue(&message);
                }
            }
            SourceOutput::Serve(run) => self.serve(run),
            SourceOutput::ConnectBulk { session, epoch } => {
                let connected = self.connect_bulk(BulkHello { session, epoch });
                let connected = connected.map_err(|error| error.to_string());
                self.input(SourceInput::BulkConnected(connected));
            }
            SourceOutput::StartTracking => {
                let started = self.start_tracking();
                self.input(SourceInput::TrackingStarted(started));
            }
            SourceOutput::Collect => {
                let collected = self.collect();
                self.input(SourceInput::Collected(collected));
            }
            SourceOutput::StopTracking => {
                self.held = None;
                self.vm.dirty_log().stop();
            }
            SourceOutput::PauseAndSave => {
                let saved = self.pause_and_save();
                self.input(SourceInput::Saved(saved));
            }
            SourceOutput::RecordGrant(transfer) => {
                let recorded = self.record(transfer, Ownership::Granted);
                if recorded.is_ok() {
                    self.vm.granted();
                }
                self.input(SourceInput::GrantRecorded(recorded.map_err(|e| in_full(&e))));
            }
            SourceOutput::RecordReclaimed(transfer) => {
                warn_unrecorded(self.record(transfer, Ownership::Reclaimed));
            }
            SourceOutput::RecordReleased(transfer) => {
                warn_unrecorded(self.setup.records.release(self.setup.offer.guest, transfer));
            }
            SourceOutput::StartPush => self.start_push(),
            SourceOutput::StopPush => self.shared.stop(),
            SourceOutput::HangUp => self.hang_up(),
            SourceOutput::Interrupted(reason) => self.setup.progress.interrupted(&reason),
            SourceOutput::Dial { session, epoch } => self.dial_again(session, epoch),
            SourceOutput::Resume => self.vm.resume(),
            SourceOutput::Reached(phase) => self.setup.progress.reached(phase),
            SourceOutput::Finish(outcome) => {
                // The last words; whether they arrive changes nothing here.
                let _ = self.channel.as_mut().map(UrgentChannel::flush);
                self.setup.progress.ended(&outcome);
                self.outcome = Some(outcome);
            }
        }
    }

    fn start_tracking(&mut self) -> Result<(), String> {
        if let Some(guard) = self.vm.dirty_log().start(self.setup.plan.tracking)? {
            let (pages, progress) = (self.pages.page_count(), Arc::clone(&self.setup.progress));
            let held = HeldStream::start(guard, pages, progress);
            self.held = Some(held.map_err(|error| format!("cannot answer writers: {error}"))?);
        }
        Ok(())
    }

    fn collect(&self) -> Result<PageSet, String> {
        if let Some(held) = &self.held {
            return held.collect();
        }
        let mut dirty = PageSet::empty(self.pages.page_count());
        self.vm.dirty_log().collect(&mut dirty)?;
        Ok(dirty)
    }

    fn pause_and_save(&self) -> Result<Saved, String> {
        // While the guest still runs: the sync of the grant then waits for little.
        self.setup.records.settle(self.setup.offer.guest).map_err(|e| in_full(&e))?;
        self.setup.progress.reached(Phase::Paused);
        self.vm.pause()?;
        let dirty = match self.machine.tracks() {
            true => self.collect()?,
            false => PageSet::empty(self.pages.page_count()),
        };
        let sections = self.vm.save()?;
        Ok(Saved { sections, dirty })
    }

    fn record(&self, transfer: u64, ownership: Ownership) -> Result<(), RecordError> {
        let guest = self.setup.offer.guest;
        self.setup.records.write(guest, transfer, ownership, &self.address.to_string())
    }

    fn connect_bulk(&mut self, hello: BulkHello) -> Result<(), PeerError> {
        let timeout = if hello.epoch == 0 { SETUP_TIMEOUT } else { REDIAL_TIMEOUT };
        let tls = self.setup.plan.tls.as_ref();
        let connect = |_| dial_bulk(&self.address, tls, hello, timeout).map(Arc::new);
        self.bulk = (0..self.setup.offer.connections).map(connect).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn dial_again(&self, session: [u8; 16], epoch: u32) {
        let (guest, transfer) = (self.setup.offer.guest, self.setup.offer.transfer);
        let hello = ResumeHello { guest, transfer, session, epoch };
        let (address, events) = (self.address.clone(), Arc::clone(&self.setup.events));
        let tls = self.setup.plan.tls.clone();
        let dial = move || {
            let result = dial_resume(&address, tls.as_ref(), hello, REDIAL_TIMEOUT);
            events.send(Event::Dialled { epoch, result });
        };
        if let Err(error) = std::thread::Builder::new().name("godwit-dial".into()).spawn(dial) {
            let result = Err(PeerError::Lost(format!("no thread to dial: {error}")));
            self.setup.events.send(Event::Dialled { epoch, result });
        }
    }

    fn start_push(&mut self) {
        self.join_push();
        let held = self.held.as_ref().map(|held| held.begin_push(&self.sent));
        let (written, options) = (Arc::clone(self.machine.written_last()), self.setup.plan.push);
        let size = self.pages.page_size();
        let shared = PushShared::new(&self.sent, size, written, options, held);
        // A session that was interrupted may have been so because the bases differ.
        let base = self.setup.plan.base.clone().filter(|_| self.machine.epoch() == 0);
        self.shared = Arc::new(shared.with_base(base));
        let (epoch, running) = (self.machine.epoch(), Arc::new(AtomicUsize::new(self.bulk.len())));
        for stream in self.bulk.clone() {
            let (pages, sent) = (self.pages.clone(), Arc::clone(&self.sent));
            let (shared, progress) = (Arc::clone(&self.shared), Arc::clone(&self.setup.progress));
            let (events, running) = (Arc::clone(&self.setup.events), Arc::clone(&running));
            let run = move || {
                let (stream, progress) = (&*stream, &*progress);
                let (pages, sent, shared) = (&pages, &*sent, &*shared);
                let pushed = (Push { pages, sent, shared, stream, progress }).run();
                let is_last = running.fetch_sub(1, Ordering::AcqRel) == 1;
                if is_last {
                    shared.over();
                }
                match pushed {
                    Ok(true) if is_last => events.send(Event::Pushed { epoch }),
                    Ok(_) => {}
                    Err(error) => {
                        events.send(Event::PushFailed { epoch, error: error.to_string() });
                    }
                }
            };
            match std::thread::Builder::new().name("godwit-push".into()).spawn(run) {
                Ok(thread) => self.push.push(thread),
                Err(error) => {
                    let error = error.to_string();
                    self.setup.events.send(Event::PushFailed { epoch, error });
                }
            }
        }
    }

    fn serve(&mut self, run: PageRun) {
        if run.count > 1 {
            self.flush(); // Whoever waits for the page before these waits no longer.
        }
        let Some(channel) = &mut self.channel else { return };
        self.shared.fault_at(run.first);
        let heads = answer(&self.pages, run, self.asked, &mut self.answer, channel.outgoing())
            .expect("the request was checked");
        let progress = &self.setup.progress;
        heads.iter().for_each(|head| progress.run(head, |page| self.pages.gpa_of(page)));
        progress.pages_urgent(run.count);
        if channel.outgoing().len() >= ANSWERS_BYTES_MAX {
            self.flush();
        }
    }

    fn wait(&mut self) {
        self.flush();
        let deadline = self.machine.poll_timeout();
        let events = self.setup.events.as_fd();
        // A descriptor that is not to be polled is left out by polling another one twice.
        let urgent = self.channel.as_ref().map_or(events, |channel| channel.pollable());
        match wait_readable([urgent, events], deadline) {
            Ok([urgent, events]) => {
                if urgent && self.channel.is_some() {
                    self.receive();
                }
                if events {
                    self.take_events();
                }
            }
            Err(error) => self.input(SourceInput::PeerFailed(PeerError::Lost(error.to_string()))),
        }
        self.machine.handle_timeout(Instant::now());
        self.drain();
    }

    /// Handles what came; the push stands back until the answers are sent.
    fn receive(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.gate.enter();
        if let Err(error) = self.receive_frames() {
            self.input(SourceInput::PeerFailed(error));
        }
        self.flush();
        shared.gate.leave();
    }

    fn receive_frames(&mut self) -> Result<(), PeerError> {
        let paging = self.pages.paging();
        let Some(channel) = &mut self.channel else { return Ok(()) };
        if !channel.receive()? {
            return Ok(());
        }
        self.asked = Instant::now();
        // A message may end the channel that it came on.
        while let Some(channel) = &mut self.channel
            && let Some(frame) = channel.next_frame()?
        {
            let message = Message::read(&frame, paging)?;
            self.machine.handle(SourceInput::Message(message), Instant::now());
            self.drain();
        }
        Ok(())
    }

    fn take_events(&mut self) {
        for event in self.setup.events.take() {
            let now = self.machine.epoch();
            match event {
                Event::Command(command) => self.command(command),
                Event::Pushed { epoch } if epoch == now => self.input(SourceInput::Pushed),
                Event::PushFailed { epoch, error } if epoch == now => {
                    let error = PeerError::Lost(format!("bulk channel: {error}"));
                    self.input(SourceInput::PeerFailed(error));
                }
                Event::Dialled { epoch, result } if epoch == now => self.dialled(result),
                // Of channels that are no more.
                Event::Pushed { .. } | Event::PushFailed { .. } | Event::Dialled { .. } => {}
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::GiveUp(reason) => self.input(SourceInput::GiveUp(reason)),
            Command::Cancel => self.input(SourceInput::Cancel),
            Command::SwitchNow => self.input(SourceInput::SwitchNow),
            Command::Recover(address) => {
                self.address = address.unwrap_or_else(|| self.address.clone());
                self.input(SourceInput::Redial);
            }
            Command::Abandon(reason) => self.input(SourceInput::Abandon(reason)),
        }
    }

    fn dialled(&mut self, result: Result<Stream, PeerError>) {
        let result = result.map(|stream| {
            self.channel = Some(UrgentChannel::new(Arc::new(stream)));
        });
        self.input(SourceInput::Dialled(result.map_err(|error| error.to_string())));
    }

    /// Closes all channels. When it returns no page is being sent.
    fn hang_up(&mut self) {
        self.shared.gate.close();
        if let Some(channel) = self.channel.take() {
            channel.shutdown();
        }
        for bulk in self.bulk.drain(..) {
            bulk.shutdown();
        }
        self.join_push();
    }

    fn join_push(&mut self) {
        for push in self.push.drain(..) {
            push.join().expect("the push does not panic");
        }
    }
}

fn warn_unrecorded(result: Result<(), RecordError>) {
    if let Err(error) = result {
        tracing::warn!(error = in_full(&error), "the guest's record is out of date");
    }
}
