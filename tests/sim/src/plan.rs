//! What a seed stands for: the guest, the migrations that are wanted, the network, and what goes
//! wrong when.

use std::time::Duration;

use godwit_migration::schedule::{OnTimeout, RoundLimits};
use godwit_migration::wire::Mode;

use crate::chaos::{self, Fault, Trigger};
use crate::mutation::Mutation;
use crate::rng::Rng;

/// The hosts of a run.
pub const HOSTS: usize = 3;

/// What does not change during a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub pages: u32,
    pub cpus: usize,
    /// After how many accesses a vCPU does less.
    pub busy: u32,
    pub mode: Mode,
    pub connections: u8,
    pub limits: RoundLimits,
    /// Where the guest is to go, one host after the other.
    pub legs: Vec<usize>,
    /// The last host is a second process on the second host: both have one disk.
    pub shares_disk: bool,
    pub latency: Duration,
    pub per_kib: Duration,
    /// Bytes of a bulk channel in flight.
    pub window: usize,
    /// How often, of a hundred steps, a thread is held up after it.
    pub held_up: usize,
    /// Records are written while the process does other things, which the engine allows.
    pub asynchronous: bool,
    /// When faults end at the latest.
    pub quiet_from: Duration,
}

impl Plan {
    pub fn of(rng: &mut Rng, mutation: Option<Mutation>) -> (Plan, Vec<(Trigger, Fault)>) {
        let mode = rng.pick(&[Mode::Postcopy, Mode::Precopy, Mode::Hybrid]);
        let limits = RoundLimits {
            downtime: rng.millis(1, 50),
            timeout: rng.millis(100, 20_000),
            on_timeout: rng.pick(&[OnTimeout::Cancel, OnTimeout::Ignore, OnTimeout::Switch]),
        };
        let legs: &[usize] = match rng.below(6) {
            0 => &[1, 0],
            1 => &[1, 2],
            2 => &[1, 0, 1],
            _ => &[1],
        };
        let mut plan = Plan {
            pages: rng.pick(&[3, 8, 20, 40, 70]),
            cpus: 1 + rng.below(3),
            busy: 20 + rng.page(60),
            mode,
            connections: rng.pick(&[1, 1, 2, 3, 4]),
            limits,
            legs: legs.to_vec(),
            shares_disk: rng.chance(40),
            latency: rng.pick(&[
                Duration::from_micros(20),
                Duration::from_micros(500),
                Duration::from_millis(20),
            ]),
            per_kib: rng.pick(&[Duration::ZERO, Duration::from_micros(10)]),
            window: rng.pick(&[4200, 20_000, 200_000]),
            held_up: rng.pick(&[0, 0, 5, 30]),
            asynchronous: rng.chance(25),
            quiet_from: Duration::from_secs(10) + rng.millis(0, 80_000),
        };
        if let Some(mutation) = mutation {
            plan.aim_at(mutation);
        }
        let faults = if rng.chance(10) { 0 } else { 1 + rng.below(5) };
        let triggers = (0..faults).map(|_| chaos::choose(rng, &plan)).collect();
        (plan, triggers)
    }

    /// Some mistakes can only be made in some modes.
    fn aim_at(&mut self, mutation: Mutation) {
        match mutation {
            Mutation::InstallAfterDiscard | Mutation::InstallBetweenDiscardAndEmptying => {
                self.mode = Mode::Hybrid;
            }
            _ => {}
        }
    }

    pub fn disk_of(&self, host: usize) -> usize {
        if self.shares_disk && host == 2 { 1 } else { host }
    }
}
