//! Loading a kernel: which kind it is, where its parts go, and what it is told about the machine.

mod acpi;
mod image;
mod initramfs;
pub mod layout;
mod linux64;
mod load;
mod memory_map;
mod pvh;
mod tables;

use std::io;
use std::path::PathBuf;

pub(crate) use acpi::Platform;
pub use image::KernelImage;
pub(crate) use load::load;

/// The longest command line in bytes, without the zero at its end.
pub const COMMAND_LINE_BYTES_MAX: usize = 4095;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file is no kernel.
    #[error("{image} is not a kernel: {found}; give a bzImage, or an ELF kernel for x86-64")]
    NotAKernel {
        /// The file, or the kernel in this program.
        image: String,
        /// What was found in it.
        found: &'static str,
    },
    /// The file begins like a kernel, but cannot be loaded.
    #[error(
        "cannot load the kernel {image} into {memory_mib} MiB of guest memory; it is damaged, or \
         the guest is too small for it"
    )]
    Load {
        /// The file, or the kernel in this program.
        image: String,
        /// The size of guest memory.
        memory_mib: u64,
        /// The loader's reason.
        source: linux_loader::loader::Error,
    },
    /// The command line is too long.
    #[error("the kernel command line has {bytes} bytes; at most {limit} are possible")]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
        /// The limit of this kernel.
        limit: usize,
    },
    /// The command line cannot be given to a kernel.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
    /// Kernel and initramfs do not fit together.
    #[error(
        "the initramfs {} of {bytes} bytes does not fit behind the kernel in {memory_mib} MiB of \
         guest memory; give the guest more memory", path.display()
    )]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The size of guest memory.
        memory_mib: u64,
    },
    /// Guest memory could not be written.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
}
