//! What is measured: each case is a guest and a way to move it, and differs from its neighbours in
//! one thing.

use crate::engine::Part;
use crate::godwit::MoveArgs;
use crate::size;
use crate::workload::{GuestArgs, ImageArgs};

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The table that it is in.
    pub part: Part,
    /// The name in JSON lines.
    pub name: &'static str,
    /// The row of the table that it is in.
    pub label: &'static str,
    /// What is measured.
    pub subject: Subject,
}

/// What a case measures.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// Faults of a guest over a bare loop, beside a bare bulk stream or alone.
    Floor {
        /// Whether there is the stream.
        bulk: bool,
    },
    /// A move by Godwit.
    Move(Move),
}

/// A guest and a way to move it.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The guest has one part in so many of the memory that the user chose.
    part: u64,
    workload: &'static str,
    data: &'static str,
    rate: u32,
    every: u32,
    mode: &'static str,
    connections: u8,
    compression: &'static str,
    bandwidth: Option<&'static str>,
    timeout_s: u32,
    timeout_strategy: &'static str,
    dirty_tracking: &'static str,
    link: Option<&'static str>,
}

impl Move {
    /// Whether there is a link between the hosts that is slower than they are.
    pub const fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// The guest, if the user chose so much memory for the largest.
    pub fn guest(&self, memory: u64, cpus: u8, image: ImageArgs) -> GuestArgs {
        let memory = (memory / self.part).next_multiple_of(size::STEP);
        GuestArgs {
            data: self.data.to_owned(),
            rate: self.rate,
            every: self.every,
            ..GuestArgs::new(memory, cpus, self.workload, image)
        }
    }

    /// How it is moved.
    pub fn moving(&self) -> MoveArgs {
        MoveArgs {
            mode: self.mode.to_owned(),
            connections: self.connections,
            compression: self.compression.to_owned(),
            bandwidth: self.bandwidth.map(str::to_owned),
            timeout_s: self.timeout_s,
            timeout_strategy: self.timeout_strategy.to_owned(),
            dirty_tracking: self.dirty_tracking.to_owned(),
            link: self.link.map(|link| link.parse().expect("a constant link")),
        }
    }
}

/// All cases, in the order in which they take turns.
pub const CASES: [Case; 36] = [
    gate("gate-floor-idle", "bare loop, nothing beside", Subject::Floor { bulk: false }),
    gate("gate-floor-bulk", "bare loop, beside a bare stream", Subject::Floor { bulk: true }),
    gate("gate-idle", "loopback, idle", Subject::Move(Move { part: 8, ..CAPPED })),
    gate("gate-full-1", "loopback, 1 bulk channel full", Subject::Move(RANDOM)),
    gate(
        "gate-full-4",
        "loopback, 4 bulk channels full",
        Subject::Move(Move { connections: 4, ..RANDOM }),
    ),
    gate(
        "gate-link-idle",
        "1 Gbit/s and 200 us, idle",
        Subject::Move(Move { part: 16, link: LINK, ..CAPPED }),
    ),
    gate(
        "gate-link-full-1",
        "1 Gbit/s and 200 us, 1 bulk channel full",
        Subject::Move(Move { part: 4, link: LINK, ..RANDOM }),
    ),
    gate(
        "gate-link-full-4",
        "1 Gbit/s and 200 us, 4 bulk channels full",
        Subject::Move(Move { part: 4, link: LINK, connections: 4, ..RANDOM }),
    ),
    drain("drain-1", "random, auto, 1 connection", HALTED),
    drain("drain-2", "random, auto, 2 connections", Move { connections: 2, ..HALTED }),
    drain("drain-4", "random, auto, 4 connections", Move { connections: 4, ..HALTED }),
    drain("drain-8", "random, auto, 8 connections", Move { connections: 8, ..HALTED }),
    drain("drain-random-none", "random, none", Move { compression: "none", ..HALTED }),
    drain("drain-random-lz4", "random, lz4", Move { compression: "lz4", ..HALTED }),
    drain("drain-text-none", "text, none", Move { compression: "none", ..TEXT }),
    drain("drain-text-auto", "text, auto", TEXT),
    drain("drain-text-lz4", "text, lz4", Move { compression: "lz4", ..TEXT }),
    drain("drain-text-lz4-4", "text, lz4, 4 connections", TEXT_LZ4_4),
    drain("drain-word", "one repeated word a page", Move { data: "word", ..HALTED }),
    drain("drain-zero", "zeros", Move { data: "zero", ..HALTED }),
    drain("drain-link-1", "random, auto, 1 connection", over_link(HALTED)),
    drain(
        "drain-link-random-none",
        "random, none",
        over_link(Move { compression: "none", ..HALTED }),
    ),
    drain("drain-link-random-lz4", "random, lz4", over_link(Move { compression: "lz4", ..HALTED })),
    drain("drain-link-text-none", "text, none", over_link(Move { compression: "none", ..TEXT })),
    drain("drain-link-text-auto", "text, auto", over_link(TEXT)),
    drain("drain-link-text-lz4", "text, lz4", over_link(Move { compression: "lz4", ..TEXT })),
    drain("drain-link-text-lz4-4", "text, lz4, 4 connections", over_link(TEXT_LZ4_4)),
    modes("modes-quarter-postcopy", "a quarter written: post-copy", QUARTER),
    modes("modes-quarter-hybrid", "a quarter written: hybrid", Move { mode: "hybrid", ..QUARTER }),
    modes(
        "modes-quarter-hybrid-wp",
        "a quarter written: hybrid, write-protected",
        Move { mode: "hybrid", dirty_tracking: "write-protect", ..QUARTER },
    ),
    modes(
        "modes-quarter-cancel",
        "a quarter written: pre-copy, 10 s",
        Move { mode: "precopy", ..QUARTER },
    ),
    modes(
        "modes-quarter-switch",
        "a quarter written: pre-copy, 10 s, then switch",
        Move { mode: "precopy", timeout_strategy: "switch", ..QUARTER },
    ),
    modes("modes-all-postcopy", "all written: post-copy", ALL),
    modes("modes-all-hybrid", "all written: hybrid", Move { mode: "hybrid", ..ALL }),
    modes("modes-all-cancel", "all written: pre-copy, 5 s", Move { mode: "precopy", ..ALL }),
    modes(
        "modes-all-switch",
        "all written: pre-copy, 5 s, then switch",
        Move { mode: "precopy", timeout_strategy: "switch", ..ALL },
    ),
];

const fn gate(name: &'static str, label: &'static str, subject: Subject) -> Case {
    Case { part: Part::Gate, name, label, subject }
}

const fn drain(name: &'static str, label: &'static str, wanted: Move) -> Case {
    Case { part: Part::Drain, name, label, subject: Subject::Move(wanted) }
}

const fn modes(name: &'static str, label: &'static str, wanted: Move) -> Case {
    Case { part: Part::Modes, name, label, subject: Subject::Move(wanted) }
}

/// The same over the link, with less memory, or it would take long.
const fn over_link(wanted: Move) -> Move {
    Move { part: 4, link: LINK, ..wanted }
}

/// A gigabit a second between machines of one room.
const LINK: Option<&str> = Some("1G,200us");

/// A guest that reads all its memory in random order and times it, by post-copy as it comes.
const RANDOM: Move = Move {
    part: 1,
    workload: "random",
    data: "random",
    rate: 0,
    every: 1,
    mode: "postcopy",
    connections: 1,
    compression: "auto",
    bandwidth: None,
    timeout_s: 3600,
    timeout_strategy: "cancel",
    dirty_tracking: "kvm-log",
    link: None,
};
/// The same with bulk channels that are as good as idle: a run of pages each quarter of a second.
/// The guest has to ask for nearly all of its pages, so it must not have many.
const CAPPED: Move = Move { bandwidth: Some("1M"), ..RANDOM };
/// A guest that sleeps, so the push has the machine for itself.
const HALTED: Move = Move { workload: "halt", ..RANDOM };
/// The same with pages that lz4 packs to less than half.
const TEXT: Move = Move { data: "text", ..HALTED };
const TEXT_LZ4_4: Move = Move { compression: "lz4", connections: 4, ..TEXT };
/// A guest that writes a quarter of its memory at up to 25000 pages, 102 MB, a second and vCPU, and
/// reads the rest, over a link of 125 MB a second.
const QUARTER: Move = Move {
    part: 2,
    workload: "dirty",
    rate: 25_000,
    every: 4,
    timeout_s: 10,
    link: LINK,
    ..RANDOM
};
/// A guest that writes all of its memory at that rate.
const ALL: Move = Move { part: 4, every: 1, timeout_s: 5, ..QUARTER };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_can_be_told_from_all_others() {
        let names: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
        let has_link = |case: &Case| matches!(case.subject, Subject::Move(m) if m.has_link());
        let rows: BTreeSet<_> = CASES.iter().map(|case| (case.label, has_link(case))).collect();
        assert_eq!(rows.len(), CASES.len());
    }

    #[test]
    fn cases_are_what_their_programs_understand() {
        let image = ImageArgs { image: None };
        for case in CASES {
            let Subject::Move(wanted) = case.subject else { continue };
            let guest = wanted.guest(1 << 30, 2, image.clone());
            assert_eq!(guest.memory % size::STEP, 0, "{}", case.name);
            assert_eq!(wanted.moving().link.is_some(), wanted.has_link(), "{}", case.name);
        }
    }

    #[test]
    fn small_guests_have_whole_steps_of_memory() {
        let guest = HALTED.guest(2 << 20, 1, ImageArgs { image: None });
        assert_eq!(guest.memory, 2 << 20);
        let guest = Move { part: 16, ..HALTED }.guest(48 << 20, 1, ImageArgs { image: None });
        assert_eq!(guest.memory, 4 << 20);
    }
}
