//! Guests on their way, and what is always true of them.

use godwit_migration::transport::Address;
use godwit_migration::wire::Kind;
use godwit_tests::guest::{Report, Verdict};
use godwit_tests::proxy::{Fate, Passing, Proxy};
use godwit_tests::stage::{Machine, Node, Stage, Transport};
use godwit_tests::{Process, Stream};
use godwit_vmm::api::types::{GuestState, MigrationState, MigrationStatus, Status};

/// A guest that has just changed hands.
pub struct Moving {
    pub source: Node,
    pub destination: Node,
    pub link: Proxy,
    pub migrate: Process,
}

impl Moving {
    /// Moves the guest of `source` by post-copy over a link on which `rule` decides.
    #[track_caller]
    pub fn with_rule(
        stage: &Stage,
        source: Node,
        rule: impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static,
    ) -> Moving {
        let destination = stage.receive("destination", Transport::Unix);
        let link = Proxy::start(destination.address(), rule);
        let migrate = stage.migrate(&source, link.address());
        source.until_migration(MigrationState::PostcopyActive);
        destination.until_migration(MigrationState::PostcopyActive);
        Moving { source, destination, link, migrate }
    }

    /// No page comes before the link is released.
    #[track_caller]
    pub fn without_pages(stage: &Stage, source: Node) -> Moving {
        Moving::with_rule(stage, source, |passing| match passing.kind {
            Kind::Pages | Kind::PushEnd => Fate::Hold,
            _ => Fate::Forward,
        })
    }

    /// The guest comes to have all of its pages, and verifies them.
    #[track_caller]
    pub fn completes(mut self) {
        self.migrate.wait_success();
        is_whole(&self.destination, &self.source);
        self.source.process.wait_success();
    }
}

/// A guest that goes to and fro between two receivers.
pub struct ToAndFro<'a> {
    stage: &'a Stage,
    /// The guest is at the first when it has moved an odd number of times.
    pub nodes: [Node; 2],
    arena: Arena,
    moves: usize,
}

/// A guest that has moved, as both sides see it.
pub struct Moved {
    pub source: MigrationStatus,
    pub destination: MigrationStatus,
}

impl ToAndFro<'_> {
    /// Launches a guest and moves it to the first receiver.
    #[track_caller]
    pub fn start<'a>(stage: &'a Stage, machine: &Machine<'_>) -> ToAndFro<'a> {
        ToAndFro::start_with(stage, machine, &[])
    }

    /// The same with more options of `godwit run`.
    #[track_caller]
    pub fn start_with<'a>(
        stage: &'a Stage,
        machine: &Machine<'_>,
        options: &[&str],
    ) -> ToAndFro<'a> {
        let mut source = stage.launch_with("source", machine, options);
        source.wait_report("filled");
        let nodes = [stage.receive("a", Transport::Tcp), stage.receive("b", Transport::Unix)];
        stage.migrate(&source, nodes[0].address()).wait_success();
        source.process.wait_success();
        ToAndFro { stage, nodes, arena: Arena::of(&source), moves: 1 }
    }

    /// Moves it over the link to where it goes that `link` makes, and lets it verify itself there.
    #[track_caller]
    pub fn moves(&mut self, options: &[&str], link: impl FnOnce(&Address) -> Proxy) -> Moved {
        let (here, there) = match self.moves % 2 {
            0 => (&self.nodes[1], &self.nodes[0]),
            _ => (&self.nodes[0], &self.nodes[1]),
        };
        self.moves += 1;
        let link = link(there.address());
        self.stage.migrate_with(here, link.address(), options).wait_success();
        self.arena.is_verified(there, there.verdict_from_now(self.arena.vcpus));
        let (left, came) = (here.status(), there.until_migration(MigrationState::Completed));
        assert!(came.owner.owns && came.guest == GuestState::Running, "{came:?}");
        assert!(!left.owner.owns, "{left:?}");
        assert!(matches!(left.guest, GuestState::Moved { .. }), "{left:?}");
        assert_eq!(came.owner.grant, self.moves as u64);
        let migration = |status: Status| status.migration.expect("a migration");
        let moved = Moved { source: migration(left), destination: migration(came) };
        assert_eq!(moved.destination.pages.remaining, 0);
        moved
    }
}

/// What a guest says of its memory, from its first lines.
pub struct Arena {
    /// Pages that one pass of all vCPUs verifies.
    pub pages: u64,
    /// vCPUs that make passes.
    pub vcpus: u64,
}

impl Arena {
    /// The arena of the guest that was launched by `first`.
    #[track_caller]
    pub fn of(first: &Node) -> Arena {
        let start = Report::parse(&first.wait_report("start")).expect("a report");
        let (arena, owned) = (start.number("arena_pages"), start.number("owned_pages"));
        let vcpus = start.number("vcpus");
        match start.get("workload").expect("a workload") {
            "halt" => Arena { pages: arena, vcpus: 1 },
            "smp" => Arena { pages: owned * vcpus + (arena - owned), vcpus },
            "clock" => Arena { pages: 0, vcpus },
            _ => Arena { pages: arena, vcpus },
        }
    }

    /// Whether this is the verdict on all of it.
    #[track_caller]
    pub fn is_verified(&self, node: &Node, verdict: Verdict) {
        assert_eq!(verdict.corrupt, 0, "{}", node.process.failure("has corrupt pages"));
        assert!(verdict.verified >= self.pages, "{verdict:?} of {} pages", self.pages);
    }
}

/// The guest that came from `source`, which had launched it, has all of its pages at
/// `destination`, and says so.
#[track_caller]
pub fn is_whole(destination: &Node, source: &Node) {
    let arena = Arena::of(source);
    arena.is_verified(destination, destination.verdict(arena.vcpus));
    let status = destination.until_migration(MigrationState::Completed);
    assert!(status.owner.owns && status.guest == GuestState::Running, "{status:?}");
    assert_eq!(status.migration.expect("a migration").pages.remaining, 0);
}

/// The guest that `source` launched is there after all, owned and verified.
#[track_caller]
pub fn runs_on(source: &Node) {
    let status = source.until("a guest that runs", |status| status.guest == GuestState::Running);
    assert!(status.owner.owns, "{status:?}");
    let arena = Arena::of(source);
    arena.is_verified(source, source.verdict_from_now(arena.vcpus));
}

/// The destination is lost: the source keeps all pages and does not run the guest, and whoever
/// waits for the migration is told.
#[track_caller]
pub fn is_kept(source: &Node, migrate: &Process) {
    let status = source.until_interrupted();
    assert_eq!(status.guest, GuestState::Paused);
    assert!(!status.owner.owns, "{status:?}");
    let record = status.owner.record.expect("a record of the grant");
    assert!(record.starts_with("granted 1 "), "{record}");
    let migration = status.migration.expect("a migration");
    assert_eq!(migration.pages.total, status.vm.expect("a machine").memory_bytes / 4096);
    assert!(migration.error.is_some());
    let told = "lost after the switchover";
    migrate.wait_line(Stream::Stderr, told, |line| line.contains(told));
}

/// `migrate` says that it failed, and that the guest runs at the source.
#[track_caller]
pub fn fails(mut migrate: Process) {
    migrate.wait_failure();
    let stderr = migrate.text(Stream::Stderr);
    assert!(stderr.contains("failed: "), "{}", migrate.failure("gives no reason"));
    assert!(stderr.contains("running here"), "{}", migrate.failure("does not say where it runs"));
}

/// `command` fails, and says why on stderr.
#[track_caller]
pub fn fails_with(mut command: Process, why: &str) {
    command.wait_failure();
    let stderr = command.text(Stream::Stderr);
    assert!(stderr.contains(why), "{}", command.failure(&format!("does not say {why:?}")));
}

/// The command is refused by `node`, and says why on stderr.
#[track_caller]
pub fn is_refused(stage: &Stage, verb: &str, node: &Node, why: &str) {
    fails_with(stage.control(verb, node, &[]), why);
}
