//! The guest that is measured: the same image with the same command line for everybody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::VmConfig;

use crate::error::Error;
use crate::guest::report::{gaps_reach, windows_reach};
use crate::guest::{Moments, Transcript};
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
    /// What the guest does, `random` or `chase`: others do not time what they read.
    #[arg(long, default_value = "random", value_parser = ["random", "chase"])]
    pub workload: String,
    #[command(flatten)]
    pub image: ImageArgs,
}

/// The image of the guest.
#[derive(Args, Clone, Debug)]
pub struct ImageArgs {
    /// The bare guest's image.
    #[arg(long)]
    pub image: PathBuf,
}

impl ImageArgs {
    /// The image as a VM boots it.
    pub fn kernel(&self) -> KernelImage {
        KernelImage::File(self.image.clone())
    }
}

impl GuestArgs {
    /// What the guest is told.
    pub fn command_line(&self) -> String {
        let GuestArgs { workload, cpus, .. } = self;
        format!("workload={workload} vcpus={cpus} windows={WINDOWS} pass_ms=0")
    }

    /// The image as a file.
    pub fn image(&self) -> &Path {
        &self.image.image
    }

    /// The image as a VM boots it.
    pub fn kernel(&self) -> KernelImage {
        self.image.kernel()
    }

    /// The guest as a VM of ours.
    pub fn vm_config(&self, backing: Backing) -> VmConfig {
        VmConfig { cpus: self.cpus, memory_bytes: self.memory, backing }
    }

    /// Waits until the guest has filled its memory and every vCPU has begun to read it over and
    /// over.
    ///
    /// # Errors
    ///
    /// [`Error::GuestSilent`] if it does not.
    pub fn wait_until_ready(&self, transcript: &Transcript) -> Result<(), Error> {
        transcript.wait_until("that its memory is filled", PATIENCE, |lines| {
            (0..u64::from(self.cpus)).all(|vcpu| {
                let mut passes = lines
                    .iter()
                    .filter(|line| line.kind == "pass" && line.number("vcpu") == Some(vcpu));
                passes.any(|line| line.number("n") >= Some(2))
            })
        })
    }

    /// Waits until the guest has printed what it remembers of a move.
    ///
    /// # Errors
    ///
    /// [`Error::GuestSilent`] if it does not.
    pub fn wait_for_figures(
        &self,
        transcript: &Transcript,
        moments: &Moments,
    ) -> Result<(), Error> {
        let cpus = u64::from(self.cpus);
        let second = moments.resumed + moments.tsc_khz * 1000;
        transcript.wait_until("what it saw of the move", PATIENCE, |lines| {
            windows_reach(lines, cpus, moments.complete) && gaps_reach(lines, cpus, second)
        })
    }
}

/// Windows of 20 ms that each vCPU remembers.
const WINDOWS: u32 = 1024;

/// How long the guest may be silent.
const PATIENCE: Duration = Duration::from_secs(120);
