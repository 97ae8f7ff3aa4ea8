//! Processes that hold guests, and what is done to them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use godwit_migration::transport::Address;
use godwit_vmm::api::Client;
use godwit_vmm::api::types::{GuestState, MigrationState, MigrationStatus, Status};

use crate::guest::Verdict;
use crate::passes::Passes;
use crate::{Godwit, Process, Stream, TestDir, until};

/// Where a test plays: the binary, and a folder for sockets and records.
#[derive(Debug)]
pub struct Stage {
    godwit: Godwit,
    folder: TestDir,
}

/// A guest to launch. Words of `cmdline` go to the bare guest.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The size of its memory, as `--memory` takes it.
    pub memory: &'a str,
    /// What its memory is made of, as `--memory-backing` takes it.
    pub backing: &'a str,
    /// The kernel command line.
    pub cmdline: &'a str,
}

/// A small guest that verifies and rewrites its memory for ever.
pub const SMALL: Machine<'static> =
    Machine { cpus: 1, memory: "64M", backing: "anon", cmdline: "workload=dirty" };

/// The kind of socket on which a receiver listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A free port of the loopback.
    Tcp,
    /// A Unix socket.
    Unix,
}

impl Stage {
    /// An empty stage for this binary.
    ///
    /// # Panics
    /// If there is no room for its folder.
    #[track_caller]
    pub fn new(godwit: Godwit) -> Stage {
        Stage { godwit, folder: TestDir::new() }
    }

    /// Its folder. `NAME.api` is the control socket of the process `NAME`, `NAME.state` its
    /// records.
    pub fn folder(&self) -> &TestDir {
        &self.folder
    }

    /// Starts `godwit` with these words.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn command(&self, name: &str, words: &[&str]) -> Process {
        self.godwit.start(name, words)
    }

    /// Launches a guest in a process called `name`, and waits until its control socket answers.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn launch(&self, name: &str, machine: &Machine<'_>) -> Node {
        self.launch_with(name, machine, &[])
    }

    /// The same with more options of `godwit run`.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn launch_with(&self, name: &str, machine: &Machine<'_>, options: &[&str]) -> Node {
        let node = self.start(name, &run_words(machine, options));
        until("the control socket of the guest", || {
            let ready = node.client.status().is_ok_and(|s| s.guest == GuestState::Running);
            assert!(ready || node.lives(), "{}", node.process.failure("did not come up"));
            ready.then_some(())
        });
        node
    }

    /// Launches a guest and waits until its memory is filled.
    ///
    /// # Panics
    /// If it does not get there.
    #[track_caller]
    pub fn launch_filled(&self, name: &str, machine: &Machine<'_>) -> Node {
        let node = self.launch(name, machine);
        node.wait_report("filled");
        node
    }

    /// Starts a receiver called `name`, and waits until it listens.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn receive(&self, name: &str, transport: Transport) -> Node {
        self.receive_with(name, transport, &[])
    }

    /// The same with more options of `godwit receive`.
    ///
    /// # Panics
    /// If it does not listen.
    #[track_caller]
    pub fn receive_with(&self, name: &str, transport: Transport, options: &[&str]) -> Node {
        let address = match transport {
            Transport::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Transport::Unix => format!("unix:{}", self.folder.path(name).display()),
        };
        let words = ["receive", &address].into_iter().chain(options.iter().copied());
        let mut node = self.start(name, &words.map(Into::into).collect::<Vec<_>>());
        let line = node
            .process
            .wait_line(Stream::Stderr, "where it listens", |line| line.contains("listening at "));
        let (_, address) = line.split_once("listening at ").expect("just looked for");
        node.address = Some(address.trim().parse().expect("an address"));
        node
    }

    /// Kills `node`, which is called `name` and listens on a Unix socket, and starts it again with
    /// the same records and the same address.
    ///
    /// # Panics
    /// If it does not listen.
    #[track_caller]
    pub fn restart(&self, name: &str, mut node: Node) -> Node {
        node.process.kill();
        drop(node);
        self.receive(name, Transport::Unix)
    }

    /// Starts `godwit migrate` of the guest in `from`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn migrate(&self, from: &Node, to: &Address) -> Process {
        self.migrate_with(from, to, &[])
    }

    /// The same with more options of `godwit migrate`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn migrate_with(&self, from: &Node, to: &Address, options: &[&str]) -> Process {
        let to = to.to_string();
        self.control("migrate", from, &[&[&*to], options].concat())
    }

    /// Starts one of the commands that take a control socket, for `node`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn control(&self, verb: &str, node: &Node, options: &[&str]) -> Process {
        let mut words: Vec<OsString> = vec![verb.into(), "--api-socket".into()];
        words.push(node.client.path().into());
        words.extend(options.iter().map(Into::into));
        self.godwit.start(verb, &words)
    }

    /// Saves the guest of `node` to the directory `name`, and says where that is.
    ///
    /// # Panics
    /// If it is not saved.
    #[track_caller]
    pub fn snapshot(&self, node: &Node, name: &str, options: &[&str]) -> PathBuf {
        let dir = self.folder.path(name);
        self.snapshot_to(node, &dir, options).wait_success();
        dir
    }

    /// Starts `godwit snapshot` of the guest of `node`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn snapshot_to(&self, node: &Node, dir: &Path, options: &[&str]) -> Process {
        let dir = dir.to_str().expect("a path of ours");
        self.control("snapshot", node, &[&[dir], options].concat())
    }

    /// Brings the guest in `dir` back in a process called `name`, and waits until it may run.
    ///
    /// # Panics
    /// If it does not come to that.
    #[track_caller]
    pub fn restore(&self, name: &str, dir: &Path, options: &[&str]) -> Node {
        let node = self.try_restore(name, dir, options);
        until("a guest that is back", || {
            let back = node.client.status().is_ok_and(|status| {
                let restore = status.restore.as_ref();
                restore.is_some_and(|restore| restore.timeline.restored_us.is_some())
            });
            assert!(back || node.lives(), "{}", node.process.failure("did not bring it back"));
            back.then_some(())
        });
        node
    }

    /// Starts `godwit restore` of the guest in `dir`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn try_restore(&self, name: &str, dir: &Path, options: &[&str]) -> Node {
        let words = [OsString::from("restore"), dir.into()];
        let words: Vec<_> = words.into_iter().chain(options.iter().map(Into::into)).collect();
        self.start(name, &words)
    }

    fn start(&self, name: &str, words: &[OsString]) -> Node {
        let mut words = words.to_vec();
        let paths = ["api", "state"].map(|what| self.folder.path(&format!("{name}.{what}")));
        let options = ["--api-socket", "--state-dir"];
        for (option, path) in options.into_iter().zip(paths) {
            // The last one given counts for neither: a test that chooses its own is left alone.
            if !words.iter().any(|word| *word == *option) {
                words.extend([option.into(), path.into_os_string()]);
            }
        }
        let socket = words.iter().position(|word| *word == *"--api-socket").expect("given above");
        let client = Client::new(&words[socket + 1]).with_timeout(crate::DEADLINE);
        Node { process: self.godwit.start(name, &words), client, address: None }
    }
}

fn run_words(machine: &Machine<'_>, options: &[&str]) -> Vec<OsString> {
    let cpus = machine.cpus.to_string();
    let words = ["run", "--cpus", &cpus, "--memory", machine.memory];
    let words = words.into_iter().chain(["--memory-backing", machine.backing]);
    let words = words.chain(["--cmdline", machine.cmdline]);
    words.chain(options.iter().copied()).map(Into::into).collect()
}

/// A process that holds a guest, or waits for one.
#[derive(Debug)]
pub struct Node {
    /// The process.
    pub process: Process,
    client: Client,
    address: Option<Address>,
}

impl Node {
    /// Its control socket.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where it listens.
    ///
    /// # Panics
    /// If it is not a receiver.
    #[track_caller]
    pub fn address(&self) -> &Address {
        self.address.as_ref().expect("a receiver listens")
    }

    /// Whether its process has not ended.
    pub fn lives(&self) -> bool {
        Path::new("/proc").join(self.process.pid().to_string()).join("exe").exists()
    }

    /// What is true now.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn status(&self) -> Status {
        let failed = |error| panic!("{}", self.process.failure(&format!("has no status: {error}")));
        self.client.status().unwrap_or_else(failed)
    }

    /// Its latest migration.
    ///
    /// # Panics
    /// If it has none, or does not answer.
    #[track_caller]
    pub fn migration(&self) -> MigrationStatus {
        self.status().migration.expect("a migration")
    }

    /// Waits until its status is `wanted`; `what` says what that is.
    ///
    /// # Panics
    /// If it does not come to that.
    #[track_caller]
    pub fn until(&self, what: &str, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        until(what, || Some(self.status()).filter(|status| wanted(status)))
    }

    /// Waits until its migration has come to `state`.
    ///
    /// # Panics
    /// If it does not, or ends in another way.
    #[track_caller]
    pub fn until_migration(&self, state: MigrationState) -> Status {
        self.until(&format!("a migration that is {state:?}"), |status| {
            let Some(migration) = &status.migration else { return false };
            let (now, error) = (migration.state, &migration.error);
            let over = now.is_final() && now != state;
            assert!(!over, "{}", self.process.failure(&format!("is {now:?}: {error:?}")));
            now == state
        })
    }

    /// Waits until the other end of its migration is lost: it keeps all that it has.
    ///
    /// # Panics
    /// If its migration ends, or goes on for too long.
    #[track_caller]
    pub fn until_interrupted(&self) -> Status {
        self.until("a migration without its peer", |status| {
            let Some(migration) = &status.migration else { return false };
            let over = migration.state.is_final();
            assert!(!over, "{}", self.process.failure(&format!("has ended: {migration:?}")));
            migration.state.is_interrupted()
        })
    }

    /// Waits for a report of this kind on its guest's console, from the start.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_report(&self, kind: &str) -> String {
        let begin = format!("godwit-guest: {kind} ");
        self.process.wait_line(Stream::Stdout, &begin, |line| line.starts_with(&begin))
    }

    /// Waits for a line with `text` on its stderr, from the start.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_log(&self, text: &str) -> String {
        self.process.wait_line(Stream::Stderr, text, |line| line.contains(text))
    }

    /// Waits until each of the first `vcpus` vCPUs has begun and ended a verification pass in this
    /// process, from its first line on.
    ///
    /// # Panics
    /// If that does not happen.
    #[track_caller]
    pub fn verdict(&self, vcpus: u64) -> Verdict {
        let mut passes = Passes::new(vcpus, 1);
        self.process.wait_line(Stream::Stdout, "whole passes", |line| passes.take(line));
        passes.verdict()
    }

    /// The same from now on. The first pass is left out, because its lines may have been on their
    /// way: two passes that are printed are some time apart.
    ///
    /// # Panics
    /// If that does not happen.
    #[track_caller]
    pub fn verdict_from_now(&self, vcpus: u64) -> Verdict {
        let mut passes = Passes::new(vcpus, 2);
        let mut lines = self.process.new_lines(Stream::Stdout);
        // A guest that was here before may have left in the middle of a line, and ended another
        // one behind it when it came back.
        lines.wait("the line under way", |_| true);
        lines.wait("whole passes from now on", |line| passes.take(line));
        passes.verdict()
    }
}
