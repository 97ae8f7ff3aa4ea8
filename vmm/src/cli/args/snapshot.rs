//! `godwit snapshot` and `godwit restore`, as they are typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use uuid::Uuid;

use super::{At, MemoryBacking, size};
use crate::api::types::RestoreMode;

/// `godwit snapshot`.
#[derive(Debug, ClapArgs)]
pub struct Snapshot {
    /// The directory to make; it must not be there
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub at: At,
    /// Leave the guest paused; without this it runs on, unless it was paused before
    #[arg(long)]
    pub pause: bool,
    /// Print the outcome as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `godwit restore`.
#[derive(Debug, ClapArgs)]
pub struct Restore {
    /// The directory of the snapshot
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// How its memory comes
    #[arg(long, value_enum, default_value_t = Mode::Ondemand)]
    pub mode: Mode,
    /// Do not let the guest run before `godwit resume`
    #[arg(long)]
    pub paused: bool,
    /// What guest memory is made of [default: what it was made of]; with --mode mmap it is the file
    #[arg(long, value_name = "KIND", value_enum)]
    pub memory_backing: Option<MemoryBacking>,
    /// With --mode copy: read it into huge pages, which takes longer and makes the guest faster
    #[arg(long)]
    pub huge_pages: bool,
    /// With --mode workingset: what --record has written
    #[arg(long, value_name = "FILE", required_if_eq("mode", "workingset"))]
    pub working_set: Option<PathBuf>,
    /// With --mode ondemand: write down which pages the guest touches first, with their contents
    ///
    /// Nothing is brought in meanwhile but what the guest touches. The file belongs to this
    /// snapshot and to no other.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// With --record: for how many seconds, unless the guest ends before
    #[arg(long, value_name = "S", default_value_t = 10, requires = "record")]
    pub record_s: u32,
    /// With --record: at most so much memory, in bytes or with K, M or G; 4G is the most
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "record")]
    #[arg(value_parser = size)]
    pub record_max: u64,
    /// Control socket to make
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// The guest's identity [default: a new one, because the guest that was saved may still run]
    #[arg(long, value_name = "UUID")]
    pub id: Option<Uuid>,
    /// Where the records of ownership are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// End at once when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub end_with: Option<u32>,
}

/// How the memory of a snapshot comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// All of it is read and verified first, then the guest runs
    Copy,
    /// The guest runs on a private mapping of the file, which the kernel reads when it is touched;
    /// it is verified meanwhile, and a guest whose file is damaged is paused
    Mmap,
    /// The guest runs at once; a page comes, verified, when it is touched, and the others in the
    /// background. A damaged page is lost to the guest, which is told as hardware would tell it
    Ondemand,
    /// As ondemand, but the pages of --working-set come first, read from start to end
    Workingset,
}

impl From<Mode> for RestoreMode {
    fn from(mode: Mode) -> RestoreMode {
        match mode {
            Mode::Copy => RestoreMode::Copy,
            Mode::Mmap => RestoreMode::Mmap,
            Mode::Ondemand => RestoreMode::Ondemand,
            Mode::Workingset => RestoreMode::Workingset,
        }
    }
}
