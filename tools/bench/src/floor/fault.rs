//! `floor fault`: a guest's faults served over TCP by a loop with no protocol.
//!
//! A guest runs, is stopped and saved, and goes on in a second VM whose memory is empty. One thread
//! reads a fault, asks the page server, waits for the page and installs it: nothing is decided,
//! nothing is remembered, nothing is in flight besides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use godwit_uffd::guest::{Filled, GuestUffd};
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageRun, PageSize};
use godwit_uffd::{Event, Fault, Uffd, Wake};
use godwit_vmm::memory::Backing;
use godwit_vmm::state::Section;
use godwit_vmm::vm::{Vm, VmConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::Error;
use crate::floor::load::BusyThreads;
use crate::floor::mapping;
use crate::floor::receive;
use crate::floor::server::{Role, Server};
use crate::floor::tsc;
use crate::guest::{GuestFigures, Latencies, Moments, Transcript};
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
    let memory = mapping::register(vm.memory())?;
    let urgent = stopped.server.connect(Role::OnDemand)?;
    let stop = Stop::new()?;
    thread::scope(|scope| {
        let server = scope.spawn(|| serve_faults(&memory, urgent, &stop));
        let measured = run(args, &vm, &memory, &stopped, &transcript);
        stop.now()?;
        let served = server.join().expect("the fault loop does not panic")?;
        let (moments, figures) = measured?;
        let seconds = (moments.complete - moments.resumed) as f64 / (tsc_hz(&moments));
        let bytes = args.bulk.then_some(args.guest.memory as f64);
        Ok(FaultFigures {
            faults: figures.faults,
            served,
            total_us: seconds * 1e6,
            bytes_per_s: bytes.map(|bytes| bytes / seconds),
        })
    })
}

/// Runs the guest on its empty memory until it has printed what it saw.
fn run(
    args: &FaultArgs,
    vm: &Vm,
    memory: &GuestUffd<KernelUffd>,
    stopped: &StoppedGuest,
    transcript: &Transcript,
) -> Result<(Moments, GuestFigures), Error> {
    let busy = BusyThreads::start(args.busy);
    vm.restore(&stopped.sections)?;
    let resumed = tsc::now();
    vm.start();
    if !args.bulk {
        thread::sleep(Duration::from_secs(args.seconds));
    }
    let early = tsc::now();
    receive::receive(stopped.server.connect(Role::Everything)?, memory)?;
    let complete = if args.bulk { tsc::now() } else { early };
    drop(busy);
    let moments =
        Moments { stopped: stopped.at, resumed, complete, tsc_khz: u64::from(vm.tsc_khz()) };
    args.guest.wait_for_figures(transcript, &moments)?;
    let figures = GuestFigures::of(&transcript.lines(), &moments)?;
    vm.shutdown();
    Ok((moments, figures))
}

fn tsc_hz(moments: &Moments) -> f64 {
    moments.tsc_khz as f64 * 1000.0
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

/// The whole loop: poll, read, ask, wait, install.
fn serve_faults(
    memory: &GuestUffd<KernelUffd>,
    mut server: TcpStream,
    stop: &Stop,
) -> Result<u64, Error> {
    let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
    let mut page = vec![0; PageSize::BASE.bytes()];
    let mut served = 0;
    loop {
        let mut polled =
            [PollFd::new(memory.uffd(), PollFlags::IN), PollFd::new(&stop.0, PollFlags::IN)];
        poll(&mut polled, None).map_err(Error::system("waiting for faults"))?;
        if !polled[1].revents().is_empty() {
            return Ok(served);
        }
        memory.uffd().read_events(&mut events)?;
        for event in events.drain(..) {
            if let Event::Fault(fault) = event {
                serve_fault(memory, &mut server, fault, &mut page)?;
                served += 1;
            }
        }
    }
}

fn serve_fault(
    memory: &GuestUffd<KernelUffd>,
    server: &mut TcpStream,
    fault: Fault,
    page: &mut [u8],
) -> Result<(), Error> {
    let index = memory.space().page_at(fault.address).expect("only guest memory is registered");
    let run = PageRun::one(index);
    server
        .write_all(&u64::from(index.0).to_le_bytes())
        .and_then(|()| server.read_exact(page))
        .map_err(Error::system("asking for a page"))?;
    loop {
        match memory.copy(run, page, Wake::Now)? {
            Filled::All => return Ok(()),
            Filled::AlreadyPresent { .. } => return Ok(memory.wake(run)?),
            // Nobody removes pages here, so this passes by itself.
            Filled::EventsFirst { .. } => thread::yield_now(),
        }
    }
}

/// Ends the fault loop.
struct Stop(OwnedFd);

impl Stop {
    fn new() -> Result<Stop, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        event.map(Stop).map_err(Error::system("making an eventfd"))
    }

    fn now(&self) -> Result<(), Error> {
        let written = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        written.map(drop).map_err(Error::system("writing an eventfd"))
    }
}

const EVENTS_AT_ONCE: usize = 64;
