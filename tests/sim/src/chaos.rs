//! What goes wrong, and when.

use std::time::Duration;

use crate::plan::{HOSTS, Plan};
use crate::rng::Rng;

/// Which streams a fault of the network is about.
#[derive(Clone, Copy, Debug)]
pub enum Streams {
    All,
    Urgent,
    /// One of the bulk channels, if there are any.
    OneBulk,
}

/// Something that goes wrong, or that somebody does.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process is gone, and started again after a time.
    Crash {
        host: usize,
        again: Duration,
    },
    /// As that, and nobody tells its peers.
    PowerOff {
        host: usize,
        again: Duration,
    },
    /// The process stands still.
    Freeze {
        host: usize,
        time: Duration,
    },
    Cut(Streams),
    Silence(Streams, [bool; 2]),
    Stall(Streams, usize, Duration),
    Corrupt(Streams, usize),
    /// No two hosts reach each other.
    Apart(Duration),
    /// A control message is sent twice.
    Repeat {
        host: usize,
    },
    DiskFails {
        host: usize,
        writes: u32,
    },
    DiskSlow {
        host: usize,
        time: Duration,
    },
    InstallFails(u32),
    InstallPartly(u32),
    Cancel,
    SwitchNow,
    /// The operator dials again, perhaps to another process of the destination's host.
    Recover {
        elsewhere: bool,
    },
    GuestPowersOff,
    Pause(bool),
    /// vCPUs are kicked out of their waits, and try again.
    Kick,
    /// The operator ends the migration where it arrives.
    StopIncoming,
    /// The operator gives up what the source still has.
    AbandonOutgoing,
}

/// When a fault comes.
#[derive(Clone, Copy, Debug)]
pub enum Trigger {
    /// When this has happened so often.
    At(&'static str, u32),
    /// After so many steps.
    Step(u64),
    Time(Duration),
}

/// What faults can wait for; see the calls of `mark`.
const LABELS: [&str; 32] = [
    "source sends Offer",
    "source sends Round",
    "source sends Package",
    "source sends Grant",
    "source sends Released",
    "source starts tracking",
    "source collects",
    "source pauses the guest",
    "source records the grant",
    "source has recorded the grant",
    "source serves",
    "source serves a window",
    "source starts to push",
    "source ends a push",
    "source is interrupted",
    "source dials",
    "source has dialled",
    "source connects bulk",
    "destination sends Accept",
    "destination sends RoundReady",
    "destination sends RoundDone",
    "destination sends Loaded",
    "destination sends Owned",
    "destination sends Request",
    "destination sends Received",
    "destination sends Resumed",
    "destination sends Complete",
    "destination records that it owns",
    "destination has recorded that it owns",
    "destination records a refusal",
    "destination is interrupted",
    "the door answers",
];

/// A fault and when it comes.
pub fn choose(rng: &mut Rng, plan: &Plan) -> (Trigger, Fault) {
    let trigger = match rng.below(10) {
        0..=4 => Trigger::At(rng.pick(&LABELS), 1 + rng.page(2)),
        5..=7 => Trigger::Step(1 + rng.next() % 150),
        8 => Trigger::Step(1 + rng.next() % 1000),
        _ => Trigger::Time(rng.millis(0, 30_000)),
    };
    (trigger, fault(rng, plan))
}

fn streams(rng: &mut Rng) -> Streams {
    rng.pick(&[Streams::All, Streams::All, Streams::Urgent, Streams::OneBulk])
}

fn fault(rng: &mut Rng, plan: &Plan) -> Fault {
    let host = if rng.chance(90) { rng.below(2) } else { rng.below(HOSTS) };
    match rng.below(40) {
        0..=2 => Fault::Crash { host, again: rng.millis(1, 8000) },
        3 => Fault::PowerOff { host, again: rng.millis(1, 20_000) },
        4 | 5 => Fault::Freeze { host, time: rng.millis(1, 30_000) },
        6..=12 => Fault::Cut(streams(rng)),
        13..=16 => {
            let ways = rng.pick(&[[true, true], [true, false], [false, true]]);
            Fault::Silence(streams(rng), ways)
        }
        17 | 18 => Fault::Stall(streams(rng), rng.below(2), rng.millis(1, 8000)),
        19 => Fault::Corrupt(streams(rng), rng.below(2)),
        20 | 21 => Fault::Apart(rng.millis(1, 40_000)),
        22 => Fault::Repeat { host },
        23 | 24 => Fault::DiskFails { host, writes: 1 + rng.page(2) },
        25 | 26 => Fault::DiskSlow { host, time: rng.millis(1, 30_000) },
        27 => Fault::InstallFails(1 + rng.page(3)),
        28 | 29 => Fault::InstallPartly(1 + rng.page(4)),
        30 => Fault::Cancel,
        31 => Fault::SwitchNow,
        32 | 33 => Fault::Recover { elsewhere: plan.shares_disk && rng.chance(60) },
        34 => Fault::GuestPowersOff,
        35 => Fault::Pause(rng.chance(50)),
        36 | 37 => Fault::Kick,
        38 if rng.chance(30) => Fault::StopIncoming,
        39 if rng.chance(20) => Fault::AbandonOutgoing,
        _ => Fault::Cut(streams(rng)),
    }
}
