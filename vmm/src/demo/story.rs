//! What happens in a demo, from the first process to the guest's verdict.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use godwit_migration::transport::Address;
use godwit_uffd::page::{PageIndex, PageSize};

use super::Side;
use super::consoles::Consoles;
use super::error::{DemoError, last_words};
use super::link::{Corrupted, Corrupter, Direction, Options, Proxy, Tap};
use super::place::Place;
use super::process::{Event, Process, Stream, Text};
use super::show::Show;
use super::signals;
use super::verdict::Witness;
use crate::api::Client;
use crate::api::types::{
    Compression, MigrateRequest, MigrationMode, MigrationState, MigrationStatus, Status,
};
use crate::cli::Demo;

/// What was found out, as far as it went.
#[derive(Debug)]
pub struct Findings {
    /// The guest's reports.
    pub witness: Witness,
    /// The last status of the source.
    pub source: Option<Status>,
    /// The last status of the destination, up to the end of the migration.
    pub destination: Option<Status>,
    /// The page that was changed on the way.
    pub corrupted: Corrupted,
}

impl Findings {
    /// The TSC of each vCPU when the source stopped it; empty while that is unknown.
    pub fn paused(&self) -> &[u64] {
        let migration = self.source.as_ref().and_then(|status| status.migration.as_ref());
        migration.and_then(|migration| migration.paused_tsc.as_deref()).unwrap_or(&[])
    }

    /// TSC cycles of the guest in a millisecond.
    pub fn tsc_khz(&self) -> Option<u32> {
        let status = self.destination.as_ref().or(self.source.as_ref())?;
        status.vm.map(|vm| vm.tsc_khz)
    }
}

/// Events that wait for the main thread at most; then the processes wait, as for any slow reader.
const EVENTS_MAX: usize = 1024;
/// How often the processes are asked, and at most waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long nothing may happen. The guest says something every second.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long the guest's line about the switchover is waited for when all else is known.
const GAPS_WITHIN: Duration = Duration::from_secs(20);
/// How long a process that ends may take.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Lines of each process's log that are kept.
const LOG_LINES: usize = 20;
/// The guest's image and bookkeeping lie below this page, or shortly above.
const ARENA_FIRST: u32 = 4096;

/// Runs the demo. What it found is in `findings` however it ends.
///
/// # Errors
/// Why there is no verdict.
pub fn run(args: &Demo, show: &mut Show, findings: &mut Findings) -> Result<(), DemoError> {
    let mut story = Story::start(args, show, findings)?;
    story.wait_until_warm()?;
    story.migrate()?;
    story.wait_for_verdict()?;
    story.wait_for_gaps()?;
    story.end();
    Ok(())
}

struct Story<'a> {
    args: &'a Demo,
    show: &'a mut Show,
    findings: &'a mut Findings,
    events: Receiver<Event>,
    consoles: Consoles,
    source: Party,
    destination: Party,
    listening: Option<Address>,
    heard: Instant,
    // Dropped last: the processes have ended then.
    _place: Place,
}

/// One of the two processes.
struct Party {
    process: Process,
    client: Client,
    log: VecDeque<String>,
    /// Streams that have ended.
    ended_streams: u8,
    /// It has done its part.
    may_end: bool,
}

impl Party {
    fn start(
        side: Side,
        place: &Place,
        mut arguments: Vec<OsString>,
        events: &SyncSender<Event>,
    ) -> Result<Party, DemoError> {
        let socket = place.path(&format!("{side}.sock"));
        arguments.extend(["--api-socket".into(), socket.clone().into()]);
        arguments.extend(["--state-dir".into(), place.path(&side.to_string()).into()]);
        let process = Process::start(side, arguments, events)
            .map_err(|source| DemoError::Prepare { step: "start a process", source })?;
        let client = Client::new(socket).with_timeout(Duration::from_secs(10));
        Ok(Party { process, client, log: VecDeque::new(), ended_streams: 0, may_end: false })
    }

    fn log(&mut self, line: String) {
        if self.log.len() >= LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }
}

impl Story<'_> {
    fn start<'a>(
        args: &'a Demo,
        show: &'a mut Show,
        findings: &'a mut Findings,
    ) -> Result<Story<'a>, DemoError> {
        let failed = |step| move |source| DemoError::Prepare { step, source };
        let (sender, events) = sync_channel(EVENTS_MAX);
        signals::watch(sender.clone()).map_err(failed("watch for signals"))?;
        let place = Place::new().map_err(failed("make a folder for sockets and records"))?;
        let mib = args.memory >> 20;
        show.step(&format!(
            "starting a source with a guest ({} vCPUs, {mib} MiB, {}) and a destination",
            args.cpus,
            args.workload.name(),
        ));
        show.wait("the processes start");
        let receive = vec!["receive".into(), "tcp:127.0.0.1:0".into()];
        let destination = Party::start(Side::Destination, &place, receive, &sender)?;
        let source = Party::start(Side::Source, &place, run_arguments(args), &sender)?;
        Ok(Story {
            args,
            show,
            findings,
            events,
            consoles: Consoles::default(),
            source,
            destination,
            listening: None,
            heard: Instant::now(),
            _place: place,
        })
    }

    fn party(&mut self, side: Side) -> &mut Party {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// Lets time pass while `waiting`: takes what the processes say, and notices when one is gone,
    /// when nothing happens any more, and when the user has had enough.
    fn step(&mut self, waiting: &'static str) -> Result<(), DemoError> {
        self.take_events(LOOK_EVERY)?;
        for side in [Side::Source, Side::Destination] {
            self.check_process(side)?;
        }
        self.check_guest()?;
        if let Some(error) = self.show.take_broken() {
            return Err(DemoError::Output(error));
        }
        if self.heard.elapsed() > SILENCE_MAX {
            return Err(DemoError::Silent { seconds: SILENCE_MAX.as_secs(), waiting });
        }
        self.show.tick();
        Ok(())
    }

    /// Takes the events that come within `limit`.
    fn take_events(&mut self, limit: Duration) -> Result<(), DemoError> {
        let deadline = Instant::now() + limit;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.events.recv_timeout(left) {
                Ok(Event::Signal(signal)) => return Err(DemoError::Interrupted { signal }),
                Ok(Event::Output(side, Stream::Stdout, text)) => self.take_console(side, &text),
                Ok(Event::Output(side, Stream::Stderr, text)) => self.take_log(side, text),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn take_console(&mut self, side: Side, text: &Text) {
        match text {
            Text::Line(line) => self.show.console(side, line),
            Text::End(tail) if !tail.is_empty() => self.show.console(side, &format!("{tail}...")),
            Text::End(_) => {}
        }
        self.heard = Instant::now();
        if let Text::End(_) = text {
            self.party(side).ended_streams += 1;
        }
        if let Some((side, line)) = self.consoles.take(side, text) {
            self.findings.witness.see(side, &line);
        }
    }

    fn take_log(&mut self, side: Side, text: Text) {
        match text {
            Text::Line(line) => {
                if side == Side::Destination && self.listening.is_none() {
                    let address = line.split_once("listening at ").map(|(_, address)| address);
                    self.listening = address.and_then(|address| address.trim().parse().ok());
                }
                self.party(side).log(line);
            }
            Text::End(line) => {
                self.party(side).ended_streams += 1;
                if !line.is_empty() {
                    self.party(side).log(line);
                }
            }
        }
    }

    fn check_process(&mut self, side: Side) -> Result<(), DemoError> {
        let party = self.party(side);
        if party.may_end {
            return Ok(());
        }
        let failed = |source| DemoError::Prepare { step: "watch a process", source };
        let Some(status) = party.process.ended().map_err(failed)? else { return Ok(()) };
        let deadline = Instant::now() + END_WITHIN;
        while self.party(side).ended_streams < 2 && Instant::now() < deadline {
            self.take_events(Duration::from_millis(10))?;
        }
        self.check_guest()?;
        let words = last_words(self.party(side).log.iter());
        Err(DemoError::Ended { side, status, words })
    }

    /// A guest that gives up says why.
    fn check_guest(&self) -> Result<(), DemoError> {
        let line = self.findings.witness.error();
        line.map_or(Ok(()), |line| Err(DemoError::Guest { line: line.to_owned() }))
    }

    /// Asks a process how it is. One that cannot be asked may have ended, which says more.
    fn status(&mut self, side: Side) -> Result<Status, DemoError> {
        let party = self.party(side);
        match party.client.status() {
            Ok(status) => Ok(status),
            Err(source) => {
                if party.process.ends_within(Duration::from_secs(1)) {
                    self.check_process(side)?;
                }
                Err(DemoError::Client { side, source })
            }
        }
    }

    fn wait_until_warm(&mut self) -> Result<(), DemoError> {
        while self.listening.is_none() {
            self.step("the destination started")?;
        }
        self.show.wait("the guest writes all its memory");
        while !self.findings.witness.is_filled() {
            self.step("the guest wrote its memory")?;
        }
        self.show.step("the guest has written all its memory and now verifies it");
        self.show.wait("the guest verifies its memory at the source");
        while !self.findings.witness.is_warm() {
            self.step("the guest verified its memory at the source")?;
        }
        match self.findings.witness.complaints().first() {
            Some(complaint) => Err(DemoError::CorruptBefore { complaint: complaint.clone() }),
            None => Ok(()),
        }
    }

    fn migrate(&mut self) -> Result<(), DemoError> {
        let proxy = self.start_proxy()?;
        let direct = self.listening.clone().expect("waited for before");
        let address = proxy.as_ref().map_or(direct, |proxy| proxy.address().clone());
        self.show.step(&match self.args.link {
            None => format!("migrating to {address} while the guest runs"),
            Some(link) => format!("migrating to {address} while the guest runs, over {link}"),
        });
        let mut request = MigrateRequest::new(address, MigrationMode::Postcopy);
        if self.args.corrupt_page {
            // What is packed has no bytes of a page that could be changed.
            request.compression = Compression::None;
        }
        let asked = self.source.client.migrate(&request);
        asked.map_err(|source| DemoError::Client { side: Side::Source, source })?;
        self.drain()?;
        if self.args.corrupt_page {
            let page = self.findings.corrupted.page().ok_or(DemoError::NothingToCorrupt)?;
            self.show.step(&format!("page {page} was changed on the way, as no checksum can see"));
        }
        Ok(())
    }

    /// The proxy between the two, if the link or a page on it is to be bad.
    fn start_proxy(&self) -> Result<Option<Proxy>, DemoError> {
        let args = self.args;
        if args.link.is_none() && !args.corrupt_page {
            return Ok(None);
        }
        let mut options = Options { link: args.link, taps: None };
        if args.corrupt_page {
            let pages = PageSize::BASE.pages_in(args.memory).unwrap_or(u32::MAX);
            let first = PageIndex(ARENA_FIRST + pages.saturating_sub(ARENA_FIRST) / 2);
            let corrupted = self.findings.corrupted.clone();
            options.taps = Some(Box::new(move |_, direction| {
                let tap = || Box::new(Corrupter::new(first, pages, corrupted.clone()));
                (direction == Direction::ToDestination).then(|| tap() as Box<dyn Tap>)
            }));
        }
        let listen = "tcp:127.0.0.1:0".parse().expect("a constant address");
        let destination = self.listening.clone().expect("waited for before");
        let proxy = Proxy::start(&listen, destination, options);
        proxy.map(Some).map_err(|source| DemoError::Prepare { step: "start the link", source })
    }

    /// Watches the migration until both sides know how it ended.
    fn drain(&mut self) -> Result<(), DemoError> {
        let total = self.args.memory;
        self.show.begin_drain(total);
        let (mut source_done, mut left, mut switched) = (false, u64::MAX, false);
        loop {
            if !source_done {
                let status = self.status(Side::Source)?;
                source_done = outcome(&status)?;
                self.findings.source = Some(status);
                // It ends once it has told.
                self.source.may_end = source_done;
            }
            let status = self.status(Side::Destination)?;
            let done = source_done && outcome(&status)?;
            if let Some(migration) = &status.migration {
                let running = migration.timeline.first_instruction_us.is_some();
                if running && !std::mem::replace(&mut switched, true) {
                    self.show.step("switchover: the guest runs at the destination");
                }
                if running && migration.pages.remaining != left {
                    left = migration.pages.remaining;
                    self.heard = Instant::now();
                    let left = left * PageSize::BASE.bytes() as u64;
                    self.show.drained(total.saturating_sub(left), total);
                }
            }
            self.findings.destination = Some(status);
            if done {
                return Ok(());
            }
            self.step("the memory was moved")?;
        }
    }

    fn wait_for_verdict(&mut self) -> Result<(), DemoError> {
        self.show.step("all memory is at the destination; waiting for the guest's verdict on it");
        self.show.wait("the guest verifies all its memory at the destination");
        while !self.findings.witness.all_verified(self.findings.paused()) {
            self.step("the guest verified its memory at the destination")?;
        }
        Ok(())
    }

    /// The guest prints its gaps once a second; those of the switchover may be still to come.
    fn wait_for_gaps(&mut self) -> Result<(), DemoError> {
        self.show.wait("the guest tells its largest gaps");
        let deadline = Instant::now() + GAPS_WITHIN;
        while Instant::now() < deadline && !super::report::gaps_are_known(self.findings) {
            self.step("the guest told its largest gaps")?;
        }
        Ok(())
    }

    /// Ends the guest and the destination in order; what does not end is killed.
    fn end(&mut self) {
        self.show.clear();
        self.destination.may_end = true;
        if self.destination.client.shutdown(true).is_ok() {
            self.destination.process.ends_within(END_WITHIN);
        }
        self.source.process.ends_within(END_WITHIN);
    }
}

/// Whether a side is done with the migration.
fn outcome(status: &Status) -> Result<bool, DemoError> {
    let Some(migration) = &status.migration else { return Ok(false) };
    match migration.state {
        MigrationState::Completed => Ok(true),
        MigrationState::Failed | MigrationState::PostcopyPaused => {
            Err(DemoError::Migration { reason: reason(migration) })
        }
        _ => Ok(false),
    }
}

fn reason(migration: &MigrationStatus) -> String {
    let reason = migration.error.as_ref().map(|problem| problem.message.clone());
    reason.unwrap_or_else(|| "it gave no reason".to_owned())
}

fn run_arguments(args: &Demo) -> Vec<OsString> {
    let pairs = [
        ("--cpus", args.cpus.to_string()),
        ("--memory", args.memory.to_string()),
        ("--memory-backing", args.memory_backing.name().to_owned()),
        ("--cmdline", args.workload.command_line()),
    ];
    let mut arguments = vec![OsString::from("run")];
    arguments.extend(pairs.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
    arguments
}
