//! The source's threads: one drives the state machine and answers requests, one pushes.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use godwit_uffd::page::{PageIndex, PageRun, PageSize};

use super::channel::{UrgentChannel, wait_readable};
use super::notify::Notifier;
use super::push::{Push, PushShared};
use super::records::{Ownership, RecordError, Records};
use crate::limits::{PREAMBLE_TIMEOUT, SETUP_TIMEOUT};
use crate::metrics::Progress;
use crate::page::{Class, Sent};
use crate::proto::{Outcome, PeerError, Phase, Source, SourceInput, SourceOutput};
use crate::provider::GuestPages;
use crate::transport::{Address, Stream, TlsConnector, TlsError, is_tls};
use crate::wire::{
    Channel, Encoding, Message, Offer, PREAMBLE_BYTES, Preamble, PushFrame, RunHead, Section,
};

/// The guest as its source sees it.
pub trait OutgoingVm: Send + Sync {
    /// Stops all vCPUs and drains the devices.
    ///
    /// # Errors
    /// What went wrong, in a line. The guest may be paused then.
    fn pause(&self) -> Result<(), String>;
    /// The state of vCPUs and devices of the paused guest.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn save(&self) -> Result<Vec<Section>, String>;
    /// Lets the guest run on, unless it was paused by its operator before.
    fn resume(&self);
    /// Its memory.
    fn pages(&self) -> GuestPages;
}

/// What happens to the source outside its urgent channel.
#[derive(Debug)]
enum Event {
    GiveUp(String),
    Pushed,
    PushFailed(String),
}

/// A migration from here to another host.
#[derive(Debug)]
pub struct Outgoing {
    address: Address,
    tls: Option<TlsConnector>,
    offer: Offer,
    records: Records,
    progress: Arc<Progress>,
    events: Arc<Notifier<Event>>,
}

impl Outgoing {
    /// A migration of the guest of `offer` to `address`, with TLS if there is a `tls`.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(
        address: Address,
        tls: Option<TlsConnector>,
        offer: Offer,
        records: Records,
        progress: Arc<Progress>,
    ) -> std::io::Result<Outgoing> {
        let events = Arc::new(Notifier::new()?);
        Ok(Outgoing { address, tls, offer, records, progress, events })
    }

    /// A handle by which other threads end the migration before its switchover, with the reason.
    pub fn give_up(&self) -> impl Fn(String) + Send + Sync + 'static {
        let events = Arc::clone(&self.events);
        move |reason| events.send(Event::GiveUp(reason))
    }

    /// Migrates `vm`; returns when it is over, whichever way.
    pub fn run(self, vm: &dyn OutgoingVm) -> Outcome {
        let recorded = self.records.prepare(self.offer.guest).map_err(|e| in_full(&e));
        let dial = || dial(&self.address, self.tls.as_ref(), Channel::Urgent);
        let dialled = recorded.and_then(|()| dial().map_err(|e| e.to_string()));
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
        self.progress.count_sent(Arc::clone(&sent));
        let machine = Source::new(self.offer.clone(), Arc::clone(&sent), Instant::now());
        let shared = Arc::new(PushShared::new());
        let channel = UrgentChannel::new(stream);
        Driver {
            setup: self,
            vm,
            pages,
            sent,
            machine,
            channel,
            shared,
            bulk: None,
            push: None,
            outcome: None,
        }
        .run()
    }
}

/// Connects one channel and exchanges preambles.
fn dial(
    address: &Address,
    tls: Option<&TlsConnector>,
    channel: Channel,
) -> Result<Stream, PeerError> {
    let lost = |e: std::io::Error| PeerError::Lost(e.to_string());
    let stream = Stream::connect(address, SETUP_TIMEOUT, tls).map_err(lost)?;
    if channel == Channel::Bulk {
        stream.bound_bulk_buffers().map_err(lost)?;
    }
    stream.send(&Preamble::ours(channel).encode(), false).map_err(lost)?;
    stream.set_receive_timeout(Some(PREAMBLE_TIMEOUT)).map_err(lost)?;
    let mut answer = [0; PREAMBLE_BYTES];
    let received = stream.receive_exact_or_end(&mut answer);
    if is_tls(&answer) {
        let why = "it wants TLS: give --tls-dir to `godwit migrate` as well";
        return Err(PeerError::Lost(format!("{address}: {why}")));
    }
    match received {
        Ok(true) => {}
        Ok(false) => return Err(PeerError::Lost(format!("{address} closed the connection"))),
        Err(error) if TlsError::is_in(&error) => {
            return Err(PeerError::Lost(format!("{address}: {error}")));
        }
        Err(error) => {
            return Err(PeerError::Lost(format!("{address} does not answer as godwit: {error}")));
        }
    }
    Preamble::decode(&answer)?;
    stream.set_receive_timeout(None).map_err(lost)?;
    Ok(stream)
}

struct Driver<'a> {
    setup: Outgoing,
    vm: &'a dyn OutgoingVm,
    pages: GuestPages,
    sent: Arc<Sent>,
    machine: Source,
    channel: UrgentChannel,
    shared: Arc<PushShared>,
    bulk: Option<Arc<Stream>>,
    push: Option<JoinHandle<()>>,
    outcome: Option<Outcome>,
}

impl Driver<'_> {
    fn run(mut self) -> Outcome {
        self.drain();
        while self.outcome.is_none() {
            self.wait();
        }
        self.stop();
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
    }

    /// Sends what the outputs left to be sent.
    fn flush(&mut self) {
        match self.channel.flush() {
            Ok(bytes) => self.setup.progress.bytes(bytes),
            Err(error) => self.input(SourceInput::PeerFailed(error)),
        }
    }

    fn perform(&mut self, output: SourceOutput) {
        match output {
            SourceOutput::Send(message) => self.channel.queue(&message),
            SourceOutput::Serve(page) => self.serve(page),
            SourceOutput::ConnectBulk(session) => {
                let connected = self.connect_bulk(session).map_err(|error| error.to_string());
                self.input(SourceInput::BulkConnected(connected));
            }
            SourceOutput::PauseAndSave => {
                let saved = self.pause_and_save();
                self.input(SourceInput::Saved(saved));
            }
            SourceOutput::RecordGrant(transfer) => {
                let recorded = self.record(transfer, Ownership::Granted);
                self.input(SourceInput::GrantRecorded(recorded.map_err(|e| in_full(&e))));
            }
            SourceOutput::RecordReclaimed(transfer) => {
                warn_unrecorded(self.record(transfer, Ownership::Reclaimed));
            }
            SourceOutput::RecordReleased(transfer) => {
                warn_unrecorded(self.setup.records.release(self.setup.offer.guest, transfer));
            }
            SourceOutput::StartPush => self.start_push(),
            SourceOutput::Resume => self.vm.resume(),
            SourceOutput::Reached(phase) => self.setup.progress.reached(phase),
            SourceOutput::Finish(outcome) => {
                // The last words; whether they arrive changes nothing here.
                let _ = self.channel.flush();
                self.setup.progress.ended(&outcome);
                self.outcome = Some(outcome);
            }
        }
    }

    fn pause_and_save(&self) -> Result<Vec<Section>, String> {
        self.setup.records.settle(self.setup.offer.guest).map_err(|e| in_full(&e))?;
        self.setup.progress.reached(Phase::Paused);
        self.vm.pause()?;
        self.vm.save()
    }

    fn record(&self, transfer: u64, ownership: Ownership) -> Result<(), RecordError> {
        let guest = self.setup.offer.guest;
        self.setup.records.write(guest, transfer, ownership, &self.setup.address.to_string())
    }

    fn connect_bulk(&mut self, session: [u8; 16]) -> Result<(), PeerError> {
        let stream = dial(&self.setup.address, self.setup.tls.as_ref(), Channel::Bulk)?;
        stream.send(&session, false).map_err(|e| PeerError::Lost(e.to_string()))?;
        self.bulk = Some(Arc::new(stream));
        Ok(())
    }

    fn start_push(&mut self) {
        let stream = self.bulk.clone().expect("connected before the guest was paused");
        let (pages, sent) = (self.pages.clone(), Arc::clone(&self.sent));
        let (shared, progress) = (Arc::clone(&self.shared), Arc::clone(&self.setup.progress));
        let events = Arc::clone(&self.setup.events);
        let run = move || {
            let (stream, progress) = (&*stream, &*progress);
            let (pages, sent, shared) = (&pages, &*sent, &*shared);
            match (Push { pages, sent, shared, stream, progress, zeros: None }).run() {
                Ok(true) => events.send(Event::Pushed),
                Ok(false) => {}
                Err(error) => events.send(Event::PushFailed(error.to_string())),
            }
        };
        let push = std::thread::Builder::new().name("godwit-push".into()).spawn(run);
        match push {
            Ok(thread) => self.push = Some(thread),
            Err(error) => self.setup.events.send(Event::PushFailed(error.to_string())),
        }
    }

    fn serve(&mut self, page: PageIndex) {
        self.shared.fault_at(page);
        let zero = self.pages.is_zero(page).expect("the request was checked");
        let encoding = if zero { Encoding::Zero } else { Encoding::Raw };
        let head = RunHead { run: PageRun::one(page), encoding };
        let out = self.channel.outgoing();
        out.extend_from_slice(&PushFrame::Pages(head).encode());
        if !zero {
            let start = out.len();
            out.resize(start + PageSize::BASE.bytes(), 0);
            self.pages.read(page, &mut out[start..]).expect("the request was checked");
        }
        let progress = &self.setup.progress;
        progress.pages_sent(if zero { Class::Zero } else { Class::Data }, 1);
        progress.pages_urgent(1);
    }

    fn wait(&mut self) {
        self.flush();
        let deadline = self.machine.poll_timeout();
        let fds = [self.channel.pollable(), self.setup.events.as_fd()];
        match wait_readable(fds, deadline) {
            Ok([urgent, events]) => {
                if urgent {
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
        if !self.channel.receive()? {
            return Ok(());
        }
        let page_count = self.pages.page_count();
        while let Some(frame) = self.channel.next_frame()? {
            let message = Message::read(&frame, page_count)?;
            self.machine.handle(SourceInput::Message(message), Instant::now());
            self.drain();
        }
        Ok(())
    }

    fn take_events(&mut self) {
        for event in self.setup.events.take() {
            self.input(match event {
                Event::GiveUp(reason) => SourceInput::GiveUp(reason),
                Event::Pushed => SourceInput::Pushed,
                Event::PushFailed(error) => {
                    let error = PeerError::Lost(format!("bulk channel: {error}"));
                    SourceInput::PeerFailed(error)
                }
            });
        }
    }

    fn stop(&mut self) {
        self.shared.gate.close();
        self.channel.shutdown();
        if let Some(bulk) = &self.bulk {
            bulk.shutdown();
        }
        if let Some(push) = self.push.take() {
            push.join().expect("the push does not panic");
        }
    }
}

fn warn_unrecorded(result: Result<(), RecordError>) {
    if let Err(error) = result {
        tracing::warn!(error = in_full(&error), "the guest's record is out of date");
    }
}

/// An error and its causes in one line.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
