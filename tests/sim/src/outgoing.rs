//! The source: the engine's machine, and what its driver does around it, step by step.

mod perform;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use godwit_migration::limits::{REDIAL_TIMEOUT, SETUP_TIMEOUT};
use godwit_migration::page::{PageSet, Paging, Sent};
use godwit_migration::proto::{
    MigrationState, Outcome, Ownership, PeerError, Saved, Source, SourceInput, SourceOutput,
};
use godwit_migration::wire::{BulkHello, Channel, Complete, Message, Offer, Section, decode};

use crate::channel::Urgent;
use crate::dial::Dial;
use crate::disk::{GUEST, Write};
use crate::env::{Env, Me};
use crate::mutation::Mutation;
use crate::net::End;
use crate::push::{Pusher, Shared};
use crate::vm::Vm;

/// What happens to the source outside its urgent channel.
#[derive(Debug)]
pub enum Event {
    Command(Command),
    Pushed { epoch: u32 },
    PushFailed { epoch: u32, error: String },
    Dialled { epoch: u32, result: Result<Urgent, String> },
    GrantRecorded(Result<(), String>),
}

/// What an operator wants.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    GiveUp,
    Cancel,
    SwitchNow,
    Recover(Option<usize>),
    Abandon,
}

/// What the thread of the machine waits for.
#[derive(Debug)]
enum Blocked {
    Recording { write: Write, ownership: Ownership },
    Bulk { hello: BulkHello, dial: Option<Dial> },
    Tracking(Duration),
    Collecting(Duration),
    Pausing(Duration),
}

/// A dial that the world is to begin.
#[derive(Debug)]
pub struct DialWanted {
    pub to: usize,
    pub channel: Channel,
    pub hello: Vec<u8>,
    pub timeout: Duration,
}

/// A migration from here to another host.
#[derive(Debug)]
pub struct Outgoing {
    offer: Offer,
    /// None until the destination was dialled.
    machine: Option<Source>,
    sent: Arc<Sent>,
    pub target: usize,
    /// Where the guest was sent at first.
    pub first_target: usize,
    channel: Option<Urgent>,
    bulk: Vec<End>,
    pub pushers: Vec<Pusher>,
    running: usize,
    shared: Shared,
    pub events: VecDeque<Event>,
    pending: Option<SourceOutput>,
    blocked: Option<Blocked>,
    /// A dial on a thread of its own, with its epoch; 0 for the first.
    dial: Option<(Dial, u32)>,
    pub wanted: Option<DialWanted>,
    wanted_epoch: Option<u32>,
    /// Records that are being written meanwhile.
    writes: VecDeque<Write>,
    pub busy_until: Duration,
    pub outcome: Option<Outcome>,
    /// For a mistake that is made on purpose.
    pub grants_again: bool,
}

impl Outgoing {
    pub fn new(env: &Env, target: usize, transfer: u64) -> Outgoing {
        let pages = env.guest.pages();
        let low = u64::from(pages.div_ceil(2)) * 4096;
        let high = u64::from(pages) * 4096 - low;
        let slot = |gpa, bytes| godwit_migration::wire::MemslotLayout { gpa, bytes };
        let offer = Offer {
            guest: GUEST,
            transfer,
            page_bytes: 4096,
            mode: env.plan.mode,
            connections: env.plan.connections,
            memslots: vec![slot(0, low), slot(1 << 32, high)],
            config: vec![],
            requirements: vec![],
            base: None,
        };
        let sent = Arc::new(Sent::new(pages));
        let (channel, hello, timeout) = (Channel::Urgent, Vec::new(), SETUP_TIMEOUT);
        Outgoing {
            offer,
            machine: None,
            shared: Shared::new(&sent, Arc::new(PageSet::empty(0))),
            sent,
            target,
            first_target: target,
            channel: None,
            bulk: Vec::new(),
            pushers: Vec::new(),
            running: 0,
            events: VecDeque::new(),
            pending: None,
            blocked: None,
            dial: None,
            wanted: Some(DialWanted { to: target, channel, hello, timeout }),
            wanted_epoch: Some(0),
            writes: VecDeque::new(),
            busy_until: Duration::ZERO,
            outcome: None,
            grants_again: false,
        }
    }

    pub fn transfer(&self) -> u64 {
        self.offer.transfer
    }

    /// The state in the words that users know; set-up until there is a machine.
    pub fn state(&self) -> MigrationState {
        self.machine.as_ref().map_or(MigrationState::Setup, Source::migration_state)
    }

    /// The dial that was wanted has begun.
    pub fn dialling(&mut self, dial: Dial) {
        match (&mut self.blocked, self.wanted_epoch.take()) {
            (_, Some(epoch)) => self.dial = Some((dial, epoch)),
            (Some(Blocked::Bulk { dial: bulk, .. }), None) => *bulk = Some(dial),
            (blocked, None) => panic!("nobody wants a dial: {blocked:?}"),
        }
    }

    pub fn dial_ready_at(&self, env: &Env) -> Option<Duration> {
        self.dial.as_ref().map(|(dial, _)| dial.ready_at(env))
    }

    /// The thread that dials goes on.
    pub fn step_dial(&mut self, env: &mut Env) {
        let (dial, epoch) = self.dial.as_mut().expect("it was ready");
        if let Some(result) = dial.step(env) {
            let epoch = *epoch;
            self.dial = None;
            env.log(|| format!("source dialled, epoch {epoch}: {:?}", result.as_ref().err()));
            self.events.push_back(Event::Dialled { epoch, result });
            env.mark("source has dialled");
        }
    }

    /// All streams of this side.
    pub fn ends(&self) -> Vec<End> {
        let bulk_dial = match &self.blocked {
            Some(Blocked::Bulk { dial, .. }) => dial.as_ref().and_then(Dial::end),
            _ => None,
        };
        let dial = self.dial.as_ref().and_then(|(dial, _)| dial.end());
        let urgent = self.channel.as_ref().map(|channel| channel.end);
        self.bulk.iter().copied().chain(urgent).chain(dial).chain(bulk_dial).collect()
    }

    /// Writes that are under way.
    pub fn take_writes(&mut self) -> Vec<Write> {
        let blocked = match self.blocked.take() {
            Some(Blocked::Recording { write, .. }) => Some(write),
            _ => None,
        };
        self.writes.drain(..).chain(blocked).collect()
    }

    /// When the thread of the machine has something to do.
    pub fn ready_at(&mut self, env: &Env) -> Option<Duration> {
        let has_output = self.has_output();
        let at = match &self.blocked {
            Some(Blocked::Recording { write, .. }) => Some(write.done_at),
            Some(Blocked::Bulk { dial: None, .. }) => None,
            Some(Blocked::Bulk { dial: Some(dial), .. }) => Some(dial.ready_at(env)),
            Some(Blocked::Tracking(at) | Blocked::Collecting(at) | Blocked::Pausing(at)) => {
                Some(*at)
            }
            None if has_output || !self.events.is_empty() => Some(Duration::ZERO),
            None => self.input_at(env),
        };
        let written = self.writes.front().map(|write| write.done_at);
        let at = [at, written].into_iter().flatten().min();
        at.map(|at| at.max(self.busy_until))
    }

    fn input_at(&self, env: &Env) -> Option<Duration> {
        let timer = self.machine.as_ref().and_then(Source::poll_timeout);
        let timer = timer.map(|at| env.since_start(at));
        let channel = self.channel.as_ref();
        let flush = self.shared.urgent || channel.is_some_and(Urgent::has_outgoing);
        let flush = flush.then_some(Duration::ZERO);
        let urgent = channel.and_then(|channel| channel.readable_at(env));
        [timer, flush, urgent].into_iter().flatten().min()
    }

    fn has_output(&mut self) -> bool {
        if self.pending.is_none() {
            self.pending = self.machine.as_mut().and_then(Source::poll_output);
        }
        self.pending.is_some()
    }

    fn machine(&mut self) -> &mut Source {
        self.machine.as_mut().expect("it was dialled")
    }

    fn input(&mut self, env: &Env, input: SourceInput<'_>) {
        self.machine().handle(input, env.instant());
    }

    /// One step of the thread of the machine.
    pub fn step(&mut self, env: &mut Env, me: Me, vm: &mut Vm) {
        if self.writes.front().is_some_and(|write| write.done_at <= env.now) {
            let write = self.writes.pop_front().expect("there is one");
            let result = env.finish_write(me, write);
            env.mark("source has recorded the grant");
            return self.events.push_back(Event::GrantRecorded(result));
        }
        if self.blocked.is_some() {
            return self.unblock(env, me, vm);
        }
        if self.has_output() {
            let output = self.pending.take().expect("there is one");
            return self.perform(env, me, vm, output);
        }
        if let Some(channel) = &mut self.channel
            && channel.has_outgoing()
        {
            let flushed = channel.flush(env);
            self.leave_gate();
            if let Err(error) = flushed {
                self.input(env, SourceInput::PeerFailed(error));
            }
            return;
        }
        if self.shared.urgent {
            return self.leave_gate();
        }
        self.take_input(env);
    }

    fn leave_gate(&mut self) {
        if std::mem::take(&mut self.shared.urgent) {
            self.shared.gate.leave();
        }
    }

    fn take_input(&mut self, env: &mut Env) {
        let readable = self.channel.as_ref().and_then(|channel| channel.readable_at(env));
        let readable = readable.is_some_and(|at| at <= env.now);
        if readable && (self.events.is_empty() || env.rng.chance(50)) {
            return self.receive(env);
        }
        if let Some(event) = self.events.pop_front() {
            return self.event(env, event);
        }
        let (now, machine) = (env.instant(), self.machine());
        machine.handle_timeout(now);
    }

    fn receive(&mut self, env: &mut Env) {
        if !std::mem::replace(&mut self.shared.urgent, true) {
            self.shared.gate.enter();
        }
        let pages = self.sent.page_count();
        let channel = self.channel.as_mut().expect("it is readable");
        let read = match channel.next_frame(env) {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                let frame = decode(&bytes).expect("it was decoded").expect("it is whole");
                Message::read(&frame, Paging::base(pages)).map(|message| {
                    env.log(|| format!("source receives {message:?}"));
                    let message = self.mutated(env, message);
                    self.machine().handle(SourceInput::Message(message), env.instant());
                })
            }
            Err(PeerError::Lost(_)) if self.ends_as_success(env) => {
                let complete = Complete { zero: 0, data: 0, guest_ended: true };
                self.input(env, SourceInput::Message(Message::Complete(complete)));
                Ok(())
            }
            Err(error) => {
                self.input(env, SourceInput::PeerFailed(error));
                Ok(())
            }
        };
        if let Err(error) = read {
            self.input(env, SourceInput::PeerFailed(error.into()));
        }
    }

    fn ends_as_success(&mut self, env: &Env) -> bool {
        env.is_mutated(Mutation::EndOfStreamIsSuccess)
            && self.state() == MigrationState::PostcopyActive
    }

    fn mutated<'a>(&self, env: &Env, message: Message<'a>) -> Message<'a> {
        match message {
            Message::Received(mut part) if env.is_mutated(Mutation::ForgetPageOnReconnect) => {
                // The first page that is missing.
                if let Some(word) = part.words.iter_mut().find(|word| **word != u64::MAX) {
                    *word |= *word + 1;
                }
                Message::Received(part)
            }
            other => other,
        }
    }

    fn event(&mut self, env: &mut Env, event: Event) {
        let Some(machine) = &mut self.machine else { return self.first_dialled(env, event) };
        let now = machine.epoch();
        match event {
            Event::Command(command) => self.command(env, command),
            Event::Pushed { epoch } if epoch == now => self.input(env, SourceInput::Pushed),
            Event::PushFailed { epoch, error } if epoch == now => {
                let error = PeerError::Lost(format!("bulk channel: {error}"));
                self.input(env, SourceInput::PeerFailed(error));
            }
            Event::Dialled { epoch, result } if epoch == now => {
                let result = result.map(|channel| self.channel = Some(channel));
                self.input(env, SourceInput::Dialled(result));
            }
            Event::Dialled { result: Ok(channel), .. } => env.net.close(channel.end, env.now),
            Event::GrantRecorded(result) => self.input(env, SourceInput::GrantRecorded(result)),
            // Of channels that are no more.
            Event::Pushed { .. } | Event::PushFailed { .. } | Event::Dialled { .. } => {}
        }
    }

    /// Nothing is heard before the first dial is over.
    fn first_dialled(&mut self, env: &mut Env, event: Event) {
        match event {
            Event::Dialled { result: Ok(channel), .. } => {
                self.channel = Some(channel);
                let (offer, sent) = (self.offer.clone(), Arc::clone(&self.sent));
                self.machine = Some(Source::new(offer, env.plan.limits, sent, env.instant()));
            }
            Event::Dialled { result: Err(reason), .. } => {
                self.outcome = Some(Outcome::Aborted { reason });
            }
            // Told again when the machine is there.
            other => {
                if self.dial.is_some() || self.wanted.is_some() {
                    self.busy_until = env.now + Duration::from_millis(100);
                    self.events.push_back(other);
                }
            }
        }
    }

    fn command(&mut self, env: &Env, command: Command) {
        let input = match command {
            Command::GiveUp => SourceInput::GiveUp("the guest powered off".into()),
            Command::Cancel => SourceInput::Cancel,
            Command::SwitchNow => SourceInput::SwitchNow,
            Command::Recover(target) => {
                self.target = target.unwrap_or(self.target);
                SourceInput::Redial
            }
            Command::Abandon => SourceInput::Abandon("the operator gives it up".into()),
        };
        self.input(env, input);
    }

    fn want(&mut self, channel: Channel, hello: Vec<u8>, timeout: Duration, epoch: Option<u32>) {
        self.wanted = Some(DialWanted { to: self.target, channel, hello, timeout });
        self.wanted_epoch = epoch;
    }

    fn want_bulk(&mut self, hello: BulkHello) {
        let timeout = if hello.epoch == 0 { SETUP_TIMEOUT } else { REDIAL_TIMEOUT };
        self.want(Channel::Bulk, hello.encode().to_vec(), timeout, None);
        self.blocked = Some(Blocked::Bulk { hello, dial: None });
    }

    /// What the thread waited for is there, or a part of it.
    fn unblock(&mut self, env: &mut Env, me: Me, vm: &mut Vm) {
        match self.blocked.take().expect("it is blocked") {
            Blocked::Recording { write, ownership } => {
                let result = env.finish_write(me, write);
                if ownership == Ownership::Granted {
                    env.mark("source has recorded the grant");
                    self.input(env, SourceInput::GrantRecorded(result));
                }
            }
            Blocked::Bulk { hello, dial } => {
                let mut dial = dial.expect("ready because it is there");
                match dial.step(env) {
                    None => self.blocked = Some(Blocked::Bulk { hello, dial: Some(dial) }),
                    Some(Err(reason)) => {
                        self.bulk.drain(..).for_each(|end| env.net.close(end, env.now));
                        self.input(env, SourceInput::BulkConnected(Err(reason)));
                    }
                    Some(Ok(channel)) => {
                        self.bulk.push(channel.end);
                        if self.bulk.len() < usize::from(self.offer.connections) {
                            return self.want_bulk(hello);
                        }
                        self.input(env, SourceInput::BulkConnected(Ok(())));
                    }
                }
            }
            Blocked::Tracking(_) => {
                vm.tracking = true;
                vm.dirty.clear();
                self.input(env, SourceInput::TrackingStarted(Ok(())));
            }
            Blocked::Collecting(_) => {
                let dirty = take_dirty(vm);
                self.input(env, SourceInput::Collected(Ok(dirty)));
            }
            Blocked::Pausing(_) => {
                vm.running = false;
                let tracks = self.machine().tracks();
                let dirty =
                    if tracks { take_dirty(vm) } else { PageSet::empty(vm.dirty.page_count()) };
                let bytes = vec![env.guest.state()];
                let sections = vec![Section { id: 1, version: 1, bytes }];
                self.input(env, SourceInput::Saved(Ok(Saved { sections, dirty })));
            }
        }
    }
}

fn take_dirty(vm: &mut Vm) -> PageSet {
    let pages = vm.dirty.page_count();
    std::mem::replace(&mut vm.dirty, PageSet::empty(pages))
}
