//! `run`: everything that is compared, in turns, for some rounds. Ordinary scheduling, no pinning.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::error::Error;
use crate::floor::fault::{self, FaultArgs};
use crate::floor::receive::{self, ReceiveArgs};
use crate::godwit::{self, GodwitArgs, MoveArgs};
use crate::peer::qemu::{self, QemuArgs};
use crate::record::{Recorder, value};
use crate::size;
use crate::table::Table;
use crate::workload::{GuestArgs, ImageArgs};

/// Measures all that is compared, in turns, and prints it side by side.
#[derive(Args, Clone)]
pub struct RunArgs {
    /// How many times everything is measured.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// The amount of guest memory.
    #[arg(long, default_value = "1G", value_parser = size::parse)]
    pub memory: u64,
    /// The number of vCPUs, and of those that spin beside a receive loop.
    #[arg(long, default_value_t = 2)]
    pub cpus: u8,
    /// Where each measurement is appended as one line of JSON.
    #[arg(long, default_value = "bench.jsonl")]
    pub out: PathBuf,
    /// QEMU's program.
    #[arg(long, default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Godwit's program [default: `godwit` beside this program]
    #[arg(long)]
    pub godwit: Option<PathBuf>,
    #[command(flatten)]
    pub image: ImageArgs,
}

/// What is measured in each round, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Faults over a bare loop, and nothing beside.
    FloorFault,
    /// Faults over a bare loop while a second one brings everything in.
    FloorFaultBulk,
    /// Godwit moving a guest that reads its memory in random order.
    Godwit,
    /// The same with QEMU.
    Qemu,
    /// The same with QEMU and `postcopy-preempt`.
    QemuPreempt,
    /// The bare receive loop on a quiet machine.
    FloorReceive,
    /// Godwit moving a guest that sleeps.
    GodwitHalt,
    /// The bare receive loop beside vCPUs that spin.
    FloorReceiveBusy,
    /// Godwit moving a guest whose vCPUs spin.
    GodwitBusy,
}

impl Subject {
    /// All of them, in the order in which they take turns.
    pub const ALL: [Subject; 9] = [
        Subject::FloorFault,
        Subject::FloorFaultBulk,
        Subject::Godwit,
        Subject::Qemu,
        Subject::QemuPreempt,
        Subject::FloorReceive,
        Subject::GodwitHalt,
        Subject::FloorReceiveBusy,
        Subject::GodwitBusy,
    ];

    /// The name in JSON lines.
    pub const fn name(self) -> &'static str {
        match self {
            Subject::FloorFault => "floor-fault",
            Subject::FloorFaultBulk => "floor-fault-bulk",
            Subject::Godwit => "godwit",
            Subject::Qemu => "qemu",
            Subject::QemuPreempt => "qemu-preempt",
            Subject::FloorReceive => "floor-receive",
            Subject::GodwitHalt => "godwit-halt",
            Subject::FloorReceiveBusy => "floor-receive-busy",
            Subject::GodwitBusy => "godwit-busy",
        }
    }
}

/// Measures everything and prints the table. A measurement that fails is told and left out.
///
/// # Errors
///
/// [`Error::Incomplete`] if a measurement failed.
pub fn run(args: &RunArgs) -> Result<(), Error> {
    let mut recorder = Recorder::open(&args.out, args.rounds)?;
    let qemu = match qemu::version(&args.qemu) {
        Ok(version) => Some(version),
        Err(error @ Error::Absent { .. }) => {
            eprintln!("godwit-bench: {error}, so it is left out");
            None
        }
        Err(error) => return Err(error),
    };
    let mut table = Table::new(qemu);
    let mut subjects = Subject::ALL.to_vec();
    subjects.retain(|subject| table.expects(*subject));
    for round in 1..=args.rounds {
        for &subject in &subjects {
            let figures = recorder.measure(round, subject.name(), || args.measure(subject))?;
            table.add(round, subject, figures);
        }
    }
    print!("{table}");
    recorder.finish()
}

impl RunArgs {
    fn measure(&self, subject: Subject) -> Result<Value, Error> {
        match subject {
            Subject::FloorFault => value(fault::measure(&self.fault(false))?),
            Subject::FloorFaultBulk => value(fault::measure(&self.fault(true))?),
            Subject::Godwit => value(godwit::measure(&self.godwit("random"))?),
            Subject::GodwitHalt => value(godwit::measure(&self.godwit("halt"))?),
            Subject::GodwitBusy => value(godwit::measure(&self.godwit("clock"))?),
            Subject::Qemu => value(qemu::measure(&self.qemu(false))?),
            Subject::QemuPreempt => value(qemu::measure(&self.qemu(true))?),
            Subject::FloorReceive => value(receive::measure(&self.receive(0))?),
            Subject::FloorReceiveBusy => value(receive::measure(&self.receive(self.cpus))?),
        }
    }

    fn guest(&self, workload: &str) -> GuestArgs {
        GuestArgs::new(self.memory, self.cpus, workload, self.image.clone())
    }

    fn fault(&self, bulk: bool) -> FaultArgs {
        FaultArgs { guest: self.guest("random"), bulk, seconds: FAULT_SECONDS, busy: 0 }
    }

    fn godwit(&self, workload: &str) -> GodwitArgs {
        let (guest, moving) = (self.guest(workload), MoveArgs::default());
        GodwitArgs { guest, moving, godwit: self.godwit.clone() }
    }

    fn qemu(&self, preempt: bool) -> QemuArgs {
        QemuArgs { guest: self.guest("random"), qemu: self.qemu.clone(), preempt }
    }

    fn receive(&self, busy: u8) -> ReceiveArgs {
        ReceiveArgs { memory: self.memory, busy, image: self.image.clone() }
    }
}

/// How long faults are measured when nothing else ends the measurement.
pub const FAULT_SECONDS: u64 = 3;
