//! One process of one host: a guest that runs or arrives, a migration each way, and a door.

use std::time::Duration;

use godwit_migration::proto::{Outcome, Ownership};

use crate::check;
use crate::disk::ProcessId;
use crate::door::{Door, Greeted, Greeting};
use crate::env::{Env, Me};
use crate::incoming::{self, Incoming};
use crate::memory::Memory;
use crate::net::End;
use crate::outgoing::Outgoing;
use crate::vm::Vm;

/// What a process has in memory: gone with it.
#[derive(Debug)]
pub struct Process {
    pub me: Me,
    pub vm: Option<Vm>,
    pub outgoing: Option<Outgoing>,
    pub incoming: Option<Incoming>,
    pub door: Door,
    pub greetings: Vec<Greeting>,
    /// The number of the next transfer from here.
    pub next_transfer: u64,
    /// It stands still until then.
    pub frozen_until: Duration,
    /// Its operator wants it to end.
    pub stopped: bool,
    /// Its work is done.
    pub exits: bool,
}

/// What a process can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Outgoing,
    Dial,
    Push(usize),
    Incoming,
    Take(usize),
    Load,
    Greet(usize),
    Cpu(usize),
}

impl Process {
    pub fn new(host: usize, id: ProcessId) -> Process {
        Process {
            me: Me { host, id },
            vm: None,
            outgoing: None,
            incoming: None,
            door: Door::default(),
            greetings: Vec::new(),
            next_transfer: 1,
            frozen_until: Duration::ZERO,
            stopped: false,
            exits: false,
        }
    }

    /// What can be done, and when.
    pub fn tasks(&mut self, env: &Env, into: &mut Vec<(Duration, usize, Task)>) {
        let (host, frozen) = (self.me.host, self.frozen_until);
        let mut add = |at: Option<Duration>, task| {
            into.extend(at.map(|at| (at.max(frozen), host, task)));
        };
        if let Some(outgoing) = &mut self.outgoing {
            add(outgoing.ready_at(env), Task::Outgoing);
            add(outgoing.dial_ready_at(env), Task::Dial);
            for pusher in 0..outgoing.pushers.len() {
                add(outgoing.push_ready_at(pusher, env), Task::Push(pusher));
            }
        }
        if let Some(incoming) = &mut self.incoming {
            add(incoming.ready_at(env, self.vm.as_ref()), Task::Incoming);
            for (index, taker) in incoming.takers.iter().enumerate() {
                if !taker.is_over() {
                    add(taker.ready_at(env), Task::Take(index));
                }
            }
            add(incoming.load_ready_at(), Task::Load);
        }
        for (index, greeting) in self.greetings.iter().enumerate() {
            add(Some(greeting.ready_at(env)), Task::Greet(index));
        }
        if let Some(vm) = &self.vm {
            for cpu in 0..vm.waiting.len() {
                add(vm.cpu_ready_at(cpu, env), Task::Cpu(cpu));
            }
        }
    }

    /// Does one step of one task.
    pub fn step(&mut self, env: &mut Env, task: Task) {
        if !matches!(task, Task::Cpu(_)) {
            env.stepped();
        }
        let held_up = env.rng.chance(env.plan.held_up);
        let until = if held_up { env.now + env.rng.micros(1, 50_000) } else { Duration::ZERO };
        match task {
            Task::Outgoing => {
                let outgoing = self.outgoing.as_mut().expect("it is ready");
                outgoing.busy_until = outgoing.busy_until.max(until);
                let vm = self.vm.as_mut().expect("what is sent is here");
                outgoing.step(env, self.me, vm);
            }
            Task::Dial => self.outgoing.as_mut().expect("it is ready").step_dial(env),
            Task::Push(pusher) => {
                let outgoing = self.outgoing.as_mut().expect("it is ready");
                outgoing.pushers[pusher].busy_until = until;
                outgoing.step_push(pusher, env, self.vm.as_ref().expect("what is sent is here"));
            }
            Task::Incoming => {
                let incoming = self.incoming.as_mut().expect("it is ready");
                incoming.busy_until = until;
                incoming.step(env, self.me, &mut self.vm, &mut self.door);
            }
            Task::Take(taker) => {
                let incoming = self.incoming.as_mut().expect("it is ready");
                incoming.takers[taker].busy_until = until;
                incoming.step_take(taker, env);
            }
            Task::Load => {
                let incoming = self.incoming.as_mut().expect("it is ready");
                incoming.step_load(env, self.vm.as_ref().expect("it is being loaded"));
            }
            Task::Greet(greeting) => self.greet(env, greeting),
            Task::Cpu(cpu) => self.vm.as_mut().expect("it runs").step_cpu(cpu, env),
        }
        self.end_incoming(env);
        self.end_outgoing(env);
    }

    fn greet(&mut self, env: &mut Env, index: usize) {
        let Some(greeted) = self.greetings[index].step(env, self.me, &mut self.door) else {
            return;
        };
        self.greetings.remove(index);
        let joining = match greeted {
            Greeted::Arrival(end) => {
                self.incoming = Some(Incoming::new(env, end));
                return;
            }
            Greeted::Bulk(end, epoch, rest) => (end, incoming::Event::Bulk { end, epoch, rest }),
            Greeted::Resume(end, epoch, rest) => {
                (end, incoming::Event::Resume { end, epoch, rest })
            }
            Greeted::Over => return,
        };
        match &mut self.incoming {
            Some(incoming) => incoming.events.push_back(joining.1),
            None => env.net.close(joining.0, env.now),
        }
    }

    fn end_incoming(&mut self, env: &mut Env) {
        let Some(outcome) = self.incoming.as_ref().and_then(|incoming| incoming.outcome.clone())
        else {
            return;
        };
        let mut incoming = self.incoming.take().expect("it has ended");
        env.log(|| format!("host {} incoming ends: {outcome:?}", self.me.host));
        let (session, words) = (self.door.session.take(), incoming.last_words(&outcome));
        self.door.over = session.zip(words);
        incoming.hang_up(env);
        for end in incoming.ends() {
            env.net.close(end, env.now);
        }
        for write in incoming.take_writes() {
            // It is finished by a thread that nobody waits for.
            let _ = env.finish_write(self.me, write);
        }
        if self.stopped {
            self.exits = true;
            env.guest.may_be_lost.get_or_insert("the operator ended its process");
        }
        check::incoming_has_ended(env, &incoming, &outcome, self.vm.as_ref());
        match outcome {
            Outcome::Completed if env.guest.ended => self.vm = None,
            Outcome::Completed => {
                self.vm.as_mut().expect("it runs here").settle(env);
                self.next_transfer = incoming.transfer + 1;
                self.door.busy = Some("a guest runs here".into());
                return;
            }
            Outcome::Lost { .. } => {
                env.guest.may_be_lost.get_or_insert("it was given up where it arrived");
                self.vm = None;
            }
            Outcome::Aborted { .. } | Outcome::Cancelled => self.vm = None,
        }
        self.door.busy = None;
    }

    fn end_outgoing(&mut self, env: &mut Env) {
        let Some(outcome) = self.outgoing.as_ref().and_then(|outgoing| outgoing.outcome.clone())
        else {
            return;
        };
        let outgoing = self.outgoing.as_ref().expect("it has ended");
        env.log(|| format!("host {} outgoing ends: {outcome:?}", self.me.host));
        check::outgoing_has_ended(env, self.me, outgoing, &outcome, self.vm.as_ref());
        let mut outgoing = self.outgoing.take().expect("it has ended");
        for write in outgoing.take_writes() {
            let _ = env.finish_write(self.me, write);
        }
        for end in outgoing.ends() {
            env.net.close(end, env.now);
        }
        match outcome {
            Outcome::Completed | Outcome::Lost { .. } => {
                self.vm = None;
                self.exits = true;
            }
            Outcome::Aborted { .. } | Outcome::Cancelled => {}
        }
    }

    /// All streams of this process.
    fn ends(&self) -> Vec<End> {
        let outgoing = self.outgoing.iter().flat_map(Outgoing::ends);
        let incoming = self.incoming.iter().flat_map(Incoming::ends);
        let greetings = self.greetings.iter().map(Greeting::end);
        outgoing.chain(incoming).chain(greetings).collect()
    }

    /// The process is gone, at once; nobody is told if its host is gone with it. `whole` says that
    /// the guest of its outgoing migration runs elsewhere with all of its memory.
    pub fn crash(mut self, env: &mut Env, silently: bool, whole: bool) {
        for end in self.ends() {
            if silently {
                let Env { net, rng, now, .. } = env;
                net.silence(end.stream, [true, true], *now, rng);
            } else {
                let Env { net, rng, now, .. } = env;
                net.kill(end, *now, rng);
            }
        }
        let outgoing = self.outgoing.iter_mut().flat_map(Outgoing::take_writes);
        let incoming = self.incoming.iter_mut().flat_map(Incoming::take_writes);
        let greeting = self.greetings.iter_mut().filter_map(Greeting::take_write);
        for write in outgoing.chain(incoming).chain(greeting).collect::<Vec<_>>() {
            env.interrupt_write(self.me, write);
        }
        let id = self.me.id;
        env.disk(self.me).held.take_if(|holder| *holder == id);
        let home = self.vm.as_ref().is_some_and(|vm| matches!(vm.memory, Memory::Plain(_)));
        if home && !whole {
            env.guest.may_be_lost.get_or_insert("the process that had its memory was killed");
        }
        if let Some(incoming) = &self.incoming
            && env.disk(self.me).ownership(incoming.transfer) == Some(Ownership::Owned)
        {
            env.guest.may_be_lost.get_or_insert("the process that owned it was killed");
        }
    }
}
