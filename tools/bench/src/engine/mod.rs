//! `engine`: what the migration engine does under conditions that are varied one at a time: faults
//! beside its push, the push itself, and its modes on a guest that dirties faster than the link.

mod cases;
mod tables;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::engine::cases::{CASES, Case, Subject};
use crate::engine::tables::Tables;
use crate::error::Error;
use crate::floor::fault::{self, FaultArgs};
use crate::godwit::{self, GodwitArgs};
use crate::record::{Recorder, value};
use crate::rounds::{FAULT_SECONDS, RunArgs};
use crate::size;
use crate::workload::{GuestArgs, ImageArgs};

/// Measures the engine's gate, push and modes, in turns, and prints tables.
#[derive(Args, Clone)]
pub struct EngineArgs {
    /// How many times everything is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Measure this only; may be given again.
    #[arg(long, value_enum)]
    pub only: Vec<Part>,
    /// The amount of memory of the largest guest; the others have a part of it.
    #[arg(long, default_value = "1G", value_parser = size::parse)]
    pub memory: u64,
    /// The number of vCPUs.
    #[arg(long, default_value_t = 2)]
    pub cpus: u8,
    /// Where each measurement is appended as one line of JSON.
    #[arg(long, default_value = "bench.jsonl")]
    pub out: PathBuf,
    /// Godwit's program [default: `godwit` beside this program]
    #[arg(long)]
    pub godwit: Option<PathBuf>,
    #[command(flatten)]
    pub image: ImageArgs,
}

/// A part of the measurements, with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Faults with an idle link, and with bulk channels that are full.
    Gate,
    /// How fast memory drains, by connections, data and compression.
    Drain,
    /// Post-copy, hybrid and pre-copy of a guest that dirties faster than the link.
    Modes,
}

impl From<&RunArgs> for EngineArgs {
    /// Everything, as often as all else and with the same guest.
    fn from(run: &RunArgs) -> EngineArgs {
        let RunArgs { rounds, memory, cpus, out, qemu: _, godwit, image } = run.clone();
        EngineArgs { rounds, only: Vec::new(), memory, cpus, out, godwit, image }
    }
}

/// Measures all cases in turns and prints the tables. A measurement that fails is told and left
/// out.
///
/// # Errors
///
/// [`Error::Incomplete`] if a measurement failed.
pub fn run(args: &EngineArgs) -> Result<(), Error> {
    let mut recorder = Recorder::open(&args.out, args.rounds)?;
    let mut tables = Tables::default();
    for round in 1..=args.rounds {
        for case in CASES.iter().filter(|case| args.wants(case.part)) {
            let figures = recorder.measure(round, case.name, || args.measure(case))?;
            tables.add(round, case.name, figures);
        }
    }
    print!("{tables}");
    recorder.finish()
}

impl EngineArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn measure(&self, case: &Case) -> Result<Value, Error> {
        match case.subject {
            Subject::Floor { bulk } => {
                let guest = GuestArgs::new(self.memory, self.cpus, "random", self.image.clone());
                let seconds = FAULT_SECONDS;
                value(fault::measure(&FaultArgs { guest, bulk, seconds, busy: 0 })?)
            }
            Subject::Move(wanted) => value(godwit::measure(&GodwitArgs {
                guest: wanted.guest(self.memory, self.cpus, self.image.clone()),
                moving: wanted.moving(),
                godwit: self.godwit.clone(),
            })?),
        }
    }
}
