//! A guest that does what the test wants, and a status with every field filled.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;

use crate::api::types::*;
use crate::api::{Client, Control, ControlError, Server};

/// Far more than any of this takes; it turns a hang into a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Records calls, answers as told, and can hold a pause until it is let go.
pub struct FakeGuest {
    pub calls: Mutex<Vec<String>>,
    pub answer: Mutex<Result<(), ControlError>>,
    gate: Mutex<Option<Gate>>,
}

struct Gate {
    entered: Sender<()>,
    leave: Receiver<()>,
}

/// The test's side of a held pause.
pub struct Held {
    pub entered: Receiver<()>,
    pub leave: Sender<()>,
}

impl FakeGuest {
    pub fn new() -> Arc<FakeGuest> {
        Arc::new(FakeGuest {
            calls: Mutex::new(Vec::new()),
            answer: Mutex::new(Ok(())),
            gate: Mutex::new(None),
        })
    }

    /// Makes the next pause wait until the returned side says `leave` or is dropped.
    pub fn hold_next_pause(&self) -> Held {
        let (entered_sender, entered) = channel();
        let (leave, leave_receiver) = channel();
        let gate = Gate { entered: entered_sender, leave: leave_receiver };
        *self.gate.lock().expect("gate") = Some(gate);
        Held { entered, leave }
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("calls").clone()
    }

    fn note(&self, call: String) -> Result<(), ControlError> {
        self.calls.lock().expect("calls").push(call);
        self.answer.lock().expect("answer").clone()
    }
}

impl Control for FakeGuest {
    fn status(&self) -> Status {
        full_status()
    }

    fn pause(&self) -> Result<(), ControlError> {
        let gate = self.gate.lock().expect("gate").take();
        if let Some(gate) = gate {
            gate.entered.send(()).expect("the test waits");
            // An error means that the test has let go by dropping its side.
            let _ = gate.leave.recv();
        }
        self.note("pause".to_owned())
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.note("resume".to_owned())
    }

    fn shutdown(&self, force: bool) -> Result<(), ControlError> {
        self.note(format!("shutdown force={force}"))
    }

    fn migrate(&self, request: MigrateRequest) -> Result<(), ControlError> {
        self.note(format!("migrate {} {:?}", request.destination_url, request.mode))
    }

    fn snapshot(&self, request: SnapshotRequest) -> Result<(), ControlError> {
        self.note(format!("snapshot {} pause={}", request.dir.display(), request.pause))
    }

    fn cancel(&self) -> Result<(), ControlError> {
        self.note("cancel".into())
    }

    fn switch_over(&self) -> Result<(), ControlError> {
        self.note("switch over".into())
    }

    fn recover(&self, request: RecoverRequest) -> Result<(), ControlError> {
        self.note(format!("recover {:?}", request.url.map(|url| url.to_string())))
    }
}

/// A served guest and a client of it.
pub struct Served {
    pub guest: Arc<FakeGuest>,
    pub server: Server,
    pub client: Client,
    pub path: PathBuf,
    pub folder: TempDir,
}

pub fn serve() -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    let guest = FakeGuest::new();
    let control: Arc<dyn Control> = guest.clone();
    let server = Server::start(&path, control).expect("starts");
    let client = Client::new(&path).with_timeout(DEADLINE);
    Served { guest, server, client, path, folder }
}

/// A status with every optional field present.
pub fn full_status() -> Status {
    Status {
        id: Some(Uuid::from_u128(0x6f64_7769_7400_4000_8000_0000_0000_0001)),
        role: Role::Receive,
        guest: GuestState::Running,
        owner: Ownership { owns: true, grant: 3, record: Some("owned 3".to_owned()) },
        vm: Some(VmInfo {
            cpus: 2,
            memory_bytes: 1 << 30,
            backing: MemoryBacking::Anon,
            page_bytes: 4096,
            tsc_khz: 2_300_000,
        }),
        memory: Some(MemoryMethods {
            kind: "anonymous".to_owned(),
            copy: "COPY".to_owned(),
            zero: "ZEROPAGE".to_owned(),
            r#continue: "refused: anonymous memory has no page cache".to_owned(),
            poison: "POISON".to_owned(),
            r#move: "MOVE".to_owned(),
            protect: "refused: the memory is not registered for it".to_owned(),
        }),
        migration: Some(full_migration()),
        snapshot: Some(full_snapshot()),
        restore: Some(full_restore()),
    }
}

fn full_snapshot() -> SnapshotStatus {
    SnapshotStatus {
        id: Uuid::from_u128(5),
        dir: "/snapshots/a".into(),
        state: SnapshotState::Failed,
        error: Some(Problem::new("snapshot", "the disk is full", None)),
        pages: SnapshotPages { total: 262_144, remaining: 12 },
        blackout_us: Some(300_000),
        duration_us: Some(900_000),
    }
}

fn full_restore() -> RestoreStatus {
    RestoreStatus {
        snapshot: Uuid::from_u128(4),
        dir: "/snapshots/b".into(),
        mode: RestoreMode::Ondemand,
        state: RestoreState::Serving,
        error: Some(Problem::new("restore", "page 7 is damaged", None)),
        timeline: RestoreTimeline {
            began_monotonic_us: 100,
            opened_us: Some(1_000),
            restored_us: Some(8_000),
            recorded_us: Some(30_000),
            working_set_us: Some(40_000),
            resident_us: Some(400_000),
            checked_us: Some(500_000),
        },
        pages: Some(RestorePages {
            total: 262_144,
            remaining: 12,
            zero: 200_000,
            data: 62_131,
            poisoned: 1,
            damaged: 1,
            requested: 40,
        }),
        faults: Some(FaultReport::default()),
    }
}

fn full_migration() -> MigrationStatus {
    MigrationStatus {
        direction: Direction::Incoming,
        state: MigrationState::PostcopyPaused,
        mode: MigrationMode::Postcopy,
        interruptions: 1,
        writes_held: WritesHeld { writes: 7, pushed_first: 3 },
        peer: "tcp:10.0.0.7:7070".to_owned(),
        error: Some(Problem::new("receive pages", "the peer is gone", Some("see the source"))),
        timeline: Timeline {
            began_monotonic_us: Some(100),
            prepared_us: Some(200),
            paused_us: Some(300),
            loaded_us: Some(400),
            granted_us: Some(500),
            package_us: Some(350),
            first_round_us: Some(150),
            resumed_us: Some(750),
            first_instruction_us: Some(700),
            pushed_us: Some(750),
            last_page_us: Some(800),
            released_us: Some(900),
            ended_us: Some(1000),
        },
        pages: Pages {
            bytes: 4096,
            total: 262_144,
            remaining: 12,
            zero: 200_000,
            data: 62_130,
            poisoned: 2,
            requested: 40,
        },
        classes: Classes {
            zero: ClassCount { pages: 200_000, bytes: 4_000 },
            word: ClassCount { pages: 130, bytes: 400 },
            lz4: ClassCount { pages: 60_000, bytes: 90_000_000 },
            raw: ClassCount { pages: 2_000, bytes: 8_200_000 },
            poisoned: ClassCount { pages: 2, bytes: 32 },
            same: ClassCount { pages: 64, bytes: 32 },
        },
        bytes: 254_492_672,
        drain_bytes_per_s: Some(2_000_000_000),
        faults: Some(FaultReport {
            count: 40,
            outstanding: 2,
            p50_us: 30,
            p90_us: 60,
            p99_us: 200,
            max_us: 900,
            stages: FaultStages {
                queue: StageLatency { p50_us: 1, p99_us: 2 },
                wire: StageLatency { p50_us: 20, p99_us: 150 },
                service: StageLatency { p50_us: 4, p99_us: 30 },
                install: StageLatency { p50_us: 5, p99_us: 18 },
            },
        }),
        blocktime_us: Some(vec![700, 800]),
        blocktime_others_us: Some(900),
        blackout_us: Some(4_000),
        paused_tsc: Some(vec![1, 2]),
    }
}
