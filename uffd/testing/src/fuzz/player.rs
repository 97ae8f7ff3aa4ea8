//! Operations on a machine of the model, and the end of the machine in order. After each
//! operation all who wait are accounted for.

use godwit_uffd::abi::{API_VERSION, Call, Errno, RawMessage};
use godwit_uffd::model::{
    Advice, Categories, ContextId, Door, FileId, FileKind, Machine, MapRequest, Material,
    Migration, Observed, Outcome, Parked, Placement, Polled, Process, Profile, Progress, Remap,
    Scan, Setup, Thread,
};

use super::bytes::Bytes;
use super::check::{self, Asked};
use super::operation::{Memory, Operation};

/// What a thread sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A page.
    Page,
    /// That its event is read.
    Event,
}

/// A thread that sleeps, or was woken and was not let run yet.
struct Sleeper {
    process: Process,
    cause: Cause,
    asked: Asked,
    parked: Parked,
}

/// A machine in the middle of a case.
struct Player {
    machine: Machine,
    /// Living processes, and the thread that makes their calls.
    processes: Vec<(Process, Thread)>,
    /// Open userfaultfds.
    contexts: Vec<ContextId>,
    sleepers: Vec<Sleeper>,
    files: [FileId; 5],
    /// Pages that are being migrated.
    migrations: Vec<Migration>,
    /// There was a migration, so a sleeper may be in no queue.
    migrated: bool,
    done: History,
}

/// The operations so far, which are printed if one of them panics.
#[derive(Default)]
struct History(Vec<Operation>);

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter().for_each(|operation| eprintln!("    {operation:x?},"));
        }
    }
}

/// Bad address.
const EFAULT: Errno = Errno(14);
const PROCESSES_MAX: usize = 4;
const CONTEXTS_MAX: usize = 8;
const SLEEPERS_MAX: usize = 32;
const OPERATIONS_MAX: usize = 400;
/// Resumptions after which a case that goes on by itself is held to have no end.
const RESUMPTIONS_MAX: usize = 10_000;
/// Few enough that the pool runs out.
const HUGETLB_PAGES: u64 = 6;

/// Plays a case to its end.
pub fn play(bytes: &mut Bytes<'_>) {
    let profile = match bytes.byte() {
        Some(byte) if byte % 2 == 0 => Profile::V6_18,
        Some(_) => Profile::NEWEST,
        None => return,
    };
    let mut player = Player::new(profile);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = Operation::next(bytes) else { break };
        player.done.0.push(operation);
        player.step(operation);
        player.account();
    }
    player.end();
}

impl Player {
    fn new(profile: Profile) -> Player {
        let unprivileged_userfaultfd = true;
        let hugetlb_pages = HUGETLB_PAGES;
        let machine = Machine::new(Setup { profile, hugetlb_pages, unprivileged_userfaultfd });
        let kinds = [
            (FileKind::Shmem, 8),
            (FileKind::Shmem, 8),
            (FileKind::Hugetlb, 1024),
            (FileKind::Regular, 8),
            (FileKind::GuestMemory, 8),
        ];
        let files = kinds.map(|(kind, pages)| machine.make_file(kind, pages));
        let root = machine.spawn(true);
        let caller = machine.thread(root);
        Player {
            machine,
            processes: vec![(root, caller)],
            contexts: Vec::new(),
            sleepers: Vec::new(),
            files,
            migrations: Vec::new(),
            migrated: false,
            done: History::default(),
        }
    }

    fn process(&self, number: u8) -> (Process, Thread) {
        self.processes[usize::from(number) % self.processes.len()]
    }

    fn context(&self, number: u8) -> Option<ContextId> {
        let place = usize::from(number).checked_rem(self.contexts.len())?;
        Some(self.contexts[place])
    }

    fn file(&self, number: u8) -> FileId {
        self.files[usize::from(number) % self.files.len()]
    }

    fn step(&mut self, operation: Operation) {
        match operation {
            Operation::Resume { .. }
            | Operation::Settle
            | Operation::Interrupt { .. }
            | Operation::Cancel { .. }
            | Operation::Kill { .. } => self.step_sleeper(operation),
            Operation::FileStore { file, page } => {
                // The pool of huge pages may be empty.
                let _ = self.machine.file_store(self.file(file), page, &[1]);
            }
            Operation::FilePunch { file, page, count } => {
                self.machine.file_punch(self.file(file), page, count);
            }
            Operation::FileTruncate { file, pages } => {
                self.machine.file_truncate(self.file(file), pages);
            }
            Operation::Pin { .. }
            | Operation::BeginMigration { .. }
            | Operation::EndMigration { .. } => self.step_page(operation),
            Operation::Open { .. }
            | Operation::Close { .. }
            | Operation::Read { .. }
            | Operation::ReadIntoNowhere { .. } => self.step_descriptor(operation),
            Operation::Exit { process } => self.exit(process),
            // All else may sleep.
            _ if self.sleepers.len() < SLEEPERS_MAX => self.start(operation),
            _ => {}
        }
    }

    fn start(&mut self, operation: Operation) {
        match operation {
            Operation::Call { process, context, call, placement } => {
                let (process, caller) = self.process(process);
                let Some(context) = self.context(context) else { return };
                let progress = self.machine.call(caller, context, call, placement);
                self.note(process, Cause::Page, Asked::Call(call), progress);
            }
            Operation::CopyBytes { process, context, dst, pages, mode } => {
                let (_, caller) = self.process(process);
                let Some(context) = self.context(context) else { return };
                let bytes = vec![7; usize::from(pages) * 4096];
                let answer = self.machine.copy_bytes(caller, context, dst, &bytes, mode);
                let call = Call::Copy { dst, src: 0, len: bytes.len() as u64, mode };
                check::answer(call, answer);
            }
            Operation::Touch { process, at, touch, guest } => {
                let (process, _) = self.process(process);
                let thread = self.machine.thread(process);
                let progress = if guest {
                    self.machine.guest_access(thread, at, touch)
                } else {
                    self.machine.access(thread, at, touch)
                };
                self.note(process, Cause::Page, Asked::Touch { process, at, touch }, progress);
            }
            Operation::Fork { process } if self.processes.len() < PROCESSES_MAX => {
                let (process, caller) = self.process(process);
                let progress = self.machine.fork(caller);
                self.note(process, Cause::Event, Asked::Fork, progress);
            }
            _ => self.start_on_map(operation),
        }
    }

    fn start_on_map(&mut self, operation: Operation) {
        let (number, cause) = match operation {
            Operation::Map { process, .. }
            | Operation::Unmap { process, .. }
            | Operation::Remap { process, .. } => (process, Cause::Event),
            Operation::Lock { process, .. } => (process, Cause::Page),
            Operation::Advise { process, advice, .. } => match advice {
                Advice::PopulateRead | Advice::PopulateWrite => (process, Cause::Page),
                _ => (process, Cause::Event),
            },
            _ => return self.act_on_map(operation),
        };
        let (process, caller) = self.process(number);
        let machine = &self.machine;
        let progress = match operation {
            Operation::Map { at, len, memory, access, .. } => {
                let material = self.material(memory);
                machine.map(caller, MapRequest { len, material, access, at: Some(at) })
            }
            Operation::Unmap { at, len, .. } => machine.unmap(caller, at, len),
            Operation::Remap { from, len, new_len, to, dont_unmap, .. } => {
                machine.remap(caller, Remap { from, len, new_len, to, dont_unmap })
            }
            Operation::Lock { at, len, locked, .. } => machine.lock(caller, at, len, locked),
            Operation::Advise { at, len, advice, .. } => machine.advise(caller, at, len, advice),
            _ => unreachable!("sorted out above"),
        };
        self.note(process, cause, Asked::Memory, progress);
    }

    /// What never sleeps.
    fn act_on_map(&mut self, operation: Operation) {
        match operation {
            Operation::Protect { process, at, len, access } => {
                let (process, _) = self.process(process);
                // Whether it is mapped does not matter.
                let _ = self.machine.protect(process, at, len, access);
            }
            Operation::Scan { process, at, len, flags, mask } => {
                let (process, _) = self.process(process);
                let scan = Scan {
                    start: at,
                    end: at.wrapping_add(len),
                    protect: flags & 1 != 0,
                    check_async: flags & 2 != 0,
                    mask: Categories::from_bits_retain(mask),
                };
                check::regions(&scan, self.machine.scan(process, &scan));
            }
            _ => {}
        }
    }

    fn material(&self, memory: Memory) -> Material {
        match memory {
            Memory::Anonymous { huge } => Material::Anonymous { huge },
            Memory::SharedAnonymous => Material::SharedAnonymous,
            Memory::Hugetlb => Material::Hugetlb,
            Memory::Droppable => Material::Droppable,
            Memory::Special => Material::Special,
            Memory::File { file, page, shared, read_only } => {
                Material::File { file: self.file(file), page, shared, read_only }
            }
        }
    }

    fn step_descriptor(&mut self, operation: Operation) {
        match operation {
            Operation::Open { process, features, flags } => {
                if self.contexts.len() >= CONTEXTS_MAX {
                    return;
                }
                let (_, caller) = self.process(process);
                let Ok(context) = self.machine.open(caller, Door::Call, flags) else { return };
                self.machine.set_nonblocking(context, true);
                self.contexts.push(context);
                let call = Call::Api { api: API_VERSION, features };
                match self.machine.call(caller, context, call, Placement::Ordinary) {
                    Progress::Done(outcome) => {
                        check::outcome(&self.machine, Asked::Call(call), &outcome)
                    }
                    Progress::Parked(parked) => panic!("a handshake sleeps: {parked:?}"),
                }
            }
            Operation::Close { context } => {
                let Some(context) = self.context(context) else { return };
                self.contexts.retain(|one| *one != context);
                self.machine.close(context);
            }
            Operation::Read { context, bytes } => {
                let Some(context) = self.context(context) else { return };
                self.read(context, usize::from(bytes));
            }
            Operation::ReadIntoNowhere { context } => {
                let Some(context) = self.context(context) else { return };
                // The descriptor of a child would be lost with its message.
                if self.machine.fd_info(context).pending > 0 {
                    assert_eq!(self.machine.read_into_nowhere(context), Err(EFAULT));
                }
            }
            _ => unreachable!("sorted out above"),
        }
    }

    /// Reads; false if there was nothing.
    fn read(&mut self, context: ContextId, bytes: usize) -> bool {
        let Ok(messages) = self.machine.read(context, bytes) else { return false };
        let exact = self.machine.fd_info(context).features;
        check::read(&messages, bytes, exact);
        for message in messages {
            if let RawMessage::Fork { fd } = message {
                self.contexts.push(ContextId(fd));
            }
        }
        true
    }

    fn step_page(&mut self, operation: Operation) {
        match operation {
            Operation::Pin { process, at } => {
                let (process, _) = self.process(process);
                if matches!(self.machine.observe(process, at), Observed::Anonymous { .. }) {
                    self.machine.pin(process, at);
                }
            }
            Operation::BeginMigration { process, at } => {
                let (process, _) = self.process(process);
                let small = Observed::Anonymous { huge: false, exclusive: true, protected: false };
                if self.machine.observe(process, at) == small {
                    self.migrations.push(self.machine.begin_migration(process, at));
                    self.migrated = true;
                }
            }
            Operation::EndMigration { which } => {
                if let Some(place) = usize::from(which).checked_rem(self.migrations.len()) {
                    self.machine.end_migration(&self.migrations.swap_remove(place));
                }
            }
            _ => unreachable!("sorted out above"),
        }
    }

    fn step_sleeper(&mut self, operation: Operation) {
        let place = |number: u8| usize::from(number).checked_rem(self.sleepers.len());
        match operation {
            Operation::Settle => self.settle(),
            Operation::Resume { sleeper } => {
                if let Some(place) = place(sleeper) {
                    self.go_on(place, Parked::resume);
                }
            }
            Operation::Interrupt { sleeper } => {
                if let Some(place) = place(sleeper) {
                    self.go_on(place, Parked::interrupt);
                }
            }
            Operation::Cancel { sleeper } => {
                if let Some(place) = place(sleeper) {
                    self.cancel(place);
                }
            }
            Operation::Kill { sleeper } => {
                if let Some(place) = place(sleeper) {
                    self.machine.kill(Thread(self.sleepers[place].parked.thread_id()));
                }
            }
            _ => unreachable!("sorted out above"),
        }
    }

    fn go_on(&mut self, place: usize, how: impl FnOnce(Parked) -> Progress) {
        let Sleeper { process, cause, asked, parked } = self.sleepers.remove(place);
        match how(parked) {
            Progress::Parked(parked) => {
                self.sleepers.insert(place, Sleeper { process, cause, asked, parked });
            }
            Progress::Done(outcome) => self.over(asked, &outcome),
        }
    }

    fn note(&mut self, process: Process, cause: Cause, asked: Asked, progress: Progress) {
        match progress {
            Progress::Done(outcome) => self.over(asked, &outcome),
            Progress::Parked(parked) => {
                self.sleepers.push(Sleeper { process, cause, asked, parked });
                let fresh = self.machine.thread(process);
                let own = self.processes.iter_mut().find(|(one, _)| *one == process);
                own.expect("it lives").1 = fresh;
            }
        }
    }

    fn over(&mut self, asked: Asked, outcome: &Outcome) {
        check::outcome(&self.machine, asked, outcome);
        if let Outcome::Forked(child) = *outcome {
            self.processes.push((child, self.machine.thread(child)));
        }
    }

    /// Resumes all who were woken, oldest first, until the rest sleeps.
    fn settle(&mut self) {
        for _ in 0..RESUMPTIONS_MAX {
            let woken = self.sleepers.iter().position(|one| one.parked.is_woken());
            let Some(place) = woken else { return };
            self.go_on(place, Parked::resume);
        }
        panic!("threads wake each other without an end");
    }

    /// Ends a process, unless it is the last. What its threads are in the middle of ends first.
    fn exit(&mut self, number: u8) {
        if self.processes.len() == 1 {
            return;
        }
        let (process, _) = self.process(number);
        self.processes.retain(|(one, _)| *one != process);
        for place in (0..self.sleepers.len()).rev() {
            if self.sleepers[place].process == process {
                self.cancel(place);
            }
        }
        self.machine.exit(process);
    }

    fn cancel(&mut self, place: usize) {
        if let Some(child) = self.sleepers.remove(place).parked.cancel() {
            self.machine.exit(child);
        }
    }

    /// Whoever waits for a page is in a queue, and nobody else is; whoever waits for an event can
    /// be woken by a read.
    fn account(&self) {
        let mut queued = 0;
        for context in &self.contexts {
            let info = self.machine.fd_info(*context);
            assert!(info.pending <= info.total, "{info:?}");
            queued += info.total;
        }
        let asleep = |cause| {
            let all = self.sleepers.iter();
            all.filter(|one| one.cause == cause && !one.parked.is_woken()).count() as u64
        };
        let pages = asleep(Cause::Page);
        let accounted = if self.migrated { queued <= pages } else { queued == pages };
        assert!(accounted, "{pages} wait for pages, and {queued} are in queues");
        if asleep(Cause::Event) > 0 {
            let readable = |context: &ContextId| self.machine.poll(*context) == Polled::In;
            assert!(self.contexts.iter().any(readable), "an event that nobody can read");
        }
    }

    /// Ends all in order: nobody may be left.
    fn end(mut self) {
        for migration in std::mem::take(&mut self.migrations) {
            self.machine.end_migration(&migration);
        }
        self.settle();
        for _ in 0..RESUMPTIONS_MAX {
            let contexts = self.contexts.clone();
            let read = contexts.into_iter().filter(|context| self.read(*context, 4096)).count();
            self.settle();
            self.account();
            if read == 0 {
                break;
            }
        }
        let events = self.sleepers.iter().filter(|one| one.cause == Cause::Event).count();
        assert_eq!(events, 0, "all messages are read, and threads wait for their events");
        self.look();
        for context in std::mem::take(&mut self.contexts) {
            self.machine.close(context);
        }
        self.settle();
        assert_eq!(self.sleepers.len(), 0, "all is closed, and threads wait");
        for (process, _) in std::mem::take(&mut self.processes) {
            self.machine.exit(process);
        }
        self.files.iter().for_each(|file| self.machine.close_file(*file));
        assert_eq!(self.machine.free_hugetlb_pages(), HUGETLB_PAGES, "huge pages were lost");
    }

    /// Looks at all memory of the areas.
    fn look(&self) {
        for (process, _) in &self.processes {
            for at in check::places() {
                check::page(&self.machine, *process, at);
            }
        }
    }
}
