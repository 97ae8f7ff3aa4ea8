//! What was typed. Parsing looks at nothing but the words; what they mean on this host is found
//! out by the commands.

mod snapshot;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use godwit_migration::limits::CONNECTIONS_MAX;
use godwit_migration::schedule::Compression;
use godwit_migration::transport::Address;
use godwit_uffd::page::PageSize;
use uuid::Uuid;

use crate::api::types::{DirtyTracking, MigrationMode, TimeoutStrategy};
use crate::memory::{Backing, page_size_word};
use crate::vm::{DeviceConfig, DiskConfig};

pub use snapshot::{Mode as RestoreMode, Restore, Snapshot};

const DEMO_EXAMPLES: &str = "\
Examples:
  godwit demo                                  1 GiB, 2 vCPUs, straight over loopback
  godwit demo --memory 256M --link 1G,2ms      as between two hosts on a gigabit network
  godwit demo --corrupt-page                   how a wrong page would show
  godwit demo --json | jq .verdict             for scripts";

const DOCTOR_STATUS: &str = "\
Exit status:
  0  guests can run here, leave and come
  3  guests can run here and leave, and none can come
  4  guests cannot run here";

/// Launches KVM guests and moves them, live, to other hosts.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, about, max_term_width = 100)]
pub struct Args {
    /// Say more on stderr; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Launch a guest, move it live to another process, show what happened
    ///
    /// Starts two processes of this program on this host, `godwit run` with a guest that checks
    /// every byte of its memory and `godwit receive`, and moves the guest from one to the other by
    /// post-copy, over TCP, while it runs. Then waits until the guest has verified all its memory
    /// at the destination. Needs /dev/kvm, /dev/userfaultfd and twice the guest's memory, and
    /// leaves nothing behind. The exit status is 0 only if the guest found every byte right.
    #[command(after_help = DEMO_EXAMPLES, verbatim_doc_comment)]
    Demo(Demo),
    /// Say what this host can do, what is missing, what that costs and how to get it
    ///
    /// Asks KVM and userfaultfd what they offer, and tries every operation of userfaultfd on each
    /// kind of memory, which takes some pages for a moment. Leaves nothing changed.
    #[command(after_help = DOCTOR_STATUS, verbatim_doc_comment)]
    Doctor(Doctor),
    /// Launch a guest; its console is stdout, its exit code is the exit status
    Run(Run),
    /// Wait for guests that are migrated here; the guest's console is stdout
    Receive(Receive),
    /// Move a running guest to a `godwit receive`; exits 0 only when all of it is there
    Migrate(Migrate),
    /// Save a guest, running or paused, to a directory
    ///
    /// The guest stands still while its memory is read, and runs on while the rest is brought to
    /// the disk. Nothing is left of a snapshot that does not come to its end.
    #[command(verbatim_doc_comment)]
    Snapshot(Snapshot),
    /// Bring a guest back from a snapshot; its console is stdout, its exit code the exit status
    ///
    /// The snapshot is not changed, and any number of guests may be brought back from it: each has
    /// an identity of its own. Three instants are told on stderr and by `godwit status`: restored
    /// (the guest runs), working set in, and fully resident (it has all of its pages).
    #[command(verbatim_doc_comment)]
    Restore(Restore),
    /// Show a guest, who owns it, and its migration
    Status(Status),
    /// End a migration before its switchover, or a snapshot; the guest stays
    Cancel(At),
    /// End the rounds of a migration: the guest changes hands now, and the rest follows
    SwitchOver(At),
    /// Find a peer again that was lost after the switchover
    ///
    /// The source dials a lost destination by itself, until it answers. This makes it dial at
    /// once, at another address if one is given. With the control socket of the destination, it
    /// listens at the address as well.
    #[command(verbatim_doc_comment)]
    Recover(Recover),
    /// Stop the vCPUs of a guest
    Pause(At),
    /// Let the vCPUs of a paused guest run on
    Resume(At),
    /// End a guest and its process
    Shutdown(Shutdown),
}

/// The control socket of a guest.
#[derive(Debug, ClapArgs)]
pub struct At {
    /// The control socket that was given to `run`, `receive` or `restore`
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
}

/// `godwit run`.
#[derive(Debug, ClapArgs)]
pub struct Run {
    /// Kernel: ELF (PVH or 64-bit) or bzImage [default: the bare test guest in this program]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system for the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line; for the bare test guest for example `workload=dirty seed=7`
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = cpus())]
    pub cpus: u8,
    /// Guest memory, in bytes or with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    pub memory: u64,
    /// What guest memory is made of
    #[arg(long, value_name = "KIND", value_enum, default_value_t = MemoryBacking::Anon)]
    pub memory_backing: MemoryBacking,
    /// The pages of guest memory: 4K, or 2M of the host's pool of huge pages (vm.nr_hugepages),
    /// which are reserved before the guest starts
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = page_size)]
    pub page_size: PageSize,
    /// Disk: a raw file or block device, as `path=FILE`, with `,readonly=on` to keep it as it is
    ///
    /// May be given again for another. The file is locked: a disk that is written has one user.
    #[arg(long, value_name = "path=FILE[,readonly=on]", value_parser = disk)]
    pub disk: Vec<DiskConfig>,
    /// Give the guest random numbers of this host (virtio-rng)
    #[arg(long)]
    pub rng: bool,
    /// Control socket to make
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// The guest's identity, which moves with it [default: a new one]
    #[arg(long, value_name = "UUID")]
    pub id: Option<Uuid>,
    /// Where the records of ownership are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Run a guest even though it was granted to another host. If it runs there, there are then two
    #[arg(long, requires = "id")]
    pub override_grant: bool,
    /// Append what happens to migrations to this file or named pipe, one JSON object a line
    #[arg(long, value_name = "PATH")]
    pub events: Option<PathBuf>,
    /// End at once when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub end_with: Option<u32>,
}

impl Run {
    /// The virtio devices, in the order of their places.
    pub fn devices(&self) -> Vec<DeviceConfig> {
        let disks = self.disk.iter().cloned().map(DeviceConfig::Disk);
        disks.chain(self.rng.then_some(DeviceConfig::Rng)).collect()
    }
}

/// `godwit receive`.
#[derive(Debug, ClapArgs)]
pub struct Receive {
    /// Where to listen: tcp:HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS")]
    pub address: Address,
    /// Let in only sources that have a certificate of the CA: a directory with ca-cert.pem,
    /// server-cert.pem and server-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Let in everybody, also from other hosts, without TLS. Without this and without --tls-dir
    /// only the loopback and Unix sockets can be listened on
    #[arg(long, conflicts_with = "tls_dir")]
    pub insecure: bool,
    /// Let in only guests whose memory has pages of this size, 4K or 2M [default: either; 2M takes
    /// them from the host's pool of huge pages]
    #[arg(long, value_name = "SIZE", value_parser = page_size)]
    pub page_size: Option<PageSize>,
    /// Let guests bring disks whose files are in this directory, which they have at their source
    /// under the same path. May be given again; without it, guests with disks are turned away
    #[arg(long, value_name = "DIR")]
    pub disk_dir: Vec<PathBuf>,
    /// Take pages of guests that come with this snapshot from it: see `migrate --base`
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Control socket to make
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// Where the records of ownership are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Append what happens to migrations to this file or named pipe, one JSON object a line
    #[arg(long, value_name = "PATH")]
    pub events: Option<PathBuf>,
    /// End at once when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub end_with: Option<u32>,
}

/// `godwit migrate`.
#[derive(Debug, ClapArgs)]
pub struct Migrate {
    /// Where `godwit receive` listens: tcp:HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS")]
    pub address: Address,
    #[command(flatten)]
    pub at: At,
    /// How to move it
    #[arg(long, value_enum, default_value_t = Mode::Postcopy)]
    pub mode: Mode,
    /// Number of bulk channels
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections())]
    pub connections: u8,
    /// How long the guest may stand still for the last pages of pre-copy, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime_ms: u32,
    /// How long rounds may take, in seconds; hybrid switches then
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub timeout_s: u32,
    /// What happens to a pre-copy that takes longer
    #[arg(long, value_enum, default_value_t = OnTimeout::Cancel)]
    pub timeout_strategy: OnTimeout,
    /// How writes of the guest are noted during rounds
    #[arg(long, value_enum, default_value_t = Tracking::KvmLog)]
    pub dirty_tracking: Tracking,
    /// Whether to pack pages before they are sent; those that a fault asks for never are
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Compress::Auto)]
    pub compression: Compress,
    /// Send at most so many bytes a second of pages that no fault asks for
    ///
    /// A number of bytes, with K, M or G (powers of 1024). Without it, as many as go.
    #[arg(long, value_name = "RATE", value_parser = size)]
    pub bandwidth: Option<u64>,
    /// Use TLS: a directory with ca-cert.pem, client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Do not send pages that are still as in this snapshot, which the receiver has as well
    ///
    /// Only for guests with pages of 4 KiB, as snapshots are.
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Return as soon as the migration has begun
    #[arg(long)]
    pub detach: bool,
    /// Print the outcome as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `godwit recover`.
#[derive(Debug, ClapArgs)]
pub struct Recover {
    /// Where the destination is now, or where to listen as well: tcp:HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS")]
    pub address: Option<Address>,
    #[command(flatten)]
    pub at: At,
}

/// `godwit status`.
#[derive(Debug, ClapArgs)]
pub struct Status {
    #[command(flatten)]
    pub at: At,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `godwit shutdown`.
#[derive(Debug, ClapArgs)]
pub struct Shutdown {
    #[command(flatten)]
    pub at: At,
    /// End at once, even if that loses pages that are nowhere else
    #[arg(long)]
    pub force: bool,
}

/// `godwit doctor`.
#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `godwit demo`.
#[derive(Debug, ClapArgs)]
pub struct Demo {
    /// Guest memory, in bytes or with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    pub memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = cpus())]
    pub cpus: u8,
    /// What the guest does
    #[arg(long, value_name = "NAME", value_enum, default_value_t = crate::demo::Workload::Dirty)]
    pub workload: crate::demo::Workload,
    /// What guest memory is made of
    #[arg(long, value_name = "KIND", value_enum, default_value_t = MemoryBacking::Anon)]
    pub memory_backing: MemoryBacking,
    /// Put a link of this rate and round-trip time between the two processes, such as 1G,2ms
    ///
    /// The rate is in bits per second in each direction, with K, M or G (powers of 1000); the time
    /// is in us, ms or s.
    #[arg(long, value_name = "RATE,RTT")]
    pub link: Option<crate::demo::Link>,
    /// Change one page on the way, as no checksum can see: the guest must, and the demo fails
    #[arg(long)]
    pub corrupt_page: bool,
    /// Print the outcome as one JSON object on stdout and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MemoryBacking {
    /// Private anonymous memory
    Anon,
    /// A shared memory file
    Memfd,
}

impl MemoryBacking {
    /// Such memory, made of pages of this size.
    pub fn of_pages(self, size: PageSize) -> Backing {
        Backing::of(self == MemoryBacking::Memfd, size)
    }

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            MemoryBacking::Anon => "anon",
            MemoryBacking::Memfd => "memfd",
        }
    }
}

/// How a guest is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// It changes hands first, and its memory follows while it runs there
    Postcopy,
    /// Its memory goes first, in rounds while it runs here, and it changes hands at the end
    Precopy,
    /// Rounds first; it changes hands when they stop to pay, and the rest follows
    Hybrid,
}

impl From<Mode> for MigrationMode {
    fn from(mode: Mode) -> MigrationMode {
        match mode {
            Mode::Postcopy => MigrationMode::Postcopy,
            Mode::Precopy => MigrationMode::Precopy,
            Mode::Hybrid => MigrationMode::Hybrid,
        }
    }
}

/// What happens to a pre-copy that takes longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnTimeout {
    /// The guest stays where it is
    Cancel,
    /// Rounds go on until what is left fits the downtime
    Ignore,
    /// The guest changes hands, and what is left follows
    Switch,
}

impl From<OnTimeout> for TimeoutStrategy {
    fn from(on_timeout: OnTimeout) -> TimeoutStrategy {
        match on_timeout {
            OnTimeout::Cancel => TimeoutStrategy::Cancel,
            OnTimeout::Ignore => TimeoutStrategy::Ignore,
            OnTimeout::Switch => TimeoutStrategy::Switch,
        }
    }
}

/// How writes are noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tracking {
    /// The dirty log of KVM
    KvmLog,
    /// Asynchronous write-protection of userfaultfd, read by PAGEMAP_SCAN
    WriteProtect,
    /// Write-protection of userfaultfd whose faults are answered: who writes a page waits until
    /// it is sent
    WriteFaults,
}

impl From<Tracking> for DirtyTracking {
    fn from(tracking: Tracking) -> DirtyTracking {
        match tracking {
            Tracking::KvmLog => DirtyTracking::KvmLog,
            Tracking::WriteProtect => DirtyTracking::WriteProtect,
            Tracking::WriteFaults => DirtyTracking::WriteFaults,
        }
    }
}

fn connections() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=i64::from(CONNECTIONS_MAX))
}

/// Whether pages are packed before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// While that moves more pages a second
    Auto,
    /// Whatever gets shorter
    Lz4,
    /// Never
    None,
}

impl From<Compress> for Compression {
    fn from(compress: Compress) -> Compression {
        match compress {
            Compress::Auto => Compression::Auto,
            Compress::Lz4 => Compression::Lz4,
            Compress::None => Compression::None,
        }
    }
}

/// A number of vCPUs; how many are possible is up to the host.
fn cpus() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..)
}

/// A number of bytes, with an optional suffix K, M, G or T (powers of 1024).
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| {
        format!("`{text}` is not a size: write a number of bytes, or for example 512M or 1G")
    })?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is beyond all memory"))
}

/// A size that pages of guest memory can have.
pub fn page_size(text: &str) -> Result<PageSize, String> {
    size(text).ok().and_then(PageSize::of).ok_or_else(|| {
        let [base, huge] = PageSize::ALL.map(page_size_word);
        format!("`{text}` is no size of pages: choose {base} or {huge}")
    })
}

/// A disk: `path=FILE`, and `readonly=on` or `readonly=off` behind it.
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    const FORM: &str = "write path=FILE, or path=FILE,readonly=on";
    let (mut path, mut readonly) = (None, false);
    for word in text.split(',') {
        match word.split_once('=') {
            Some(("path", file)) if path.is_none() && !file.is_empty() => path = Some(file),
            Some(("readonly", "on")) => readonly = true,
            Some(("readonly", "off")) => readonly = false,
            _ => return Err(format!("`{word}` is no part of a disk: {FORM}")),
        }
    }
    let path = path.ok_or_else(|| format!("the disk has no file: {FORM}"))?;
    // The next host finds it under the same name, wherever godwit was started there.
    let path = std::path::absolute(path).map_err(|e| format!("{path} cannot be a disk: {e}"))?;
    Ok(DiskConfig { path, readonly })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn memory_backings_are_named_as_they_are_written() {
        for backing in MemoryBacking::value_variants() {
            assert_eq!(MemoryBacking::from_str(backing.name(), false), Ok(*backing));
        }
    }

    #[test]
    fn pages_have_one_of_two_sizes() {
        for size in PageSize::ALL {
            assert_eq!(page_size(page_size_word(size)), Ok(size));
        }
        assert_eq!(page_size("2048k"), Ok(PageSize::HUGE));
        for text in ["", "0", "8K", "1G", "huge"] {
            let error = page_size(text).unwrap_err();
            assert!(error.contains("choose 4K or 2M"), "{error}");
        }
    }

    #[test]
    fn sizes_have_suffixes_and_limits() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        for text in ["", "M", "-1", "1.5G", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
