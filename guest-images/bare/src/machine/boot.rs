//! What the loader left for the guest: the memory map and the command line, in the format of the
//! PVH start information or of Linux's zero page.

// UNSAFETY: what the loader left is at physical addresses that it chose.
#![expect(unsafe_code)]

use core::slice;

use godwit_guest::ram::{Ram, Range};

/// How the guest was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit entry, PVH start information.
    Pvh,
    /// 64-bit entry, Linux's zero page.
    Linux64,
}

impl Protocol {
    /// The name in the `start` line.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Pvh => "pvh",
            Protocol::Linux64 => "linux64",
        }
    }
}

/// What the loader said.
pub struct Boot {
    /// How the guest was started.
    pub protocol: Protocol,
    /// Memory that the guest may use.
    pub ram: Ram,
    /// The command line; empty if it is not readable text.
    pub command_line: &'static str,
}

impl Boot {
    /// Reads the information at the physical address `information`; `None` if it is not what the
    /// protocol says.
    pub fn read(information: u64, linux64: bool) -> Option<Boot> {
        if linux64 { Boot::from_zero_page(information) } else { Boot::from_pvh(information) }
    }

    fn from_pvh(information: u64) -> Option<Boot> {
        if u32_at(information)? != PVH_MAGIC || u32_at(information + 4)? < 1 {
            return None;
        }
        let map = u64_at(information + 40)?;
        let mut ram = Ram::default();
        for at in 0..u64::from(u32_at(information + 48)?) {
            add(&mut ram, map + at * 24)?;
        }
        let command_line = text_at(u64_at(information + 24)?);
        Some(Boot { protocol: Protocol::Pvh, ram, command_line })
    }

    fn from_zero_page(information: u64) -> Option<Boot> {
        let mut ram = Ram::default();
        for at in 0..u64::from(bytes_at(information + 0x1e8, 1)?[0]) {
            add(&mut ram, information + 0x2d0 + at * 20)?;
        }
        let low = u64::from(u32_at(information + 0x228)?);
        let high = u64::from(u32_at(information + 0xc8)?);
        let command_line = text_at(high << 32 | low);
        Some(Boot { protocol: Protocol::Linux64, ram, command_line })
    }
}

/// An entry of either map: start and size of 64 bits, type of 32 bits.
fn add(ram: &mut Ram, entry: u64) -> Option<()> {
    let (start, bytes) = (u64_at(entry)?, u64_at(entry + 8)?);
    if u32_at(entry + 16)? == TYPE_RAM {
        ram.add(Range { start, end: start.saturating_add(bytes) });
    }
    Some(())
}

fn text_at(address: u64) -> &'static str {
    let Some(bytes) = bytes_at(address, COMMAND_LINE_MAX) else {
        return "";
    };
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..length]).unwrap_or("")
}

fn u32_at(address: u64) -> Option<u32> {
    bytes_at(address, 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(address: u64) -> Option<u64> {
    bytes_at(address, 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Bytes that the loader wrote; `None` for address 0 and what is not mapped at the start.
fn bytes_at(address: u64, count: usize) -> Option<&'static [u8]> {
    if address == 0 || address.checked_add(count as u64)? > MAPPED_AT_START {
        return None;
    }
    // SAFETY: the first GiB is mapped from the start, and reading what is not RAM is harmless
    // there. Nobody writes what the loader left: the guest's own data is elsewhere.
    Some(unsafe { slice::from_raw_parts(address as *const u8, count) })
}

const PVH_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const COMMAND_LINE_MAX: usize = 2048;
const MAPPED_AT_START: u64 = 1 << 30;
