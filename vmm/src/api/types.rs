//! What travels over the control API, as JSON.
//!
//! These types are for people and for their tools, so they are never the types that run: names are
//! the ones users know from QEMU and libvirt, times are microseconds, sizes are bytes.

mod classes;
mod snapshot;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use godwit_migration::driver::DirtyTracking;
pub use godwit_migration::metrics::WritesHeld;
pub use godwit_migration::proto::MigrationState;
pub use godwit_migration::schedule::Compression;
use godwit_migration::transport::Address;

pub use classes::{ClassCount, Classes};
pub use snapshot::{
    RestoreMode, RestorePages, RestoreState, RestoreStatus, RestoreTimeline, SnapshotPages,
    SnapshotRequest, SnapshotState, SnapshotStatus,
};

/// Who answers: the reply to `GET /api/v1/ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Always `godwit`.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// The process that answers.
    pub pid: u32,
}

/// All that can be known about a guest and the process that holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The guest's identity, which moves with it; absent while there is none.
    pub id: Option<Uuid>,
    /// What the process was started to do.
    pub role: Role,
    /// The guest, as seen from this process.
    pub guest: GuestState,
    /// Whether this process may run the guest.
    pub owner: Ownership,
    /// The machine; absent until there is one.
    pub vm: Option<VmInfo>,
    /// How pages are put into the guest's memory; absent unless pages may be missing there.
    pub memory: Option<MemoryMethods>,
    /// The latest migration of this guest in this process, under way or over; absent if none.
    pub migration: Option<MigrationStatus>,
    /// The latest snapshot that was taken of it here, or is being taken; absent if none.
    #[serde(default)]
    pub snapshot: Option<SnapshotStatus>,
    /// How it was brought back from a snapshot here; absent if it was not.
    #[serde(default)]
    pub restore: Option<RestoreStatus>,
}

impl Status {
    /// Whether the guest is lost: granted by this process or owned by it, and it runs nowhere.
    pub fn lost(&self) -> bool {
        self.migration.as_ref().is_some_and(|m| {
            m.state == MigrationState::Failed && m.timeline.granted_us.is_some() && !self.owner.owns
        })
    }
}

/// What a process was started to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `godwit run`: it booted the guest itself.
    Run,
    /// `godwit receive`: it waits for a guest, or has received one.
    Receive,
    /// `godwit restore`: it brought the guest back from a snapshot.
    Restore,
}

/// A guest, as seen from one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum GuestState {
    /// There is none yet.
    None,
    /// There is a machine, and it has not run here.
    Created,
    /// Its vCPUs run here.
    Running,
    /// Its vCPUs are stopped here and may run on here.
    Paused,
    /// It ended itself.
    PoweredOff {
        /// The code that it ended with.
        code: u8,
    },
    /// It was given away and runs, or will run, elsewhere.
    Moved {
        /// The peer that has it.
        to: String,
    },
    /// It did something from which it cannot run on.
    Crashed {
        /// What it did.
        reason: String,
    },
}

/// Whether this process may run the guest, by the records of its switchovers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Only an owner lets a vCPU run; at most one process is one.
    pub owns: bool,
    /// How many times the guest has changed hands.
    pub grant: u64,
    /// The newest durable record of this process on the guest; absent if none was written.
    pub record: Option<String>,
}

/// The shape of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// The number of vCPUs.
    pub cpus: u8,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// What guest memory is made of.
    pub backing: MemoryBacking,
    /// The size of the pages of guest memory, in bytes.
    #[serde(default = "base_page_bytes")]
    pub page_bytes: u32,
    /// The frequency of the guest's time stamp counter.
    pub tsc_khz: u32,
}

/// What a process that says nothing of the size has: base pages.
const fn base_page_bytes() -> u32 {
    4096
}

/// What guest memory is made of on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBacking {
    /// Anonymous private memory.
    Anon,
    /// A shared memory file.
    Memfd,
}

/// How each operation on pages of the guest's memory is done: the call of the kernel, what stands
/// in for it where the kernel or the memory lacks it, or that it is refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMethods {
    /// What the memory is made of.
    pub kind: String,
    /// Installing bytes.
    pub copy: String,
    /// Installing zeros.
    pub zero: String,
    /// Mapping what the page cache has.
    pub r#continue: String,
    /// Marking pages as lost.
    pub poison: String,
    /// Moving pages.
    pub r#move: String,
    /// Write-protecting pages.
    pub protect: String,
}

/// How a migration goes, or went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// Which end of it this process is.
    pub direction: Direction,
    /// Where it stands.
    pub state: MigrationState,
    /// How it was asked to move the guest.
    pub mode: MigrationMode,
    /// How often the other end was lost after the switchover.
    #[serde(default)]
    pub interruptions: u32,
    /// The other end, as an endpoint or as the address that connected.
    pub peer: String,
    /// What ended or paused it: absent while all is well, and once completed.
    pub error: Option<Problem>,
    /// When it passed each of its marks.
    pub timeline: Timeline,
    /// Where the pages are.
    pub pages: Pages,
    /// How the pages that have travelled did.
    #[serde(default)]
    pub classes: Classes,
    /// Page contents and headers that crossed the link, in bytes.
    pub bytes: u64,
    /// Bytes of page contents that moved per second, from the switchover to the last page or to
    /// now; absent before the switchover.
    pub drain_bytes_per_s: Option<u64>,
    /// Writes of the guest that were held up at its source; none unless writes are noted so.
    #[serde(default)]
    pub writes_held: WritesHeld,
    /// The faults that the guest took; absent at the source, which sees requests and not faults.
    pub faults: Option<FaultReport>,
    /// How long each vCPU has waited for missing pages, in microseconds; absent at the source.
    #[serde(default)]
    pub blocktime_us: Option<Vec<u64>>,
    /// How long other threads have, all together, in microseconds; absent at the source. KVM may
    /// let a thread of the kernel wait in the place of a vCPU, which it halts meanwhile, and does
    /// not say for which.
    #[serde(default)]
    pub blocktime_others_us: Option<u64>,
    /// Microseconds in which no vCPU ran anywhere, as the source measured it: from telling its
    /// vCPUs to stop to hearing that they run again. Absent until then, and at the destination.
    pub blackout_us: Option<u64>,
    /// The guest's time stamp counter on each vCPU at the start of the blackout, at the source.
    pub paused_tsc: Option<Vec<u64>>,
}

/// Which end of a migration a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest leaves this process.
    Outgoing,
    /// The guest arrives here.
    Incoming,
}

/// How a guest is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationMode {
    /// It changes hands first, and its memory follows while it runs there.
    #[default]
    Postcopy,
    /// Its memory goes first, in rounds while it runs here, and it changes hands at the end.
    Precopy,
    /// Rounds first; it changes hands when they stop to pay, and the rest follows.
    Hybrid,
}

/// What happens to a pre-copy that takes longer than it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeoutStrategy {
    /// The guest stays where it is.
    #[default]
    Cancel,
    /// Rounds go on until what is left fits the downtime.
    Ignore,
    /// The guest changes hands, and what is left follows.
    Switch,
}

/// When a migration passed each of its marks, in microseconds since it began at this end; a mark
/// that was not passed, or that this end cannot see, is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// When it began at this end, in microseconds of this host's CLOCK_MONOTONIC: two ends on one
    /// host can be compared.
    pub began_monotonic_us: Option<u64>,
    /// The destination has checked that it can run the guest, and has its memory ready.
    pub prepared_us: Option<u64>,
    /// The first round of pages begins, while the guest runs at the source.
    pub first_round_us: Option<u64>,
    /// The source tells its vCPUs to stop: the blackout begins.
    pub paused_us: Option<u64>,
    /// The state of vCPUs and devices is saved (source) or has come (destination).
    pub package_us: Option<u64>,
    /// The destination has loaded all state, without any effect outside itself.
    pub loaded_us: Option<u64>,
    /// The source's grant is durable: the switchover.
    pub granted_us: Option<u64>,
    /// The destination's ownership is durable and its vCPUs enter the guest: the blackout ends.
    /// The source sees it when it is told.
    pub first_instruction_us: Option<u64>,
    /// A lost peer came back, for the first time.
    pub resumed_us: Option<u64>,
    /// The source has pushed everything that nobody asked for.
    pub pushed_us: Option<u64>,
    /// The last page is in place at the destination.
    pub last_page_us: Option<u64>,
    /// The source knows it, and is free to end.
    pub released_us: Option<u64>,
    /// It failed, or the peer was lost.
    pub ended_us: Option<u64>,
}

/// The pages of a guest, counted by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// The size of each, in bytes; 0 until the guest is known.
    #[serde(default = "base_page_bytes")]
    pub bytes: u32,
    /// All pages of the guest.
    pub total: u64,
    /// Those that are not yet at the destination.
    pub remaining: u64,
    /// Those that moved as zero, without their bytes.
    pub zero: u64,
    /// Those that moved with their bytes.
    pub data: u64,
    /// Those that the source could not read: they are lost.
    #[serde(default)]
    pub poisoned: u64,
    /// Those that moved because a fault asked for them.
    pub requested: u64,
}

/// The faults that a guest took at the destination. Latency runs from reading the fault to waking
/// the vCPU, in microseconds; without a resolved fault all latencies are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Faults resolved.
    pub count: u64,
    /// Faults that wait now.
    pub outstanding: u64,
    /// The median latency.
    pub p50_us: u64,
    /// Nine of ten were faster.
    pub p90_us: u64,
    /// Ninety-nine of a hundred were faster.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// Where that time went, for pages that came because they were asked for.
    #[serde(default)]
    pub stages: FaultStages,
}

/// The latency of faults by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FaultStages {
    /// From reading the fault to its request being on its way.
    pub queue: StageLatency,
    /// To the source and back, without the time that the source took.
    pub wire: StageLatency,
    /// In the source.
    pub service: StageLatency,
    /// From reading the answer to the page being in place and the vCPU woken.
    pub install: StageLatency,
}

/// How long one stage of faults took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageLatency {
    /// The median.
    pub p50_us: u64,
    /// Ninety-nine of a hundred were faster.
    pub p99_us: u64,
}

/// The body of `PUT /api/v1/migrate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where a `godwit receive` listens.
    pub destination_url: Address,
    /// How to move the guest.
    pub mode: MigrationMode,
    /// The number of bulk channels.
    #[serde(default = "one")]
    pub connections: u8,
    /// How long the guest may stand still for the last pages of pre-copy, in milliseconds.
    #[serde(default = "default_downtime_ms")]
    pub downtime_ms: u32,
    /// How long rounds may take, in seconds.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u32,
    /// What happens then, in pre-copy; hybrid switches.
    #[serde(default)]
    pub timeout_strategy: TimeoutStrategy,
    /// How writes are noted during rounds.
    #[serde(default = "default_tracking")]
    pub dirty_tracking: DirtyTracking,
    /// Whether pages are packed before they are sent.
    #[serde(default)]
    pub compression: Compression,
    /// The most bytes a second for pages that no fault asks for; absent for no cap.
    #[serde(default)]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, as the process of
    /// the guest sees it; without one, no TLS.
    #[serde(default)]
    pub tls_dir: Option<PathBuf>,
    /// The directory of a snapshot that the receiver has as well, as the process of the guest sees
    /// it: pages that are still as they were in it are not sent. Only for a guest with pages of
    /// 4 KiB.
    #[serde(default)]
    pub base: Option<PathBuf>,
}

impl MigrateRequest {
    /// To `destination_url` by `mode`, with the defaults of all else.
    pub fn new(destination_url: Address, mode: MigrationMode) -> MigrateRequest {
        MigrateRequest {
            destination_url,
            mode,
            connections: one(),
            downtime_ms: default_downtime_ms(),
            timeout_s: default_timeout_s(),
            timeout_strategy: TimeoutStrategy::default(),
            dirty_tracking: default_tracking(),
            compression: Compression::default(),
            bandwidth_bytes_per_s: None,
            tls_dir: None,
            base: None,
        }
    }
}

fn one() -> u8 {
    1
}

/// As Cloud Hypervisor and QEMU have it.
fn default_downtime_ms() -> u32 {
    300
}

fn default_timeout_s() -> u32 {
    3600
}

fn default_tracking() -> DirtyTracking {
    DirtyTracking::KvmLog
}

/// The body of `PUT /api/v1/recover`; an empty body means the address that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecoverRequest {
    /// At the source: where the destination is now. At the destination: where to listen as well.
    pub url: Option<Address>,
}

/// The body of `PUT /api/v1/shutdown`; an empty body means the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownRequest {
    /// End at once, even if that loses the guest's only copy of a page.
    pub force: bool,
}

/// The body of every reply that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: Problem,
}

/// What went wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was being done.
    pub step: String,
    /// What went wrong with it, with its causes.
    pub message: String,
    /// What to do next; absent if there is nothing to advise.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with `step`.
    pub fn new(step: &str, message: &str, hint: Option<&str>) -> Problem {
        Problem {
            step: step.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.message)
    }
}
