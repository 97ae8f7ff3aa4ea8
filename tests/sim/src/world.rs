//! A run: hosts and their processes, and what happens next.

use std::time::Duration;

use godwit_migration::proto::{MigrationState, may_run};

use crate::check;
use crate::dial::{Dial, Reach};
use crate::disk::ProcessId;
use crate::door::Greeting;
use crate::env::Env;
use crate::incoming;
use crate::memory::Memory;
use crate::mutation::Mutation;
use crate::net::End;
use crate::outgoing::{Command, DialWanted, Event, Outgoing};
use crate::plan::HOSTS;
use crate::process::{Process, Task};
use crate::vm::Vm;

/// How long a run may take after faults have ended, of its own time.
const PROGRESS_MAX: Duration = Duration::from_secs(400);
/// How many steps a run may take.
const STEPS_MAX: u64 = 60_000;
/// How often the operator looks, once nothing goes wrong any more.
const OPERATOR_INTERVAL: Duration = Duration::from_secs(5);
/// When the operator gives up a guest of which no destination knows any more.
const GIVES_UP_AFTER: Duration = Duration::from_secs(100);
/// How often a migration that failed is tried again.
const ATTEMPTS_MAX: u32 = 3;

/// A host.
#[derive(Debug, Default)]
pub struct Host {
    pub process: Option<Process>,
    /// When a process is started.
    pub start_at: Option<Duration>,
    /// No host answers until then.
    pub off_until: Duration,
}

/// All of a run.
pub struct World {
    pub env: Env,
    pub hosts: Vec<Host>,
    next_process: ProcessId,
    accepting: Vec<(Duration, usize, ProcessId, End)>,
    /// Where the guest was last at home.
    pub home: usize,
    leg: usize,
    attempts: u32,
    leg_at: Option<Duration>,
    operator_at: Duration,
    tasks: Vec<(Duration, usize, Task)>,
}

impl World {
    pub fn new(env: Env) -> World {
        let mut world = World {
            hosts: (0..HOSTS).map(|_| Host::default()).collect(),
            next_process: 1,
            accepting: Vec::new(),
            home: 0,
            leg: 0,
            attempts: 0,
            leg_at: Some(Duration::ZERO),
            operator_at: env.plan.quiet_from,
            tasks: Vec::new(),
            env,
        };
        for host in 0..HOSTS {
            world.start(host);
        }
        let memory = Memory::Plain(world.env.guest.truth.clone());
        world.launch(0, memory);
        let busy = world.env.rng.millis(0, 100);
        world.leg_at = Some(busy);
        world
    }

    fn start(&mut self, host: usize) {
        let id = self.next_process;
        self.next_process += 1;
        self.hosts[host].process = Some(Process::new(host, id));
        self.hosts[host].start_at = None;
        self.env.log(|| format!("host {host} starts process {id}"));
    }

    /// The guest is started on a host, if its record allows that.
    fn launch(&mut self, host: usize, memory: Memory) {
        let process = self.hosts[host].process.as_mut().expect("it was started");
        let disk = self.env.disk(process.me);
        let Ok(last) = may_run(disk.record.clone()) else { return };
        if disk.held.is_some() {
            return;
        }
        disk.held = Some(process.me.id);
        process.next_transfer = last + 1;
        process.door.busy = Some("a guest runs here".into());
        let mut vm = Vm::new(memory, &self.env);
        vm.running = true;
        process.vm = Some(vm);
        self.home = host;
    }

    /// Runs to the end or to the first violation.
    pub fn run(&mut self) {
        while self.env.violation.is_none() {
            if !self.step() {
                break;
            }
        }
        if self.env.violation.is_none() {
            let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
            check::after_step(&mut self.env, processes.clone(), true);
            check::at_the_end(&mut self.env, processes);
        }
    }

    /// One step. False at the end.
    fn step(&mut self) -> bool {
        if !self.env.quiet && self.env.now >= self.env.plan.quiet_from {
            self.env.log(|| "nothing goes wrong from now on".into());
            self.calm();
        }
        if self.is_over() {
            return false;
        }
        if self.env.steps > STEPS_MAX {
            self.env.violated("it goes on and on");
            return false;
        }
        if self.env.now > self.env.plan.quiet_from + PROGRESS_MAX {
            let states = self.states();
            self.env.violated(format!("it does not end: {states}"));
            return false;
        }
        let mut tasks = std::mem::take(&mut self.tasks);
        tasks.clear();
        for host in &mut self.hosts {
            if let Some(process) = &mut host.process {
                process.tasks(&self.env, &mut tasks);
            }
        }
        let ready = tasks.iter().filter(|(at, ..)| *at <= self.env.now).count();
        if ready > 0 {
            let chosen = self.env.rng.below(ready);
            let mut ready = tasks.iter().filter(|(at, ..)| *at <= self.env.now);
            let &(_, host, task) = ready.nth(chosen).expect("so many are ready");
            self.do_task(host, task);
        } else {
            let next = tasks.iter().map(|(at, ..)| *at).min();
            self.wait(next);
        }
        self.tasks = tasks;
        true
    }

    fn do_task(&mut self, host: usize, task: Task) {
        let process = self.hosts[host].process.as_mut().expect("it has something to do");
        process.step(&mut self.env, task);
        if let Some(wanted) = process.outgoing.as_mut().and_then(|o| o.wanted.take()) {
            self.dial(host, &wanted);
        }
        self.after_process(host);
        while let Some(fault) = self.env.due.pop() {
            self.break_something(fault);
        }
        let all = self.env.steps.is_multiple_of(16);
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        check::after_step(&mut self.env, processes, all);
    }

    /// Begins a dial that somebody on a host wants.
    pub fn dial(&mut self, host: usize, wanted: &DialWanted) {
        let to = wanted.to;
        let reach = match &self.hosts[to].process {
            Some(_) => Reach::Listener,
            None if self.hosts[to].off_until > self.env.now => Reach::Silence,
            None => Reach::Nobody,
        };
        let what = (wanted.channel, wanted.hello.clone());
        let (dial, listener) = Dial::begin(&mut self.env, (host, to), what, wanted.timeout, reach);
        if let (Some(end), Some(process)) = (listener, &self.hosts[to].process) {
            let delay = if self.env.rng.chance(20) { 20_000 } else { 200 };
            let delay = self.env.rng.micros(0, delay);
            let at = self.env.now + self.env.net.latency + delay;
            self.accepting.push((at, to, process.me.id, end));
        }
        let process = self.hosts[host].process.as_mut().expect("it dials");
        process.outgoing.as_mut().expect("it dials").dialling(dial);
    }

    /// Time passes, until something happens.
    fn wait(&mut self, next_task: Option<Duration>) {
        let accept = self.accepting.iter().map(|(at, ..)| *at).min();
        let start = self.hosts.iter().filter_map(|host| host.start_at).min();
        let quiet = if self.env.quiet { self.operator_at } else { self.env.plan.quiet_from };
        let all = [next_task, accept, start, self.leg_at, Some(quiet)];
        let next = all.into_iter().flatten().min().expect("there is always the operator");
        self.env.now = self.env.now.max(next);
        let now = self.env.now;
        for index in (0..self.accepting.len()).rev() {
            if self.accepting[index].0 <= now {
                self.accept(index);
            }
        }
        for host in 0..HOSTS {
            if self.hosts[host].start_at.is_some_and(|at| at <= now) {
                self.start_again(host);
            }
        }
        if self.leg_at.is_some_and(|at| at <= now) {
            self.leg_at = None;
            self.begin_leg();
        }
        if self.env.quiet && self.operator_at <= now {
            self.operator_at = now + OPERATOR_INTERVAL;
            self.operate();
        }
    }

    fn accept(&mut self, index: usize) {
        let (_, host, id, end) = self.accepting.remove(index);
        match &mut self.hosts[host].process {
            Some(process) if process.me.id == id => {
                process.greetings.push(Greeting::new(end, self.env.now));
            }
            _ => self.env.net.close(end, self.env.now),
        }
    }

    fn start_again(&mut self, host: usize) {
        self.start(host);
        let was_home = self.home == host;
        let has_guest = |host: &Host| host.process.as_ref().is_some_and(|p| p.vm.is_some());
        if was_home && !self.hosts.iter().any(has_guest) && !self.env.guest.ended {
            let allowed = may_run(self.env.disks[self.env.plan.disk_of(host)].record.clone());
            if allowed.is_ok() && self.env.rng.chance(60) {
                self.env.log(|| format!("host {host} boots the guest anew"));
                self.env.guest.boot();
                let memory = Memory::Plain(self.env.guest.truth.clone());
                self.launch(host, memory);
            }
        }
    }

    fn begin_leg(&mut self) {
        let Some(&target) = self.env.plan.legs.get(self.leg) else { return };
        let at_home = self.hosts[self.home].process.as_mut();
        let Some(process) = at_home.filter(|p| p.vm.is_some() && p.outgoing.is_none()) else {
            return;
        };
        if self.env.guest.ended || target == self.home {
            return;
        }
        let transfer = process.next_transfer;
        process.next_transfer += 1;
        self.attempts += 1;
        self.env.log(|| format!("the guest is to go to host {target} by transfer {transfer}"));
        process.outgoing = Some(Outgoing::new(&self.env, target, transfer));
        let home = self.home;
        let outgoing = process.outgoing.as_mut();
        if let Some(wanted) = outgoing.and_then(|outgoing| outgoing.wanted.take()) {
            self.dial(home, &wanted);
        }
    }

    /// Looks what has become of a process and of the migrations in it.
    fn after_process(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else { return };
        if process.outgoing.as_ref().is_some_and(|outgoing| outgoing.grants_again) {
            return self.grant_again(host);
        }
        let exits = process.exits;
        let at_home = process.vm.as_ref().is_some_and(|vm| matches!(vm.memory, Memory::Plain(_)));
        let idle = process.outgoing.is_none();
        if exits {
            let again = self.env.now + self.env.rng.millis(1, 500);
            self.kill(host, false, again);
        } else if at_home && idle && self.leg_at.is_none() {
            if self.home != host {
                self.home = host;
                self.leg += 1;
                self.attempts = 0;
            }
            let more = self.leg < self.env.plan.legs.len() && self.attempts < ATTEMPTS_MAX;
            if more && !self.env.guest.ended {
                self.leg_at = Some(self.env.now + self.env.rng.millis(1, 2000));
            }
        }
    }

    /// The mistake is to grant a guest twice.
    fn grant_again(&mut self, host: usize) {
        let process = self.hosts[host].process.as_mut().expect("it has a migration");
        process.outgoing = None;
        let transfer = process.next_transfer;
        process.next_transfer += 1;
        process.outgoing = Some(Outgoing::new(&self.env, 2, transfer));
        let outgoing = process.outgoing.as_mut();
        if let Some(wanted) = outgoing.and_then(|outgoing| outgoing.wanted.take()) {
            self.dial(host, &wanted);
        }
        self.env.mutation = self.env.mutation.filter(|m| *m != Mutation::GrantTwice);
    }

    /// The process of a host is gone.
    pub fn kill(&mut self, host: usize, silently: bool, again: Duration) {
        let whole = self.runs_elsewhere(host);
        let Some(process) = self.hosts[host].process.take() else { return };
        self.env.log(|| format!("host {host} loses process {}", process.me.id));
        for (_, _, id, end) in &self.accepting {
            if *id == process.me.id {
                self.env.net.close(*end, self.env.now);
            }
        }
        process.crash(&mut self.env, silently, whole);
        self.hosts[host].start_at = Some(again);
        if silently {
            self.hosts[host].off_until = again;
        }
    }

    /// Another host runs the guest with all of its memory.
    fn runs_elsewhere(&self, host: usize) -> bool {
        let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != host);
        others.filter_map(|(_, other)| other.process.as_ref()).any(|process| {
            let running = process.vm.as_ref().is_some_and(|vm| vm.running);
            let missing = process.incoming.as_ref().and_then(|i| i.room.as_ref());
            running && missing.is_none_or(|room| room.claims.remaining() == 0)
        })
    }

    /// Nothing goes wrong any more.
    fn calm(&mut self) {
        self.env.quiet = true;
        self.env.net.apart_until = Duration::ZERO;
        self.env.guest.paused = false;
        for disk in &mut self.env.disks {
            (disk.failing, disk.slow) = (0, Duration::ZERO);
        }
        for host in &mut self.hosts {
            if let Some(process) = &mut host.process {
                process.frozen_until = Duration::ZERO;
            }
        }
    }

    /// What an operator does who sees that a side waits in vain.
    fn operate(&mut self) {
        for host in 0..HOSTS {
            let Some(process) = &self.hosts[host].process else { continue };
            let paused = |state| state == MigrationState::PostcopyPaused;
            if process.incoming.as_ref().is_some_and(|i| paused(i.state())) {
                let transfer = process.incoming.as_ref().map_or(0, |i| i.transfer);
                if !self.is_leaving(transfer) {
                    self.env.log(|| format!("the operator stops the destination on host {host}"));
                    self.tell_incoming(host, incoming::Event::Stop);
                }
                continue;
            }
            let Some(outgoing) = &process.outgoing else { continue };
            if !paused(outgoing.state()) {
                continue;
            }
            let (transfer, target) = (outgoing.transfer(), outgoing.target);
            let first = outgoing.first_target;
            let at = self.arriving_at(transfer).unwrap_or(first);
            if at != target {
                self.command(Command::Recover(Some(at)));
            } else if self.env.now > self.env.plan.quiet_from + GIVES_UP_AFTER
                && self.env.guest.may_be_lost.is_some()
            {
                self.env.log(|| format!("the operator gives up what host {host} has"));
                self.command(Command::Abandon);
            }
        }
    }

    fn is_leaving(&self, transfer: u64) -> bool {
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let mut outgoing = processes.filter_map(|process| process.outgoing.as_ref());
        outgoing.any(|outgoing| outgoing.transfer() == transfer)
    }

    /// The host where a transfer arrives.
    fn arriving_at(&self, transfer: u64) -> Option<usize> {
        let arriving = |host: &Host| {
            let incoming = host.process.as_ref().and_then(|process| process.incoming.as_ref());
            incoming.is_some_and(|incoming| incoming.transfer == transfer)
        };
        self.hosts.iter().position(arriving)
    }

    /// An operator wants something of the migration that is under way.
    pub fn command(&mut self, command: Command) {
        let processes = self.hosts.iter_mut().filter_map(|host| host.process.as_mut());
        for outgoing in processes.filter_map(|process| process.outgoing.as_mut()) {
            outgoing.events.push_back(Event::Command(command));
        }
    }

    pub fn tell_incoming(&mut self, host: usize, event: incoming::Event) {
        let Some(process) = &mut self.hosts[host].process else { return };
        let Some(incoming) = &mut process.incoming else { return };
        process.stopped |= matches!(event, incoming::Event::Stop);
        incoming.events.push_back(event);
    }

    fn is_over(&self) -> bool {
        let idle = |process: &Process| {
            process.outgoing.is_none() && process.incoming.is_none() && process.greetings.is_empty()
        };
        let starting = self.hosts.iter().any(|host| host.start_at.is_some());
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        self.leg_at.is_none() && !starting && self.accepting.is_empty() && { processes }.all(idle)
    }

    fn states(&self) -> String {
        let mut text = String::new();
        for (host, process) in self.hosts.iter().enumerate() {
            let Some(process) = &process.process else { continue };
            if let Some(outgoing) = &process.outgoing {
                text += &format!("host {host} outgoing {:?}; ", outgoing.state());
            }
            if let Some(incoming) = &process.incoming {
                text += &format!("host {host} incoming {:?}; ", incoming.state());
            }
        }
        text
    }
}
