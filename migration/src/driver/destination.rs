//! The destination's threads: the fault loop, which drives the state machine, polls the
//! userfaultfd and the urgent channel and installs what was asked for; and one thread a bulk
//! channel.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use godwit_uffd::Event as UffdEvent;
use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageRun, PageSize};
use uuid::Uuid;

use super::channel::{UrgentChannel, wait_readable};
use super::notify::Notifier;
use super::receiver::{Arrival, Receiver};
use super::records::{Ownership, RecordError, Records};
use super::source::in_full;
use super::stage::Stage;
use super::take::{Failed, Installer, take_pushed};
use crate::limits::{STAGED_AHEAD_BYTES_MAX, STAGING_STEP_BYTES, STAGING_TIMEOUT};
use crate::metrics::Progress;
use crate::page::{Claims, Contents};
use crate::proto::{
    Destination, DestinationInput, DestinationOutput, Outcome, PeerError, Prepared,
};
use crate::transport::Stream;
use crate::wire::{Encoding, Message, Offer, Section};

/// The host that a guest comes to: makes the machine.
pub trait IncomingHost: Send + Sync {
    /// Builds the machine of `offer`, which has `pages` pages, with its memory registered for
    /// missing faults and empty. Nothing outside this process is touched.
    ///
    /// # Errors
    /// Why this host cannot run it, in a line that the source's operator will read.
    fn prepare(&self, offer: &Offer, pages: u32) -> Result<Arc<dyn IncomingVm>, String>;
}

/// The guest as its destination sees it.
pub trait IncomingVm: Send + Sync {
    /// Its memory.
    fn memory(&self) -> Arc<GuestUffd<KernelUffd>>;
    /// Bytes of pages that may be allocated ahead, to be moved into its memory. 0 if its memory
    /// takes none, or the host has too little to spare.
    fn staged_bytes_max(&self) -> usize;
    /// Loads the state of vCPUs and devices. May touch guest memory, which is served meanwhile.
    ///
    /// # Errors
    /// What is wrong with the state, in a line.
    fn load(&self, sections: Vec<Section>) -> Result<(), String>;
    /// Lets the vCPUs run: the guest is ours.
    fn start(&self);
    /// All pages are here: the memory is ordinary again.
    fn settle(&self);
    /// The guest never ran here and never will: everything is given back.
    fn discard(&self);
}

/// What happens to the destination outside its urgent channel and its userfaultfd.
enum Event {
    Bulk(Stream),
    Loaded(Result<(), String>),
    AllInstalled,
    PushEnded,
    BulkFailed(PeerError),
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

    /// Receives the guest of `arrival`. Returns when the migration is over; after a lost peer only
    /// when it is stopped, because faults still have to be read.
    pub fn run(self, arrival: Arrival, receiver: &Receiver, host: &dyn IncomingHost) -> Outcome {
        let mut driver = Driver {
            channel: UrgentChannel::new(Arc::new(arrival.stream)),
            machine: Destination::new(Instant::now()),
            setup: self,
            receiver,
            host,
            guest: Uuid::nil(),
            machine_room: None,
            loading: None,
            bulk: Vec::new(),
            outcome: None,
            stopped: false,
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
    /// Where the bulk thread will receive; none if pages cannot be moved.
    stage: Option<Stage>,
}

struct Driver<'a> {
    setup: Incoming,
    receiver: &'a Receiver,
    host: &'a dyn IncomingHost,
    channel: UrgentChannel,
    machine: Destination,
    guest: Uuid,
    machine_room: Option<MachineRoom>,
    loading: Option<JoinHandle<()>>,
    bulk: Vec<(Arc<Stream>, JoinHandle<()>)>,
    outcome: Option<Outcome>,
    stopped: bool,
}

impl Driver<'_> {
    fn run(&mut self) -> Outcome {
        while !self.over() {
            self.wait();
        }
        self.outcome.clone().unwrap_or_else(|| Outcome::Paused { reason: "stopped here".into() })
    }

    /// A guest whose peer was lost is kept: its faults are read until somebody ends it.
    fn over(&self) -> bool {
        match &self.outcome {
            Some(Outcome::Paused { .. }) | None => self.stopped,
            Some(Outcome::Completed | Outcome::Aborted { .. }) => true,
        }
    }

    fn input(&mut self, input: DestinationInput<'_>) {
        self.machine.handle(input, Instant::now());
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: DestinationOutput) {
        match output {
            DestinationOutput::Send(message) => self.channel.queue(&message),
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
            DestinationOutput::Discard => {
                if let Some(room) = &self.machine_room {
                    room.vm.discard();
                }
            }
            DestinationOutput::Reached(phase) => self.setup.progress.reached(phase),
            DestinationOutput::Finish(outcome) => {
                // The last words; whether they arrive changes nothing here.
                let _ = self.channel.flush();
                self.setup.progress.ended(&outcome);
                if let Some(room) = &mut self.machine_room {
                    // Nobody will receive into it, and the guest may stay for long.
                    room.stage = None;
                }
                if let Outcome::Paused { .. } = outcome {
                    // This thread goes on, so nobody else will. The source learns it at once.
                    self.setup.progress.show_end();
                    self.hang_up();
                }
                self.outcome = Some(outcome);
            }
            DestinationOutput::Install(_) => unreachable!("taken where the contents are"),
        }
    }

    fn room(&mut self) -> &mut MachineRoom {
        self.machine_room.as_mut().expect("built before anything is loaded")
    }

    fn record(&self, transfer: u64, ownership: Ownership) -> Result<(), RecordError> {
        self.setup.records.write(self.guest, transfer, ownership, self.channel.peer())
    }

    fn prepare(&mut self, offer: &Offer) -> Result<Prepared, String> {
        let pages = offer.pages()?;
        offer.check_transfer()?;
        self.setup.records.may_come(offer.guest, offer.transfer).map_err(|e| in_full(&e))?;
        self.setup.records.prepare(offer.guest).map_err(|e| in_full(&e))?;
        let vm = self.host.prepare(offer, pages)?;
        let claims = Arc::new(Claims::new(pages));
        self.setup.progress.count_claims(Arc::clone(&claims));
        let installer = Installer {
            claims: Arc::clone(&claims),
            memory: vm.memory(),
            progress: Arc::clone(&self.setup.progress),
        };
        self.guest = offer.guest;
        let stage = stage(&claims, vm.staged_bytes_max());
        if let Err(error) = self.setup.records.settle(offer.guest) {
            vm.discard();
            return Err(in_full(&error));
        }
        self.machine_room = Some(MachineRoom { vm, installer, faults: Vec::new(), stage });
        let session = *Uuid::new_v4().as_bytes();
        let events = Arc::clone(&self.setup.events);
        self.receiver
            .expect_bulk(session, Box::new(move |stream| events.send(Event::Bulk(stream))));
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
        if let Err(error) = self.channel.flush() {
            self.input(DestinationInput::PeerFailed(error));
        }
        let deadline = self.machine.poll_timeout();
        let (urgent, events) = (self.channel.pollable(), self.setup.events.as_fd());
        let lost = self.outcome.is_some();
        // A descriptor that is not to be polled is left out by polling another one twice.
        let urgent = if lost { events } else { urgent };
        let memory = self.machine_room.as_ref().map(|room| Arc::clone(&room.installer.memory));
        let faults = memory.as_ref().map_or(events, |memory| memory.as_fd());
        match wait_readable([faults, urgent, events], deadline) {
            Ok([faults, urgent, events]) => {
                if faults && memory.is_some() {
                    self.read_faults();
                }
                if urgent && !lost {
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
        installer.progress.faults().raised(page, Instant::now());
        self.input(DestinationInput::Fault(page));
    }

    fn receive(&mut self) {
        match self.channel.receive() {
            Ok(true) => loop {
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
        let Some(frame) = self.channel.next_frame()? else {
            return Ok(false);
        };
        let now = Instant::now();
        let message = Message::read(&frame, self.machine.page_count())?;
        let contents = match &message {
            Message::Pages(_, contents) => *contents,
            _ => &[],
        };
        self.machine.handle(DestinationInput::Message(message), now);
        if let (Some(head), Some(room)) = (self.machine.poll_install(), &self.machine_room) {
            room.installer.progress.pages_urgent(head.run.count);
            let contents = match head.encoding {
                Encoding::Raw => Contents::Data(contents),
                Encoding::Zero => Contents::Zero,
            };
            if room.installer.install(head, contents).map_err(Failed::into_peer_error)? {
                self.machine.handle(DestinationInput::AllInstalled, now);
            }
        }
        Ok(true)
    }

    fn take_events(&mut self) {
        for event in self.setup.events.take() {
            match event {
                Event::Bulk(stream) => self.start_bulk(stream),
                Event::Loaded(result) => self.input(DestinationInput::Loaded(result)),
                Event::AllInstalled => self.input(DestinationInput::AllInstalled),
                Event::PushEnded => self.input(DestinationInput::PushEnded),
                Event::BulkFailed(error) => self.input(DestinationInput::PeerFailed(error)),
                Event::GuestEnded => self.input(DestinationInput::GuestEnded),
                Event::Stop => {
                    self.stopped = true;
                    let error = PeerError::Lost("stopped by the operator here".into());
                    self.input(DestinationInput::PeerFailed(error));
                }
            }
        }
    }

    fn start_bulk(&mut self, stream: Stream) {
        let stream = Arc::new(stream);
        let room = self.room();
        let (installer, mut stage) = (room.installer.clone(), room.stage.take());
        let events = Arc::clone(&self.setup.events);
        let take = {
            let stream = Arc::clone(&stream);
            move || {
                let last = || events.send(Event::AllInstalled);
                match take_pushed(&stream, &installer, stage.as_mut(), last) {
                    Ok(()) => events.send(Event::PushEnded),
                    Err(error) => events.send(Event::BulkFailed(error)),
                }
                // After the event, because it takes a while.
                drop(stage);
            }
        };
        match std::thread::Builder::new().name("godwit-bulk".into()).spawn(take) {
            Ok(thread) => self.bulk.push((stream, thread)),
            Err(error) => {
                let error = PeerError::Lost(format!("no thread for the bulk channel: {error}"));
                self.input(DestinationInput::PeerFailed(error));
            }
        }
    }

    fn hang_up(&self) {
        self.receiver.expect_no_bulk();
        self.channel.shutdown();
        for (stream, _) in &self.bulk {
            stream.shutdown();
        }
    }

    /// Everything that the migration needed is given back, in the reverse order.
    fn end(mut self, outcome: &Outcome) {
        self.hang_up();
        for (_, thread) in self.bulk.drain(..) {
            thread.join().expect("a bulk thread does not panic");
        }
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

/// Pages for the push, allocated before the guest stops. Without them the guest comes as well.
fn stage(claims: &Arc<Claims>, bytes_max: usize) -> Option<Stage> {
    let ahead_max = bytes_max.min(STAGED_AHEAD_BYTES_MAX);
    if ahead_max < STAGING_STEP_BYTES {
        return None;
    }
    let bytes = PageSize::BASE.length_of(claims.page_count());
    let claims = Arc::clone(claims);
    let missing = move || PageSize::BASE.length_of(claims.remaining());
    match Stage::begin(bytes, ahead_max, missing) {
        Ok(stage) => {
            stage.wait(STAGING_TIMEOUT);
            Some(stage)
        }
        Err(error) => {
            tracing::warn!(%error, "pages cannot be allocated ahead: the drain is slower");
            None
        }
    }
}
