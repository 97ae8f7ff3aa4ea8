//! The destination: the engine's machine, and what its driver does around it, step by step.

mod place;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use godwit_migration::page::{Claims, Paging};
use godwit_migration::proto::{
    Destination, DestinationInput, DestinationOutput, MigrationState, Outcome, Ownership,
    PeerError, Prepared, may_come,
};
use godwit_migration::wire::{Message, Offer, decode};
use godwit_uffd::Event as UffdEvent;
use godwit_uffd::page::{PageRun, PageSize};

use crate::channel::Urgent;
use crate::disk::Write;
use crate::door::Door;
use crate::env::{Env, Me};
use crate::guest::Access;
use crate::memory::{Arriving, Memory, Waiting};
use crate::net::End;
use crate::runs::Arrived;
use crate::take::{Install, Room, Step, Taker};
use crate::vm::Vm;

/// What happens to the destination outside its urgent channel and its userfaultfd.
#[derive(Debug)]
pub enum Event {
    /// A channel of the session, with what it has brought behind its hello.
    Bulk {
        end: End,
        epoch: u32,
        rest: Vec<u8>,
    },
    Resume {
        end: End,
        epoch: u32,
        rest: Vec<u8>,
    },
    Loaded(Result<(), String>),
    AllInstalled,
    PushEnded {
        epoch: u32,
    },
    BulkFailed {
        epoch: u32,
        error: PeerError,
    },
    Recorded(Ownership, Result<(), String>),
    GuestEnded,
    Stop,
}

/// What the thread of the machine waits for.
#[derive(Debug)]
enum Blocked {
    Building { at: Duration, offer: Offer },
    Expecting { write: Write },
    Recording { write: Write, ownership: Ownership },
    Installing(Install),
}

/// The thread that loads the guest's state, which touches memory.
#[derive(Debug)]
struct Loading {
    left: Vec<Access>,
    waiting: Option<Waiting>,
    busy_until: Duration,
}

/// A migration from another host to here.
#[derive(Debug)]
pub struct Incoming {
    machine: Destination,
    channel: Option<Urgent>,
    epoch: u32,
    /// A channel that may take the place of the one that was.
    returning: Option<Urgent>,
    pub room: Option<Room>,
    pub transfer: u64,
    pub takers: Vec<Taker>,
    loading: Option<Loading>,
    /// The vCPUs' state as it was loaded, and what loading has read.
    loaded_state: u8,
    loaded_reads: Vec<(Access, u8)>,
    pub events: VecDeque<Event>,
    faults: VecDeque<UffdEvent>,
    pending: Option<DestinationOutput>,
    blocked: Option<Blocked>,
    writes: VecDeque<(Write, Ownership)>,
    pub busy_until: Duration,
    pub outcome: Option<Outcome>,
}

impl Incoming {
    pub fn new(env: &Env, end: End) -> Incoming {
        Incoming {
            machine: Destination::new(env.instant()),
            channel: Some(Urgent::new(end)),
            epoch: 0,
            returning: None,
            room: None,
            transfer: 0,
            takers: Vec::new(),
            loading: None,
            loaded_state: 0,
            loaded_reads: Vec::new(),
            events: VecDeque::new(),
            faults: VecDeque::new(),
            pending: None,
            blocked: None,
            writes: VecDeque::new(),
            busy_until: Duration::ZERO,
            outcome: None,
        }
    }

    pub fn state(&self) -> MigrationState {
        self.machine.migration_state()
    }

    /// It has something to do at once.
    pub fn has_work(&self) -> bool {
        self.pending.is_some() || !self.faults.is_empty() || self.blocked.is_some()
    }

    /// All streams of this side.
    pub fn ends(&self) -> Vec<End> {
        let urgent = self.channel.as_ref().map(|channel| channel.end);
        let joining = self.events.iter().filter_map(|event| match event {
            Event::Bulk { end, .. } | Event::Resume { end, .. } => Some(*end),
            _ => None,
        });
        let bulk = self.takers.iter().map(|taker| taker.end);
        let returning = self.returning.as_ref().map(|channel| channel.end);
        bulk.chain(urgent).chain(joining).chain(returning).collect()
    }

    /// Writes that are under way.
    pub fn take_writes(&mut self) -> Vec<Write> {
        let blocked = match self.blocked.take() {
            Some(Blocked::Recording { write, .. } | Blocked::Expecting { write }) => Some(write),
            _ => None,
        };
        self.writes.drain(..).map(|(write, _)| write).chain(blocked).collect()
    }

    /// When the thread of the machine has something to do.
    pub fn ready_at(&mut self, env: &Env, vm: Option<&Vm>) -> Option<Duration> {
        let has_output = self.has_output();
        let at = match &self.blocked {
            Some(Blocked::Building { at, .. }) => Some(*at),
            Some(Blocked::Recording { write, .. } | Blocked::Expecting { write }) => {
                Some(write.done_at)
            }
            Some(Blocked::Installing(_)) => Some(Duration::ZERO),
            None if has_output || !self.events.is_empty() => Some(Duration::ZERO),
            None if !self.faults.is_empty() => Some(Duration::ZERO),
            None => self.input_at(env, vm),
        };
        let written = self.writes.front().map(|(write, _)| write.done_at);
        let at = [at, written].into_iter().flatten().min();
        at.map(|at| at.max(self.busy_until))
    }

    fn input_at(&self, env: &Env, vm: Option<&Vm>) -> Option<Duration> {
        if has_faults(vm) {
            return Some(Duration::ZERO);
        }
        let timer = self.machine.poll_timeout().map(|at| env.since_start(at));
        let channel = self.channel.as_ref();
        let flush = channel.filter(|channel| channel.has_outgoing()).map(|_| Duration::ZERO);
        let urgent = channel.and_then(|channel| channel.readable_at(env));
        [timer, flush, urgent].into_iter().flatten().min()
    }

    fn has_output(&mut self) -> bool {
        if self.pending.is_none() {
            self.pending = self.machine.poll_output();
        }
        self.pending.is_some()
    }

    fn input(&mut self, env: &Env, input: DestinationInput<'_>) {
        self.machine.handle(input, env.instant());
    }

    fn room(&self) -> &Room {
        self.room.as_ref().expect("built before anything is loaded")
    }

    /// One step of the thread of the machine.
    pub fn step(&mut self, env: &mut Env, me: Me, vm: &mut Option<Vm>, door: &mut Door) {
        if self.writes.front().is_some_and(|(write, _)| write.done_at <= env.now) {
            let (write, ownership) = self.writes.pop_front().expect("there is one");
            let result = env.finish_write(me, write);
            return self.events.push_back(Event::Recorded(ownership, result));
        }
        if let Some(blocked) = self.blocked.take() {
            return self.unblock(env, me, vm, door, blocked);
        }
        if self.has_output() {
            let output = self.pending.take().expect("there is one");
            return self.perform(env, me, vm, output);
        }
        if let Some(channel) = &mut self.channel
            && channel.has_outgoing()
        {
            if let Err(error) = channel.flush(env) {
                self.input(env, DestinationInput::PeerFailed(error));
            }
            return;
        }
        self.take_input(env, vm);
    }

    fn take_input(&mut self, env: &mut Env, vm: &mut Option<Vm>) {
        let readable = self.channel.as_ref().and_then(|channel| channel.readable_at(env));
        let readable = readable.is_some_and(|at| at <= env.now);
        match env.rng.below(3) {
            0 if readable => self.receive(env),
            1 if !self.events.is_empty() => self.event(env),
            _ if !self.faults.is_empty() => self.fault(env),
            _ if has_faults(vm.as_ref()) => self.read_faults(),
            _ if !self.events.is_empty() => self.event(env),
            _ if readable => self.receive(env),
            _ => self.machine.handle_timeout(env.instant()),
        }
    }

    fn read_faults(&mut self) {
        let mut faults = Vec::new();
        self.room().uffd.0.read_events(&mut faults).expect("it can be read");
        self.faults.extend(faults);
    }

    fn fault(&mut self, env: &Env) {
        let Some(UffdEvent::Fault(fault)) = self.faults.pop_front() else {
            panic!("an event that this guest's memory should not raise");
        };
        let page = self.room().uffd.0.space().page_at(fault.address).expect("in guest memory");
        self.input(env, DestinationInput::Fault(page));
    }

    fn receive(&mut self, env: &mut Env) {
        let channel = self.channel.as_mut().expect("it is readable");
        let received = match channel.next_frame(env) {
            Ok(None) => return,
            Ok(Some(bytes)) => self.receive_frame(env, &bytes),
            Err(error) => Err(error),
        };
        if let Err(error) = received {
            self.input(env, DestinationInput::PeerFailed(error));
        }
    }

    fn receive_frame(&mut self, env: &mut Env, bytes: &[u8]) -> Result<(), PeerError> {
        let frame = decode(bytes).expect("it was decoded").expect("it is whole");
        let message = Message::read(&frame, Paging::base(self.machine.page_count()))?;
        let contents = match &message {
            Message::Pages(head, contents) => {
                env.log(|| format!("destination receives {}", head.run));
                *contents
            }
            other => {
                env.log(|| format!("destination receives {other:?}"));
                &[]
            }
        };
        self.machine.handle(DestinationInput::Message(message), env.instant());
        if let (Some(head), Some(room)) = (self.machine.poll_install(), &self.room) {
            let arrived = Arrived::new(head, contents)?;
            self.blocked = Some(Blocked::Installing(Install::begin(env, room, arrived)?));
        }
        Ok(())
    }

    fn event(&mut self, env: &mut Env) {
        match self.events.pop_front().expect("there is one") {
            Event::Bulk { end, epoch, rest } => {
                let all = usize::from(self.machine.connections());
                if epoch == self.epoch && self.takers.len() < all {
                    self.takers.push(Taker::new(end, epoch, rest));
                    self.input(env, DestinationInput::BulkJoined);
                } else {
                    env.net.close(end, env.now);
                }
            }
            Event::Resume { end, epoch, rest } => {
                self.returning = Some(Urgent::behind(end, rest));
                self.input(env, DestinationInput::Resume { epoch });
                if !self.has_output() {
                    self.forget_returning(env);
                }
            }
            Event::Loaded(result) => self.input(env, DestinationInput::Loaded(result)),
            Event::AllInstalled => self.input(env, DestinationInput::AllInstalled),
            Event::PushEnded { epoch } if epoch == self.epoch => {
                self.input(env, DestinationInput::PushEnded);
            }
            Event::BulkFailed { epoch, error } if epoch == self.epoch => {
                self.input(env, DestinationInput::PeerFailed(error));
            }
            // Of channels that are no more.
            Event::PushEnded { .. } | Event::BulkFailed { .. } => {}
            Event::Recorded(Ownership::Owned, result) => self.owned(env, result),
            Event::Recorded(_, result) => {
                self.input(env, DestinationInput::RefusedRecorded(result));
            }
            Event::GuestEnded => self.input(env, DestinationInput::GuestEnded),
            Event::Stop => {
                let reason = "stopped by the operator here".to_owned();
                self.input(env, DestinationInput::Abandon(reason));
            }
        }
    }

    fn forget_returning(&mut self, env: &mut Env) {
        if let Some(channel) = self.returning.take() {
            env.net.close(channel.end, env.now);
        }
    }

    fn owned(&mut self, env: &mut Env, result: Result<(), String>) {
        env.mark("destination has recorded that it owns");
        self.input(env, DestinationInput::OwnedRecorded(result));
    }

    fn unblock(
        &mut self,
        env: &mut Env,
        me: Me,
        vm: &mut Option<Vm>,
        door: &mut Door,
        blocked: Blocked,
    ) {
        match blocked {
            Blocked::Building { offer, .. } => self.build(env, me, vm, &offer),
            Blocked::Expecting { write } => {
                let prepared = env.finish_write(me, write).map(|()| {
                    let session = std::array::from_fn(|_| env.rng.byte());
                    door.session = Some(session);
                    door.over = None;
                    Prepared { claims: Arc::clone(&self.room().claims), session }
                });
                if prepared.is_err() {
                    *vm = None;
                }
                self.input(env, DestinationInput::Prepared(prepared));
            }
            Blocked::Recording { write, ownership } => {
                let result = env.finish_write(me, write);
                if ownership == Ownership::Owned {
                    return self.owned(env, result);
                }
                self.input(env, DestinationInput::RefusedRecorded(result));
            }
            Blocked::Installing(install) => match install.step(env, self.room()) {
                Ok(Step::Goes(install)) => self.blocked = Some(Blocked::Installing(install)),
                Ok(Step::Over { last: true }) => self.input(env, DestinationInput::AllInstalled),
                Ok(Step::Over { last: false }) => {}
                Err(error) => self.input(env, DestinationInput::PeerFailed(error)),
            },
        }
    }

    fn build(&mut self, env: &mut Env, me: Me, vm: &mut Option<Vm>, offer: &Offer) {
        let pages = offer.paging().expect("it was checked").count;
        let memory = Arriving::new(pages, env.guest.cpus());
        let claims = Arc::new(Claims::new(pages));
        self.room = Some(Room { claims, uffd: Arc::clone(&memory.uffd) });
        *vm = Some(Vm::new(Memory::Arriving(memory), env));
        match env.begin_write(me, offer.transfer, Ownership::Expected) {
            Ok(write) => self.blocked = Some(Blocked::Expecting { write }),
            Err(reason) => self.input(env, DestinationInput::Prepared(Err(reason))),
        }
    }

    fn prepare(&mut self, env: &mut Env, me: Me, offer: Offer) {
        let record = env.disk(me).record.clone();
        let checked = (|| {
            let pages = Paging { size: PageSize::BASE, count: env.guest.pages() };
            if offer.paging()? != pages {
                return Err("its memory is not that of its machine");
            }
            offer.check_transfer()?;
            offer.check_connections()
        })();
        let checked = checked.map_err(str::to_owned).and_then(|()| {
            let stale = |seen| format!("this host has seen transfer {seen}");
            may_come(record.as_ref(), offer.transfer).map_err(stale)
        });
        match checked {
            Ok(()) => {
                self.transfer = offer.transfer;
                let at = env.now + env.rng.micros(10, 30_000);
                self.blocked = Some(Blocked::Building { at, offer });
            }
            Err(reason) => self.input(env, DestinationInput::Prepared(Err(reason))),
        }
    }

    fn record(&mut self, env: &mut Env, me: Me, transfer: u64, ownership: Ownership) {
        match env.begin_write(me, transfer, ownership) {
            Ok(write) if env.plan.asynchronous => self.writes.push_back((write, ownership)),
            Ok(write) => self.blocked = Some(Blocked::Recording { write, ownership }),
            Err(reason) => self.events.push_front(Event::Recorded(ownership, Err(reason))),
        }
    }

    fn perform(&mut self, env: &mut Env, me: Me, vm: &mut Option<Vm>, output: DestinationOutput) {
        env.log(|| format!("host {} destination: {output:?}", me.host));
        match output {
            DestinationOutput::Send(message) => self.send(env, me, &message),
            DestinationOutput::Prepare(offer) => self.prepare(env, me, offer),
            DestinationOutput::Load(sections) => self.load(env, &sections),
            DestinationOutput::RecordOwned(transfer) => {
                env.mark("destination records that it owns");
                self.record(env, me, transfer, Ownership::Owned);
            }
            DestinationOutput::RecordRefused(transfer) => {
                env.mark("destination records a refusal");
                self.record(env, me, transfer, Ownership::Refused);
            }
            DestinationOutput::StartGuest => {
                self.check_loaded(env);
                vm.as_mut().expect("it is loaded").running = !env.guest.ended;
            }
            DestinationOutput::Wake(page) => {
                self.room().uffd.0.wake(PageRun::one(page)).expect("a page of the guest");
            }
            DestinationOutput::Discard(run) => self.discard(env, vm, run),
            DestinationOutput::HangUp => self.hang_up(env),
            DestinationOutput::Adopt { epoch } => {
                self.epoch = epoch;
                self.channel = self.returning.take();
                self.input(env, DestinationInput::Adopted);
            }
            DestinationOutput::Interrupted(reason) => {
                env.mark("destination is interrupted");
                crate::check::accusation(env, &reason);
            }
            DestinationOutput::Abandon => {
                if vm.as_ref().is_some_and(|vm| vm.running) {
                    env.violated("a guest that runs is thrown away");
                }
                *vm = None;
                self.loading = None;
            }
            DestinationOutput::Reached(_) => {}
            DestinationOutput::Finish(outcome) => self.finish(env, outcome),
            DestinationOutput::Install(_) => panic!("taken where the contents are"),
        }
        if !self.has_output() {
            self.forget_returning(env);
        }
    }

    fn send(&mut self, env: &mut Env, me: Me, message: &Message<'_>) {
        if matches!(message, Message::Complete(_)) {
            env.whole.insert(self.transfer);
        }
        let Some(channel) = &mut self.channel else { return };
        channel.queue(message, env, me);
        match message {
            Message::Accept(_) => env.mark("destination sends Accept"),
            Message::RoundReady { .. } => env.mark("destination sends RoundReady"),
            Message::RoundDone { .. } => env.mark("destination sends RoundDone"),
            Message::Loaded { .. } => env.mark("destination sends Loaded"),
            Message::Owned { .. } => env.mark("destination sends Owned"),
            Message::Request(_) => env.mark("destination sends Request"),
            Message::Received(_) => env.mark("destination sends Received"),
            Message::Resumed { .. } => env.mark("destination sends Resumed"),
            Message::Complete(_) => env.mark("destination sends Complete"),
            _ => {}
        }
    }
}

fn has_faults(vm: Option<&Vm>) -> bool {
    vm.is_some_and(|vm| matches!(&vm.memory, Memory::Arriving(memory) if memory.has_events()))
}
