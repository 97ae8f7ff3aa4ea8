//! The buffers of one request.

use godwit_migration::provider::GuestRam;
use godwit_uffd::page::Gpa;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::gate::{Gate, Wanted};
use super::{Broken, DESCRIPTORS_MAX};
use crate::memory::GuestMemory;

/// A request: bytes that the driver wrote for the device, and room for those of the device. All of
/// it lies in guest memory; that has been checked.
pub(crate) struct Chain<'a> {
    memory: &'a GuestMemory,
    gate: &'a Gate,
    readable: Parts,
    writable: Parts,
    written: u32,
}

/// Ranges of guest memory, used up from the front.
#[derive(Default)]
struct Parts {
    /// In reverse, so that the next one is the last.
    ranges: Vec<(u64, u32)>,
    left: u64,
}

impl<'a> Chain<'a> {
    /// Reads and checks the descriptors of a request.
    pub(super) fn of(
        memory: &'a GuestMemory,
        gate: &'a Gate,
        descriptors: DescriptorChain<&'a GuestRam>,
    ) -> Result<Chain<'a>, Broken> {
        let (mut readable, mut writable) = (Parts::default(), Parts::default());
        for (index, descriptor) in (0..).zip(descriptors) {
            if index >= DESCRIPTORS_MAX {
                return Err(Broken("a request has too many descriptors"));
            }
            let (gpa, bytes) = (descriptor.addr().0, descriptor.len());
            if !memory.contains(Gpa(gpa), bytes.into()) {
                return Err(Broken("a buffer is not in memory"));
            }
            let parts = if descriptor.is_write_only() { &mut writable } else { &mut readable };
            parts.ranges.push((gpa, bytes));
            parts.left += u64::from(bytes);
        }
        readable.ranges.reverse();
        writable.ranges.reverse();
        Ok(Chain { memory, gate, readable, writable, written: 0 })
    }

    /// Bytes that can still be read.
    pub(super) fn readable(&self) -> u64 {
        self.readable.left
    }

    /// Bytes that can still be written.
    pub(super) fn writable(&self) -> u64 {
        self.writable.left
    }

    /// Bytes that were written, from the first on.
    pub(super) fn written(&self) -> u32 {
        self.written
    }

    /// Copies the next bytes from the guest.
    ///
    /// # Errors
    /// There are not so many; or the guest has been shut down, and what was read may be anything.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<(), Broken> {
        let mut done = 0;
        while done < into.len() {
            let (gpa, bytes) = self.readable.take(into.len() - done)?;
            let read = self.memory.inner().read_slice(&mut into[done..done + bytes], gpa);
            read.map_err(|_| UNREACHABLE)?;
            done += bytes;
        }
        // Behind the copy: memory is taken away only after everybody was told to go.
        if self.gate.wanted() == Wanted::Gone { Err(SHUT_DOWN) } else { Ok(()) }
    }

    /// Copies bytes to the guest, behind those that were written before.
    ///
    /// # Errors
    /// There is not so much room.
    pub(super) fn write(&mut self, from: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        while done < from.len() {
            let (gpa, bytes) = self.writable.take(from.len() - done)?;
            let written = self.memory.inner().write_slice(&from[done..done + bytes], gpa);
            written.map_err(|_| UNREACHABLE)?;
            done += bytes;
            self.written = self.written.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// Puts a byte at the very end of the room. Counts as written if all before it is.
    ///
    /// # Errors
    /// There is no room at all.
    pub(super) fn write_last(&mut self, byte: u8) -> Result<(), Broken> {
        let complete = self.writable.left == 1;
        let (gpa, bytes) =
            *self.writable.ranges.iter().find(|(_, bytes)| *bytes > 0).ok_or(NONE)?;
        let last = GuestAddress(gpa + u64::from(bytes) - 1);
        self.memory.inner().write_slice(&[byte], last).map_err(|_| UNREACHABLE)?;
        self.written = self.written.saturating_add(u32::from(complete));
        Ok(())
    }
}

impl Parts {
    /// Takes a range of at most `most` bytes off the front, and at least one.
    fn take(&mut self, most: usize) -> Result<(GuestAddress, usize), Broken> {
        while let Some((gpa, bytes)) = self.ranges.pop() {
            if bytes == 0 {
                continue;
            }
            let taken = u32::try_from(most).unwrap_or(u32::MAX).min(bytes);
            if taken < bytes {
                self.ranges.push((gpa + u64::from(taken), bytes - taken));
            }
            self.left -= u64::from(taken);
            return Ok((GuestAddress(gpa), taken as usize));
        }
        Err(NONE)
    }
}

const NONE: Broken = Broken("a request has too few bytes");
const UNREACHABLE: Broken = Broken("a buffer is not in memory");
const SHUT_DOWN: Broken = Broken("the guest is shut down");
