//! The destination's threads: the fault loop, which drives the state machine, polls the
//! userfaultfd and the urgent channel and installs what was asked for; and one thread a bulk
//! channel.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_uffd::Event as UffdEvent;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::PageRun;
use uuid::Uuid;

use super::channel::{UrgentChannel, wait_readable};
use super::guest::{IncomingHost, IncomingVm};
use super::notify::Notifier;
use super::receiver::{Arrival, Joining, Receiver};
use super::records::{RecordError, Records};
use super::stage::{Stage, stages};
use super::take::{Failed, Installer, open, take_pushed};
use super::text::in_full;
use crate::limits::data_pages_per_run_max;
use crate::metrics::Progress;
use crate::page::{Claims, Paging};
use crate::proto::{
    Destination, DestinationInput, DestinationOutput, Outcome, Ownership, PeerError, Prepared,
};
use crate::transport::Stream;
use crate::wire::{Message, Offer, Section};

/// What happens to the destination outside its urgent channel and its userfaultfd. What comes from
/// the bulk channels of one epoch does not count in another.
enum Event {
    Joining(Joining),
    Loaded(Result<(), String>),
    AllInstalled,
    PushEnded { epoch: u32 },
    BulkFailed { epoch: u32, error: PeerError },
    GuestEnded,
    Stop,
}

/// A migration from another host to here.
pub struct Incoming {
    progress: Arc<Progress>,
    records: Records,
    events: Arc<Notifier<Event>>,
}

impl Incoming {
    /// A migration that nobody has asked for yet.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(records: Records, progress: Arc<Progress>) -> std::io::Result<Incoming> {
        Ok(Incoming { progress, records, events: Arc::new(Notifier::new()?) })
    }

    /// A handle by which other threads say that the guest has ended here.
    pub fn guest_ended(&self) -> impl Fn() + Send + Sync + 'static {
        let events = Arc::clone(&self.events);
        move || events.send(Event::GuestEnded)
    }

    /// A handle by which other threads end this migration, wherever it stands. Pages that are
    /// missing stay missing.
    pub fn stop(&self) -> impl Fn() + Send + Sync + 'static {
        let events = Arc::clone(&self.events);
        move || events.send(Event::Stop)
    }

    /// Receives the guest of `arrival`. Returns when the migration is over. A source that is lost
    /// after the grant is waited for until it is back or the migration is stopped.
    pub fn run(self, arrival: Arrival, receiver: &Receiver, host: &dyn IncomingHost) -> Outcome {
        let peer = arrival.peer().to_owned();
        let mut driver = Driver {
            channel: Some(UrgentChannel::new(Arc::new(arrival.stream))),
            peer,
            epoch: 0,
            returning: None,
            machine: Destination::new(Instant::now()),
            setup: self,
            receiver,
            host,
            guest: Uuid::nil(),
            paging: Paging::base(0),
            machine_room: None,
            loading: None,
            bulk: Vec::new(),
            outcome: None,
        };
        let outcome = driver.run();
        driver.end(&outcome);
        outcome
    }
}

/// The machine and where its pages go, once it is built.
struct MachineRoom {
    vm: Arc<dyn IncomingVm>,
    installer: Installer<KernelUffd>,
    faults: Vec<UffdEvent>,
    /// Where the bulk threads will receive, one each; none if pages cannot be moved.
    stages: Vec<Stage>,
}

struct Driver<'a> {
    setup: Incoming,
    receiver: &'a Receiver,
    host: &'a dyn IncomingHost,
    /// None while the source is lost.
    channel: Option<UrgentChannel>,
    peer: String,
    /// Of the channels in use.
    epoch: u32,
    /// A channel that may take the place of the one that was.
    returning: Option<Stream>,
    machine: Destination,
    guest: Uuid,
    /// None until the machine is built: no page index is valid until then.
    paging: Paging,
    machine_room: Option<MachineRoom>,
    loading: Option<JoinHandle<()>>,
    bulk: Vec<(Arc<Stream>, JoinHandle<()>)>,
    outcome: Option<Outcome>,
}

impl Driver<'_> {
    fn run(&mut self) -> Outcome {
        while self.outcome.is_none() {
            self.wait();
        }
        self.outcome.clone().expect("the loop ends with it")
    }

    fn input(&mut self, input: DestinationInput<'_>) {
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

    fn perform(&mut self, output: DestinationOutput) {
        match output {
            DestinationOutput::Send(message) => {
                match &message {
                    Message::Request(run) => self.setup.progress.faults().asked(run.first),
                    Message::RoundReady { number } => self.setup.progress.round(*number),
                    _ => {}
                }
                if let Some(channel) = &mut self.channel {
                    channel.queue(&message);
                }
            }
            DestinationOutput::Prepare(offer) => {
                let prepared = self.prepare(&offer);
                self.input(DestinationInput::Prepared(prepared));
            }
            DestinationOutput::Load(sections) => self.load(sections),
            DestinationOutput::RecordOwned(transfer) => {
                let recorded = self.record(transfer, Ownership::Owned).map_err(|e| in_full(&e));
                self.input(DestinationInput::OwnedRecorded(recorded));
            }
            DestinationOutput::RecordRefused(transfer) => {
                let recorded = self.record(transfer, Ownership::Refused).map_err(|e| in_full(&e));
                self.input(DestinationInput::RefusedRecorded(recorded));
            }
            DestinationOutput::StartGuest => self.room().vm.start(),
            DestinationOutput::Wake(page) => {
                let installer = &self.room().installer;
                if let Err(error) = installer.memory.wake(PageRun::one(page)) {
                    tracing::error!(%page, error = in_full(&error), "a vCPU could not be woken");
                }
                // Installed before its fault was counted: nobody else says that it is served.
                installer.progress.faults().served(page, Instant::now());
            }
            DestinationOutput::Discard(run) => {
                let room = self.room();
                match room.vm.empty(run) {
                    Ok(()) => room.installer.claims.emptied(run),
                    Err(reason) => {
                        let error = PeerError::Lost(format!("cannot empty {run}: {reason}"));
                        self.input(DestinationInput::PeerFailed(error));
                    }
                }
            }
            DestinationOutput::HangUp => self.hang_up(),
            DestinationOutput::Adopt { epoch } => {
                self.epoch = epoch;
                self.channel =
                    self.returning.take().map(|stream| UrgentChannel::new(Arc::new(stream)));
                self.input(DestinationInput::Adopted);
            }
            DestinationOutput::Interrupted(reason) => self.setup.progress.interrupted(&reason),
            DestinationOutput::Abandon => {
                if let Some(room) = &self.machine_room {
                    room.vm.discard();
                }
            }
            DestinationOutput::Reached(phase) => self.setup.progress.reached(phase),
            DestinationOutput::Finish(outcome) => {
                // The last words; whether they arrive changes nothing here.
                let _ = self.channel.as_mut().map(UrgentChannel::flush);
                self.setup.progress.ended(&outcome);
                self.outcome = Some(outcome);
            }
            DestinationOutput::Install(_) => unreachable!("taken where the contents are"),
        }
    }

    fn room(&mut self) -> &mut MachineRoom {
        self.machine_room.as_mut().expect("built before anything is loaded")
    }

    fn record(&self, transfer: u64, ownership: Ownership) -> Result<(), RecordError> {
        self.setup.records.write(self.guest, transfer, ownership, &self.peer)
    }

    fn prepare(&mut self, offer: &Offer) -> Result<Prepared, String> {
        let paging = offer.paging()?;
        self.setup.progress.is_of(offer);
        offer.check_transfer()?;
        offer.check_connections()?;
        self.setup.records.may_come(offer.guest, offer.transfer).map_err(|e| in_full(&e))?;
        let vm = self.host.prepare(offer, paging)?;
        let claims = Arc::new(Claims::new(paging.count));
        self.setup.progress.count_claims(Arc::clone(&claims), paging.size);
        let installer = Installer {
            claims: Arc::clone(&claims),
            memory: vm.memory(),
            progress: Arc::clone(&self.setup.progress),
            base: vm.base(),
        };
        (self.guest, self.paging) = (offer.guest, paging);
        let stages = stages(&claims, paging, vm.staged_bytes_max(), offer.connections);
        // Last, so that the sync of the switchover finds the disk at rest.
        if let Err(error) = self.record(offer.transfer, Ownership::Expected) {
            vm.discard();
            return Err(in_full(&error));
        }
        self.machine_room = Some(MachineRoom { vm, installer, faults: Vec::new(), stages });
        let session = *Uuid::new_v4().as_bytes();
        let events = Arc::clone(&self.setup.events);
        self.receiver
            .expect(session, Box::new(move |joining| events.send(Event::Joining(joining))));
        Ok(Prepared { claims, session })
    }

    fn load(&mut self, sections: Vec<Section>) {
        let vm = Arc::clone(&self.room().vm);
        let events = Arc::clone(&self.setup.events);
        let load = move || events.send(Event::Loaded(vm.load(sections)));
        match std::thread::Builder::new().name("godwit-load".into()).spawn(load) {
            Ok(thread) => self.loading = Some(thread),
            Err(error) => self.input(DestinationInput::Loaded(Err(error.to_string()))),
        }
    }

    fn wait(&mut self) {
        match self.channel.as_mut().map_or(Ok(0), UrgentChannel::flush) {
            Ok(0) => {}
            Ok(_) => self.setup.progress.faults().flushed(Instant::now()),
            Err(error) => self.input(DestinationInput::PeerFailed(error)),
        }
        let deadline = self.machine.poll_timeout();
        let events = self.setup.events.as_fd();
        // A descriptor that is not to be polled is left out by polling another one twice.
        let urgent = self.channel.as_ref().map_or(events, |channel| channel.pollable());
        let memory = self.machine_room.as_ref().map(|room| Arc::clone(&room.installer.memory));
        let faults = memory.as_ref().map_or(events, |memory| memory.as_fd());
        match wait_readable([faults, urgent, events], deadline) {
            Ok([faults, urgent, events]) => {
                if faults && memory.is_some() {
                    self.read_faults();
                }
                if urgent && self.channel.is_some() {
                    self.receive();
                }
                if events {
                    self.take_events();
                }
            }
            Err(error) => {
                let error = PeerError::Lost(format!("cannot poll: {error}"));
                self.input(DestinationInput::PeerFailed(error));
            }
        }
        self.machine.handle_timeout(Instant::now());
        self.drain();
    }

    fn read_faults(&mut self) {
        let room = self.machine_room.as_mut().expect("polled because it is there");
        let mut faults = std::mem::take(&mut room.faults);
        if let Err(error) = room.installer.memory.read_events(&mut faults) {
            let error = PeerError::Lost(format!("cannot read faults: {}", in_full(&error)));
            self.input(DestinationInput::PeerFailed(error));
        }
        for event in faults.drain(..) {
            self.fault(&event);
        }
        self.room().faults = faults;
    }

    fn fault(&mut self, event: &UffdEvent) {
        let installer = &self.room().installer;
        let UffdEvent::Fault(fault) = event else {
            return tracing::warn!(?event, "an event that this guest's memory should not raise");
        };
        let Some(page) = installer.memory.space().page_at(fault.address) else {
            return tracing::error!(?fault, "a fault outside guest memory");
        };
        installer.progress.faults().raised(page, fault.thread, Instant::now());
        self.input(DestinationInput::Fault(page));
    }

    fn receive(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        match channel.receive() {
            Ok(true) => loop {
                self.machine.handle(DestinationInput::PartHeard, Instant::now());
                match self.receive_frame() {
                    Ok(true) => self.drain(),
                    Ok(false) => return,
                    Err(error) => return self.input(DestinationInput::PeerFailed(error)),
                }
            },
            Ok(false) => {}
            Err(error) => self.input(DestinationInput::PeerFailed(error)),
        }
    }

    /// Handles one frame; pages are installed from the receive buffer. False if there is none.
    fn receive_frame(&mut self) -> Result<bool, PeerError> {
        // A message may end the channel that it came on.
        let Some(channel) = &mut self.channel else { return Ok(false) };
        let Some(frame) = channel.next_frame()? else {
            return Ok(false);
        };
        let now = Instant::now();
        let message = Message::read(&frame, self.paging)?;
        let contents = match &message {
            Message::Pages(_, contents) => *contents,
            _ => &[],
        };
        self.machine.handle(DestinationInput::Message(message), now);
        if let (Some(head), Some(room)) = (self.machine.poll_install(), &self.machine_room) {
            let progress = &room.installer.progress;
            progress.pages_urgent(head.run.count);
            let service = Duration::from_micros(head.service_us.into());
            let most = data_pages_per_run_max(self.paging.size);
            for page in head.run.pages().take(most as usize) {
                progress.faults().answered(page, service, now);
            }
            let mut unpacked = Vec::new();
            let contents = open(&head, contents, &mut unpacked)?;
            if room.installer.install(&head, contents).map_err(Failed::into_peer_error)? {
                self.machine.handle(DestinationInput::AllInstalled, now);
            }
        }
        Ok(true)
    }

    fn take_events(&mut self) {
        for event in self.setup.events.take() {
            match event {
                Event::Joining(Joining::Bulk { stream, epoch }) if epoch == self.epoch => {
                    self.start_bulk(stream);
                }
                Event::Joining(Joining::Bulk { stream, epoch }) => {
                    tracing::warn!(peer = stream.peer(), epoch, "a bulk channel of another time");
                }
                Event::Joining(Joining::Resume { stream, epoch }) => {
                    self.returning = Some(stream);
                    self.input(DestinationInput::Resume { epoch });
                    // Not taken: closed, and the source dials again.
                    self.returning = None;
                }
                Event::Loaded(result) => self.input(DestinationInput::Loaded(result)),
                Event::AllInstalled => self.input(DestinationInput::AllInstalled),
                Event::PushEnded { epoch } if epoch == self.epoch => {
                    self.input(DestinationInput::PushEnded);
                }
                Event::BulkFailed { epoch, error } if epoch == self.epoch => {
                    self.input(DestinationInput::PeerFailed(error));
                }
                // Of channels that are no more.
                Event::PushEnded { .. } | Event::BulkFailed { .. } => {}
                Event::GuestEnded => self.input(DestinationInput::GuestEnded),
                Event::Stop => {
                    let reason = "stopped by the operator here".to_owned();
                    self.input(DestinationInput::Abandon(reason));
                }
            }
        }
    }

    fn start_bulk(&mut self, stream: Stream) {
        let (stream, epoch) = (Arc::new(stream), self.epoch);
        if self.bulk.len() == usize::from(self.machine.connections()) {
            return tracing::warn!(peer = stream.peer(), "a bulk channel too many");
        }
        let (paging, room) = (self.paging, self.room());
        let (installer, mut stage) = (room.installer.clone(), room.stages.pop());
        let events = Arc::clone(&self.setup.events);
        let take = {
            let stream = Arc::clone(&stream);
            move || {
                let last = || events.send(Event::AllInstalled);
                let ended = || events.send(Event::PushEnded { epoch });
                let taken = take_pushed(&stream, paging, &installer, stage.as_mut(), last, ended);
                if let Err(error) = taken {
                    events.send(Event::BulkFailed { epoch, error });
                }
                // After the event, because it takes a while.
                drop(stage);
            }
        };
        match std::thread::Builder::new().name("godwit-bulk".into()).spawn(take) {
            Ok(thread) => {
                self.bulk.push((stream, thread));
                self.input(DestinationInput::BulkJoined);
            }
            Err(error) => {
                let error = PeerError::Lost(format!("no thread for the bulk channel: {error}"));
                self.input(DestinationInput::PeerFailed(error));
            }
        }
    }

    /// Closes all channels. When it returns nothing is installed from them any more.
    fn hang_up(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.shutdown();
        }
        for (stream, _) in &self.bulk {
            stream.shutdown();
        }
        for (_, thread) in self.bulk.drain(..) {
            thread.join().expect("a bulk thread does not panic");
        }
    }

    /// Everything that the migration needed is given back, in the reverse order.
    fn end(mut self, outcome: &Outcome) {
        self.receiver.expect_no_more(self.machine.last_words(outcome));
        self.hang_up();
        if let Some(loading) = self.loading.take() {
            loading.join().expect("loading does not panic");
        }
        // A guest that was ended is complete without all of its pages, and must never see zeros in
        // their place: its memory stays registered until its vCPUs are gone.
        if let (Outcome::Completed, Some(room)) = (outcome, &self.machine_room)
            && room.installer.claims.remaining() == 0
        {
            room.vm.settle();
        }
    }
}
