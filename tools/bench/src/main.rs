//! Measures what Godwit's figures are compared with: the floors of this machine, and QEMU. Each
//! measurement is one JSON object on one line; `run` makes all of them in turns and prints a table.
//! `engine` does the same with what the migration engine does under different conditions.

mod engine;
mod error;
mod floor;
mod godwit;
mod guest;
mod peer;
mod process;
mod record;
mod rounds;
mod size;
mod spread;
mod table;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::engine::EngineArgs;
use crate::error::Error;
use crate::floor::fault::{self, FaultArgs};
use crate::floor::receive::{self, ReceiveArgs};
use crate::floor::server::{self, ServeArgs};
use crate::godwit::GodwitArgs;
use crate::peer::qemu::{self, QemuArgs};
use crate::rounds::RunArgs;

/// Measures what Godwit's figures are compared with; without a command, everything (`run`, then
/// `engine`).
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// What this machine can do at best, without any protocol.
    #[command(subcommand)]
    Floor(Floor),
    /// Another VMM moving the same guest.
    #[command(subcommand)]
    Peer(Peer),
    Godwit(GodwitArgs),
    Run(RunArgs),
    Engine(EngineArgs),
    #[command(hide = true)]
    Serve(ServeArgs),
}

#[derive(Subcommand)]
enum Floor {
    Fault(FaultArgs),
    Receive(ReceiveArgs),
}

#[derive(Subcommand)]
enum Peer {
    Qemu(QemuArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(command) => execute(command),
        None => everything(&cli.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit-bench: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// A measurement that failed does not keep the others from being made.
fn everything(args: &RunArgs) -> Result<(), Error> {
    let compared = rounds::run(args);
    println!();
    compared.and(engine::run(&args.into()))
}

fn execute(command: Command) -> Result<(), Error> {
    match command {
        Command::Floor(Floor::Fault(args)) => print(&fault::measure(&args)?),
        Command::Floor(Floor::Receive(args)) => print(&receive::measure(&args)?),
        Command::Peer(Peer::Qemu(args)) => print(&qemu::measure(&args)?),
        Command::Godwit(args) => print(&godwit::measure(&args)?),
        Command::Run(args) => rounds::run(&args),
        Command::Engine(args) => engine::run(&args),
        Command::Serve(args) => server::serve(&args),
    }
}

fn print(figures: &impl Serialize) -> Result<(), Error> {
    let line = serde_json::to_string(figures).map_err(Error::system("writing JSON"))?;
    println!("{line}");
    Ok(())
}
