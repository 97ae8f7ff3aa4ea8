//! Kernel files, and how to tell what kind of kernel one is.

use std::fs::File;
use std::io;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::BootError;

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// A kernel in this program.
    Embedded(&'static [u8]),
    /// A file.
    File(PathBuf),
}

impl KernelImage {
    /// The kernel's name for messages.
    pub(super) fn name(&self) -> String {
        match self {
            KernelImage::Embedded(_) => "in this program".to_owned(),
            KernelImage::File(path) => path.display().to_string(),
        }
    }

    /// Opens the kernel and finds out its kind.
    pub(super) fn open(&self) -> Result<(Source, Kind), BootError> {
        let mut source = match self {
            KernelImage::Embedded(bytes) => Source::Embedded(Cursor::new(bytes)),
            KernelImage::File(path) => Source::File(open_file("the kernel", path)?),
        };
        let path = || match self {
            KernelImage::Embedded(_) => PathBuf::new(),
            KernelImage::File(path) => path.clone(),
        };
        let header = source.header().map_err(|source| BootError::Read {
            what: "the kernel",
            path: path(),
            source,
        })?;
        let kind =
            kind(&header).map_err(|found| BootError::NotAKernel { image: self.name(), found })?;
        Ok((source, kind))
    }
}

/// Opens a file and makes sure that it is one: reading a pipe or a terminal could take for ever.
pub(super) fn open_file(what: &'static str, path: &Path) -> Result<File, BootError> {
    let failed = |source| BootError::Read { what, path: path.to_owned(), source };
    let is_file = std::fs::metadata(path).map_err(failed)?.is_file();
    if !is_file {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
    }
    File::open(path).map_err(failed)
}

/// An open kernel.
pub(super) enum Source {
    Embedded(Cursor<&'static [u8]>),
    File(File),
}

impl Source {
    /// The first bytes, or fewer if there are fewer.
    fn header(&mut self) -> io::Result<Vec<u8>> {
        let mut header = Vec::new();
        match self {
            Source::Embedded(cursor) => read_header(cursor, &mut header)?,
            Source::File(file) => read_header(file, &mut header)?,
        }
        Ok(header)
    }
}

fn read_header(source: &mut (impl Read + Seek), header: &mut Vec<u8>) -> io::Result<()> {
    source.seek(SeekFrom::Start(0))?;
    source.by_ref().take(HEADER_BYTES).read_to_end(header)?;
    Ok(())
}

/// The kinds of kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Elf,
    BzImage,
}

/// The kind of kernel that begins with `header`, or what it is instead.
fn kind(header: &[u8]) -> Result<Kind, &'static str> {
    if header.starts_with(b"\x7fELF") {
        return elf_kind(header);
    }
    if header.get(0x202..0x206) == Some(b"HdrS") {
        // The field `xloadflags` says since protocol 2.12 whether there is a 64-bit entry.
        let version = half(header, 0x206);
        let has_entry = half(header, 0x236) & 1 != 0;
        return match version >= 0x20c && has_entry {
            true => Ok(Kind::BzImage),
            false => Err("it is a Linux kernel without a 64-bit entry"),
        };
    }
    match header {
        [] => Err("it is empty"),
        [0x1f, 0x8b, ..] => Err("it is a gzip file"),
        _ => Err("it begins like no kernel"),
    }
}

fn elf_kind(header: &[u8]) -> Result<Kind, &'static str> {
    const CLASS_64: u8 = 2;
    const TYPE_EXECUTABLE: u16 = 2;
    const MACHINE_X86_64: u16 = 62;
    if header.get(4) != Some(&CLASS_64) || half(header, 0x12) != MACHINE_X86_64 {
        return Err("it is an ELF file for another processor");
    }
    match half(header, 0x10) {
        TYPE_EXECUTABLE => Ok(Kind::Elf),
        _ => Err("it is an ELF file, but not one with fixed addresses"),
    }
}

/// A little-endian field of two bytes; zero beyond the end.
fn half(header: &[u8], offset: usize) -> u16 {
    match header.get(offset..offset + 2) {
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
        None => 0,
    }
}

const HEADER_BYTES: u64 = 0x280;

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, kind: u8, machine: u8) -> Vec<u8> {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(b"\x7fELF");
        header[4] = class;
        header[0x10] = kind;
        header[0x12] = machine;
        header
    }

    #[test]
    fn kernels_are_told_from_other_files() {
        assert_eq!(kind(&elf(2, 2, 62)), Ok(Kind::Elf));
        assert!(kind(&elf(2, 3, 62)).is_err());
        assert!(kind(&elf(1, 2, 3)).is_err());
        assert!(kind(b"").unwrap_err().contains("empty"));
        assert!(kind(b"#!/bin/sh\n").is_err());
        assert!(kind(b"\x7fELF").is_err());
    }

    #[test]
    fn linux_kernel_needs_a_64_bit_entry() {
        let mut header = vec![0; 0x280];
        header[0x202..0x206].copy_from_slice(b"HdrS");
        header[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        assert!(kind(&header).is_err());
        header[0x236] = 1;
        assert_eq!(kind(&header), Ok(Kind::BzImage));
    }
}
