//! Accesses to guest memory that a vCPU thread makes for KVM (see the module documentation).

use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_setfl};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// A memory-mapped access that turned out to be one to RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct RamAccess {
    /// The guest physical address.
    pub(super) gpa: u64,
    /// Whether the guest writes.
    pub(super) write: bool,
    /// What is written, or what was read.
    pub(super) data: [u8; 8],
    /// How many bytes of `data` count.
    pub(super) bytes: usize,
}

/// A way to guest memory that can fail.
///
/// A plain load of a page that cannot be had kills the process; a system call that copies from or
/// to it returns EFAULT. A pipe is the plainest such call: bytes go through it between guest memory
/// and ours.
pub(super) struct Ferry {
    reader: File,
    writer: File,
}

impl Ferry {
    /// Opens the pipe.
    pub(super) fn open() -> io::Result<Ferry> {
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        fcntl_setfl(&writer, OFlags::NONBLOCK)?;
        Ok(Ferry { reader: File::from(reader), writer: File::from(writer) })
    }

    /// Makes the access. Waits for a missing page.
    ///
    /// # Errors
    /// The memory is out of reach; nothing has happened.
    pub(super) fn carry(&mut self, memory: &GuestMemory, access: &mut RamAccess) -> io::Result<()> {
        let result = match access.write {
            true => self.carry_in(memory, access),
            false => self.carry_out(memory, access),
        };
        if result.is_err() {
            self.empty();
        }
        result
    }

    fn carry_in(&mut self, memory: &GuestMemory, access: &RamAccess) -> io::Result<()> {
        self.writer.write_all(&access.data[..access.bytes])?;
        memory
            .inner()
            .read_exact_volatile_from(GuestAddress(access.gpa), &mut self.reader, access.bytes)
            .map_err(io::Error::other)
    }

    fn carry_out(&mut self, memory: &GuestMemory, access: &mut RamAccess) -> io::Result<()> {
        memory
            .inner()
            .write_all_volatile_to(GuestAddress(access.gpa), &mut self.writer, access.bytes)
            .map_err(io::Error::other)?;
        self.reader.read_exact(&mut access.data[..access.bytes])
    }

    /// Throws away what a failed access left in the pipe.
    fn empty(&mut self) {
        let mut rest = [0; 16];
        while matches!(self.reader.read(&mut rest), Ok(bytes) if bytes > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Backing;

    fn access(gpa: u64, write: bool, bytes: usize) -> RamAccess {
        RamAccess { gpa, write, data: [1, 2, 3, 4, 5, 6, 7, 8], bytes }
    }

    #[test]
    fn bytes_arrive_and_come_back() {
        let memory = GuestMemory::create(4 << 20, Backing::Anon).unwrap();
        let mut ferry = Ferry::open().unwrap();
        for bytes in [1, 2, 4, 8] {
            ferry.carry(&memory, &mut access(0x1000, true, bytes)).unwrap();
            let mut read = RamAccess { data: [0; 8], ..access(0x1000, false, bytes) };
            ferry.carry(&memory, &mut read).unwrap();
            assert_eq!(read.data[..bytes], [1, 2, 3, 4, 5, 6, 7, 8][..bytes]);
        }
    }

    #[test]
    fn failed_access_leaves_nothing_behind() {
        let memory = GuestMemory::create(4 << 20, Backing::Anon).unwrap();
        let mut ferry = Ferry::open().unwrap();
        ferry.carry(&memory, &mut access(5 << 20, true, 8)).unwrap_err();
        let mut read = RamAccess { data: [9; 8], ..access(0x2000, false, 8) };
        ferry.carry(&memory, &mut read).unwrap();
        assert_eq!(read.data, [0; 8]);
    }
}
