//! Snapshots and restores, as they travel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use godwit_migration::metrics::RestoreState;

use super::{FaultReport, Problem};

/// The body of `PUT /api/v1/snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// The directory to make, as the process of the guest sees it. It must not be there.
    pub dir: PathBuf,
    /// Leave the guest paused afterwards.
    #[serde(default)]
    pub pause: bool,
}

/// How the taking of a snapshot goes, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// The identity of the snapshot.
    pub id: Uuid,
    /// Where it is, or will be.
    pub dir: PathBuf,
    /// How it goes.
    pub state: SnapshotState,
    /// What ended it; absent while all is well.
    pub error: Option<Problem>,
    /// The pages of the guest.
    pub pages: SnapshotPages,
    /// Microseconds in which no vCPU ran; absent until it is over, and if the guest stays paused.
    pub blackout_us: Option<u64>,
    /// Microseconds until all of it was on the disk; absent until then.
    pub duration_us: Option<u64>,
}

/// How the taking of a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// It is being written.
    Active,
    /// All of it is on the disk.
    Completed,
    /// It failed and nothing is left of it; the guest is as it was.
    Failed,
}

/// The pages of a guest that is being saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPages {
    /// All of them.
    pub total: u64,
    /// Those that are not saved yet.
    pub remaining: u64,
}

/// How a snapshot is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// Its memory is read first.
    Copy,
    /// The guest runs on a private mapping of the file.
    Mmap,
    /// The guest runs at once, and its pages come when it touches them, and in the background.
    Ondemand,
    /// The same, and the pages that were recorded before come first.
    Workingset,
}

/// How the restore of this guest goes, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreStatus {
    /// The identity of the snapshot.
    pub snapshot: Uuid,
    /// Where it is.
    pub dir: PathBuf,
    /// How it is brought back.
    pub mode: RestoreMode,
    /// Where it stands.
    pub state: RestoreState,
    /// What went wrong, or what was found to be damaged; absent if all is well.
    pub error: Option<Problem>,
    /// When it passed each of its marks.
    pub timeline: RestoreTimeline,
    /// Where the pages are; absent if the kernel pages them in.
    pub pages: Option<RestorePages>,
    /// The faults that were served.
    pub faults: Option<FaultReport>,
}

/// When a restore passed each of its marks, in microseconds since its process began; a mark that
/// was not passed, or that this mode does not have, is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreTimeline {
    /// When the process began, in microseconds of this host's CLOCK_MONOTONIC.
    pub began_monotonic_us: u64,
    /// The snapshot was found to be whole, but for the contents of its memory.
    pub opened_us: Option<u64>,
    /// *Restored*: the guest runs.
    pub restored_us: Option<u64>,
    /// What the guest touched first is recorded.
    pub recorded_us: Option<u64>,
    /// *Working set in*: the pages that were recorded are in place.
    pub working_set_us: Option<u64>,
    /// *Fully resident*: every page is in place.
    pub resident_us: Option<u64>,
    /// The file that the guest runs on was found to be what was saved.
    pub checked_us: Option<u64>,
}

/// The pages of a guest that is being restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePages {
    /// All of them.
    pub total: u64,
    /// Those that are not in place yet.
    pub remaining: u64,
    /// Those that came as zero.
    pub zero: u64,
    /// Those that came with their bytes.
    pub data: u64,
    /// Those that are lost to the guest: damaged in the snapshot, or lost before it was taken.
    pub poisoned: u64,
    /// Those of them whose checksum was wrong, or that could not be read.
    pub damaged: u64,
    /// Those that came because a fault asked for them.
    pub requested: u64,
}
