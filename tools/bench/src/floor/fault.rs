//! `floor fault`: a guest's faults served over TCP by a loop with no protocol.
//!
//! A guest runs, is stopped and saved, and goes on in a second VM whose memory is empty. One thread
//! reads a fault, asks the page server, waits for the page and installs it: nothing is decided,
//! nothing is remembered, nothing is in flight besides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use godwit_uffd::guest::{Filled, GuestUffd};
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageRun, PageSize};
use godwit_uffd::{Event, Fault, Wake};
use godwit_vmm::memory::Backing;
use godwit_vmm::state::Section;
use godwit_vmm::vm::{Vm, VmConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::Error;
use crate::floor::load::BusyThreads;
use crate::floor::mapping;
use crate::floor::receive::receive;
use crate::floor::server::{Role, Server};
use crate::floor::tsc;
use crate::guest::{Latencies, Moments, Transcript};
use crate::workload::GuestArgs;

/// Serves a guest's faults over TCP without any protocol.
#[derive(Args, Clone)]
pub struct FaultArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Bring all other pages in meanwhile over a second connection, as a move does. Without it,
    /// faults are served alone for a while, and the rest is brought in when all is measured.
    #[arg(long)]
    pub bulk: bool,
    /// Without `--bulk`: how long faults are measured.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    /// The number of threads that spin meanwhile.
    #[arg(long, default_value_t = 0)]
    pub busy: u8,
}

/// What faults without a protocol cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaultFigures {
    /// What the guest saw.
    pub faults: Latencies,
    /// Faults served until the end of the measurement.
    pub served: u64,
    /// From the start of the guest to the last page, or to the end of the measurement.
    pub total_us: f64,
    /// With `bulk`: all of memory by that time.
    pub bytes_per_s: Option<f64>,
}

/// Measures once.
///
/// # Errors
///
/// [`Error`] if KVM, userfaultfd or sockets are not to be had, or the guest has lost a byte.
pub fn measure(args: &FaultArgs) -> Result<FaultFigures, Error> {
    let transcript = Transcript::default();
    let stopped = StoppedGuest::prepare(&args.guest, &transcript)?;
    let config = args.guest.vm_config(Backing::Anon);
    let vm = Vm::create(&config, Box::new(transcript.console()))?;
    let served = FaultLoop {
        memory: mapping::register(vm.memory())?,
        server: stopped.server.connect(Role::OnDemand)?,
        count: AtomicU64::new(0),
        stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::system("making an eventfd"))?,
    };
    thread::scope(|scope| {
        let serving = scope.spawn(|| served.run());
        let figures = run(args, &vm, &served, &stopped, &transcript);
        served.stop();
        serving.join().expect("the fault loop does not panic")?;
        figures
    })
}

/// Runs the guest on its empty memory until it has printed what it saw.
fn run(
    args: &FaultArgs,
    vm: &Vm,
    faults: &FaultLoop,
    stopped: &StoppedGuest,
    transcript: &Transcript,
) -> Result<FaultFigures, Error> {
    let busy = BusyThreads::start(args.busy);
    vm.restore(&stopped.sections)?;
    let resumed = tsc::now();
    vm.start();
    let everything = || receive(stopped.server.connect(Role::Everything)?, &faults.memory);
    if args.bulk {
        everything()?;
    } else {
        thread::sleep(Duration::from_secs(args.seconds));
    }
    let (complete, served) = (tsc::now(), faults.count.load(Ordering::Relaxed));
    drop(busy);
    if !args.bulk {
        everything()?;
    }
    let tsc_khz = u64::from(vm.tsc_khz());
    let moments = Moments { stopped: stopped.at, resumed, complete, tsc_khz };
    let figures = args.guest.figures(transcript, &moments)?;
    vm.shutdown();
    let total_us = (complete - resumed) as f64 * 1000.0 / tsc_khz as f64;
    let bytes_per_s = args.guest.memory as f64 * 1e6 / total_us;
    let bytes_per_s = args.bulk.then_some(bytes_per_s);
    Ok(FaultFigures { faults: figures.faults, served, total_us, bytes_per_s })
}

/// A guest that has run and been stopped, with its memory in the page server.
struct StoppedGuest {
    sections: Vec<Section>,
    server: Server,
    at: u64,
}

impl StoppedGuest {
    fn prepare(args: &GuestArgs, transcript: &Transcript) -> Result<StoppedGuest, Error> {
        let config: VmConfig = args.vm_config(Backing::Memfd);
        let vm = Vm::create(&config, Box::new(transcript.console()))?;
        vm.boot(&args.kernel(), None, &args.command_line())?;
        vm.start();
        args.wait_until_ready(transcript)?;
        let at = tsc::now();
        vm.pause()?;
        let sections = vm.save()?;
        let server = Server::start(Some(&image_of(&vm)), args.memory)?;
        vm.shutdown();
        Ok(StoppedGuest { sections, server, at })
    }
}

/// A path by which another process can open the memory of a guest.
fn image_of(vm: &Vm) -> PathBuf {
    let file = vm
        .memory()
        .inner()
        .iter()
        .find_map(|region| region.file_offset())
        .expect("the memory is a memfd");
    let descriptor = file.file().as_raw_fd();
    PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id()))
}

/// All that is needed to serve faults, and nothing else.
struct FaultLoop {
    memory: GuestUffd<KernelUffd>,
    server: TcpStream,
    count: AtomicU64,
    stop: OwnedFd,
}

impl FaultLoop {
    /// Poll, read, ask, wait, install; until [`stop`](FaultLoop::stop).
    fn run(&self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let mut page = vec![0; PageSize::BASE.bytes()];
        loop {
            let mut polled =
                [PollFd::new(&self.memory, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            poll(&mut polled, None).map_err(Error::system("waiting for faults"))?;
            if !polled[1].revents().is_empty() {
                return Ok(());
            }
            self.memory.read_events(&mut events)?;
            for event in events.drain(..) {
                if let Event::Fault(fault) = event {
                    self.serve(fault, &mut page)?;
                }
            }
        }
    }

    fn serve(&self, fault: Fault, page: &mut [u8]) -> Result<(), Error> {
        let index = self.memory.space().page_at(fault.address);
        let run = PageRun::one(index.expect("only guest memory is registered"));
        let mut server = &self.server;
        server
            .write_all(&u64::from(run.first.0).to_le_bytes())
            .and_then(|()| server.read_exact(page))
            .map_err(Error::system("asking for a page"))?;
        self.count.fetch_add(1, Ordering::Relaxed);
        loop {
            match self.memory.copy(run, page, Wake::Now)? {
                Filled::All => return Ok(()),
                Filled::AlreadyPresent { .. } => return Ok(self.memory.wake(run)?),
                // Nobody removes pages here, so this passes by itself.
                Filled::EventsFirst { .. } => thread::yield_now(),
            }
        }
    }

    fn stop(&self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("one event fits the counter");
    }
}

const EVENTS_AT_ONCE: usize = 64;
