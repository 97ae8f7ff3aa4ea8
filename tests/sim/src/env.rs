//! What all parts of a run share: time, chance, the network, the disks, the guest, and what is to
//! go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::chaos::{Fault, Trigger};
use godwit_migration::proto::Ownership;

use crate::disk::{Disk, ProcessId, Write};
use crate::guest::Guest;
use crate::mutation::Mutation;
use crate::net::Net;
use crate::plan::Plan;
use crate::rng::Rng;

/// A process, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    pub host: usize,
    pub id: ProcessId,
}

/// What is shared.
#[derive(Debug)]
pub struct Env {
    pub now: Duration,
    base: Instant,
    pub rng: Rng,
    pub net: Net,
    pub disks: Vec<Disk>,
    pub guest: Guest,
    pub plan: Plan,
    pub mutation: Option<Mutation>,
    /// Steps of the protocol so far; those of vCPUs do not count.
    pub steps: u64,
    triggers: Vec<(Trigger, Fault)>,
    /// Faults whose time has come.
    pub due: Vec<Fault>,
    counts: BTreeMap<&'static str, u32>,
    /// Nothing goes wrong any more.
    pub quiet: bool,
    /// No byte was damaged and no message repeated: whoever accuses its peer is wrong.
    pub honest: bool,
    /// The guest comes from a peer that says what it likes: its contents prove nothing.
    pub hostile: bool,
    /// Transfers of which the destination has all that the guest needs.
    pub whole: BTreeSet<u64>,
    /// Each host's next control message is sent twice.
    pub repeat: [bool; 3],
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
}

impl Env {
    pub fn new(seed: u64, mutation: Option<Mutation>, tracing: bool) -> Env {
        let mut rng = Rng::new(seed);
        let (plan, triggers) = Plan::of(&mut rng, mutation);
        let guest = Guest::new(plan.pages, plan.cpus, plan.busy, &mut rng);
        Env {
            now: Duration::ZERO,
            base: Instant::now(),
            net: Net::new(plan.latency, plan.per_kib),
            rng,
            disks: (0..3).map(|_| Disk::default()).collect(),
            guest,
            plan,
            mutation,
            steps: 0,
            triggers,
            due: Vec::new(),
            counts: BTreeMap::new(),
            quiet: false,
            honest: true,
            hostile: false,
            whole: BTreeSet::new(),
            repeat: [false; 3],
            violation: None,
            trace: tracing.then(Vec::new),
        }
    }

    /// The time as the engine takes it.
    pub fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// From the engine's time to that of the run.
    pub fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.base)
    }

    pub fn disk(&mut self, me: Me) -> &mut Disk {
        let disk = self.plan.disk_of(me.host);
        &mut self.disks[disk]
    }

    /// Begins to write a record of this process's host.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn begin_write(&mut self, me: Me, transfer: u64, what: Ownership) -> Result<Write, String> {
        let Env { disks, rng, plan, now, .. } = self;
        disks[plan.disk_of(me.host)].begin(me.id, (transfer, what), *now, rng)
    }

    /// A write is over.
    ///
    /// # Errors
    /// It failed.
    pub fn finish_write(&mut self, me: Me, write: Write) -> Result<(), String> {
        let Env { disks, rng, plan, .. } = self;
        disks[plan.disk_of(me.host)].finish(write, rng)
    }

    /// The process of a write is gone.
    pub fn interrupt_write(&mut self, me: Me, write: Write) {
        let Env { disks, rng, plan, .. } = self;
        disks[plan.disk_of(me.host)].interrupt(write, rng);
    }

    /// Something happened that a fault may wait for.
    pub fn mark(&mut self, label: &'static str) {
        let count = self.counts.entry(label).or_default();
        *count += 1;
        let count = *count;
        self.fire(|trigger| matches!(trigger, Trigger::At(l, n) if *l == label && *n == count));
    }

    /// One step of the protocol is over.
    pub fn stepped(&mut self) {
        self.steps += 1;
        let (steps, now) = (self.steps, self.now);
        self.fire(|trigger| match trigger {
            Trigger::Step(at) => *at == steps,
            Trigger::Time(at) => *at <= now,
            Trigger::At(..) => false,
        });
    }

    fn fire(&mut self, now: impl Fn(&Trigger) -> bool) {
        if self.quiet {
            return;
        }
        let due = &mut self.due;
        self.triggers.retain(|(trigger, fault)| {
            let fires = now(trigger);
            if fires {
                due.push(*fault);
            }
            !fires
        });
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.log(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// The guest has not the contents that it should have.
    pub fn wrong_contents(&mut self, what: impl Into<String>) {
        if !self.hostile {
            self.violated(what);
        }
    }

    pub fn log(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12.6} {}", self.now.as_secs_f64(), what()));
        }
    }

    pub fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}
