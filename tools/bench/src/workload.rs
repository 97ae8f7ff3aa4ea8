//! The guest that is measured: the same image with the same command line for everybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::VmConfig;

use crate::error::Error;
use crate::guest::report::{gaps_reach, windows_reach};
use crate::guest::{GuestFigures, Line, Moments, Transcript};
use crate::size;

/// The guest that is measured.
#[derive(Args, Clone, Debug)]
pub struct GuestArgs {
    /// The amount of guest memory.
    #[arg(long, default_value = "1G", value_parser = size::parse)]
    pub memory: u64,
    /// The number of vCPUs.
    #[arg(long, default_value_t = 2)]
    pub cpus: u8,
    /// What the guest does. Only `random` and `chase` time what they read; `dirty` verifies and
    /// writes, `clock` spins and `halt` sleeps when memory is filled.
    #[arg(
        long,
        default_value = "random",
        value_parser = ["random", "chase", "dirty", "clock", "halt"]
    )]
    pub workload: String,
    /// What its memory is filled with.
    #[arg(long, default_value = "random", value_parser = ["random", "text", "word", "zero"])]
    pub data: String,
    /// `dirty`: pages that each vCPU writes in a second.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// `dirty`: one of so many groups of 64 pages is written.
    #[arg(long, default_value_t = 1)]
    pub every: u32,
    #[command(flatten)]
    pub image: ImageArgs,
}

/// The image of the guest.
#[derive(Args, Clone, Debug)]
pub struct ImageArgs {
    /// The bare guest's image [default: the one in this program]
    #[arg(long)]
    pub image: Option<PathBuf>,
}

impl ImageArgs {
    /// The image as a VM boots it.
    pub fn kernel(&self) -> KernelImage {
        match &self.image {
            Some(path) => KernelImage::File(path.clone()),
            None => KernelImage::Embedded(guest_image::BARE),
        }
    }
}

impl GuestArgs {
    /// A guest with random data that is only read.
    pub fn new(memory: u64, cpus: u8, workload: &str, image: ImageArgs) -> GuestArgs {
        let (workload, data) = (workload.to_owned(), "random".to_owned());
        GuestArgs { memory, cpus, workload, data, rate: 0, every: 1, image }
    }

    /// What the guest is told.
    pub fn command_line(&self) -> String {
        let GuestArgs { workload, cpus, memory, data, rate, every, .. } = self;
        format!(
            "workload={workload} vcpus={cpus} fill={memory} windows={WINDOWS} pass_ms=0 \
             data={data} rate={rate} every={every}"
        )
    }

    /// The image as a file, in `folder` if it has to be written.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it cannot be written.
    pub fn image_in(&self, folder: &Path) -> Result<PathBuf, Error> {
        if let Some(path) = &self.image.image {
            return Ok(path.clone());
        }
        let path = folder.join("guest.elf");
        fs::write(&path, guest_image::BARE).map_err(Error::system("writing the guest's image"))?;
        Ok(path)
    }

    /// The image as a VM boots it.
    pub fn kernel(&self) -> KernelImage {
        self.image.kernel()
    }

    /// The guest as a VM of ours.
    pub fn vm_config(&self, backing: Backing) -> VmConfig {
        VmConfig { cpus: self.cpus, memory_bytes: self.memory, backing, devices: Vec::new() }
    }

    /// Waits until the guest has filled its memory and, if it verifies it over and over, has begun
    /// to on every vCPU.
    ///
    /// # Errors
    ///
    /// [`Error::GuestSilent`] if it does not.
    pub fn wait_until_ready(&self, transcript: &Transcript) -> Result<(), Error> {
        let has_begun = |lines: &[Line], vcpu| {
            let mut passes = lines.iter().filter(|line| line.kind == "pass");
            passes.any(|line| line.number("vcpu") == Some(vcpu) && line.number("n") >= Some(2))
        };
        transcript.wait_until("that its memory is filled", PATIENCE, |lines| {
            match self.has_passes() {
                true => (0..u64::from(self.cpus)).all(|vcpu| has_begun(lines, vcpu)),
                false => lines.iter().any(|line| line.kind == "filled"),
            }
        })
    }

    /// Waits until the guest has printed what it remembers of a move, and makes figures of it.
    /// `moments` are by the host's counter.
    ///
    /// # Errors
    ///
    /// [`Error::GuestSilent`] if it does not, [`Error::GuestCorrupt`] if it has lost a byte.
    pub fn figures(
        &self,
        transcript: &Transcript,
        moments: &Moments,
    ) -> Result<GuestFigures, Error> {
        let moments = moments.shifted(transcript.tsc_offset(moments.tsc_khz));
        let cpus = u64::from(self.cpus);
        let second = moments.resumed + moments.tsc_khz * 1000;
        if self.has_passes() {
            transcript.wait_until("what it saw of the move", PATIENCE, |lines| {
                windows_reach(lines, cpus, moments.complete) && gaps_reach(lines, cpus, second)
            })?;
        }
        GuestFigures::of(&transcript.lines(), &moments)
    }

    /// The guest goes through its memory over and over, and tells of it.
    fn has_passes(&self) -> bool {
        matches!(self.workload.as_str(), "random" | "chase" | "dirty")
    }
}

/// Windows of 20 ms that each vCPU remembers.
const WINDOWS: u32 = 1024;

/// How long the guest may be silent.
const PATIENCE: Duration = Duration::from_secs(120);
