//! `floor receive`: how fast this machine can bring pages in, without any protocol.

use std::hint::black_box;
use std::io::Read;
use std::net::TcpStream;
use std::time::Instant;

use clap::Args;
use godwit_uffd::Wake;
use godwit_uffd::guest::{Filled, GuestUffd};
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::floor::load::BusyVcpus;
use crate::floor::mapping::{self, Target};
use crate::floor::server::{Role, Server, made_up};
use crate::size;
use crate::workload::ImageArgs;

/// Brings memory in over loopback TCP as fast as this machine can, without any protocol.
#[derive(Args, Clone)]
pub struct ReceiveArgs {
    /// The amount of memory.
    #[arg(long, default_value = "1G", value_parser = size::parse)]
    pub memory: u64,
    /// The number of vCPUs that spin meanwhile.
    #[arg(long, default_value_t = 0)]
    pub busy: u8,
    #[command(flatten)]
    pub image: ImageArgs,
}

/// Bytes per second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiveFigures {
    /// From a socket into a 64-page buffer, and from there into registered memory by COPY.
    pub receive_bytes_per_s: f64,
    /// From a socket into a 64-page buffer, and no further.
    pub stream_bytes_per_s: f64,
    /// From memory to memory, both touched before.
    pub memory_copy_bytes_per_s: f64,
}

/// Measures all three, one after the other.
///
/// # Errors
///
/// [`Error`] if userfaultfd, sockets or, for `busy`, KVM are not to be had.
pub fn measure(args: &ReceiveArgs) -> Result<ReceiveFigures, Error> {
    let server = Server::start(None, args.memory)?;
    let target = Target::new(size::length(args.memory))?;
    let _busy = BusyVcpus::start(&args.image.kernel(), args.busy)?;
    let stream_bytes_per_s = rate(args.memory, || discard(server.connect(Role::Everything)?))?;
    mapping::warm(size::length(args.memory))?;
    let receive_bytes_per_s =
        rate(args.memory, || receive(server.connect(Role::Everything)?, target.memory()))?;
    let memory_copy_bytes_per_s = copy_memory(args.memory)?;
    Ok(ReceiveFigures { receive_bytes_per_s, stream_bytes_per_s, memory_copy_bytes_per_s })
}

/// Receives all pages in order and installs those that are not there yet, until the stream ends.
///
/// # Errors
///
/// [`Error::System`] if the stream breaks, [`Error::Uffd`] if a page cannot be installed.
pub fn receive(mut stream: TcpStream, memory: &GuestUffd<KernelUffd>) -> Result<(), Error> {
    let page = PageSize::BASE;
    let mut buffer = vec![0; page.length_of(BUFFER_PAGES)];
    let mut next = 0;
    let all = memory.space().page_count();
    while next < all {
        let count = BUFFER_PAGES.min(all - next);
        let bytes = &mut buffer[..page.length_of(count)];
        stream.read_exact(bytes).map_err(Error::system("receiving pages"))?;
        install(memory, PageRun { first: PageIndex(next), count }, bytes)?;
        next += count;
    }
    Ok(())
}

/// Installs those pages of a run that are not there yet.
fn install(memory: &GuestUffd<KernelUffd>, run: PageRun, bytes: &[u8]) -> Result<(), Error> {
    let (mut run, mut bytes) = (run, bytes);
    while run.count > 0 {
        let skip = match memory.copy(run, bytes, Wake::Now)? {
            Filled::All => run.count,
            Filled::AlreadyPresent { done } => done + 1,
            // Nobody removes pages here, so this passes by itself.
            Filled::EventsFirst { done } => {
                std::thread::yield_now();
                done
            }
        };
        bytes = &bytes[PageSize::BASE.length_of(skip)..];
        run = PageRun { first: PageIndex(run.first.0 + skip), count: run.count - skip };
    }
    Ok(())
}

fn discard(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; PageSize::BASE.length_of(BUFFER_PAGES)];
    while stream.read(&mut buffer).map_err(Error::system("receiving a stream"))? > 0 {}
    Ok(())
}

fn copy_memory(bytes: u64) -> Result<f64, Error> {
    let from = made_up(size::length(bytes));
    let mut into = made_up(size::length(bytes));
    rate(bytes, || {
        into.copy_from_slice(black_box(&from));
        black_box(&into);
        Ok(())
    })
}

fn rate(bytes: u64, work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let start = Instant::now();
    work()?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// Pages of the buffer that stays in the cache: 256 KiB.
const BUFFER_PAGES: u32 = 64;
