//! Operations, and how they are read from bytes. Numbers of processes, userfaultfds and sleepers
//! are taken modulo how many there are, so that nearly all bytes mean something.

use godwit_uffd::abi::Call;
use godwit_uffd::model::{Access, Advice, HUGE, PAGE, Placement, Touch};

use super::bytes::Bytes;
use crate::differential::act::{AREAS, address, units};

/// What a mapping is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Anonymous { huge: bool },
    SharedAnonymous,
    Hugetlb,
    Droppable,
    Special,
    File { file: u8, page: u64, shared: bool, read_only: bool },
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Map { process: u8, at: u64, len: u64, memory: Memory, access: Access },
    Unmap { process: u8, at: u64, len: u64 },
    Protect { process: u8, at: u64, len: u64, access: Access },
    Advise { process: u8, at: u64, len: u64, advice: Advice },
    Remap { process: u8, from: u64, len: u64, new_len: u64, to: Option<u64>, dont_unmap: bool },
    Lock { process: u8, at: u64, len: u64, locked: bool },
    Fork { process: u8 },
    Exit { process: u8 },
    Open { process: u8, features: u64, flags: u32 },
    Close { context: u8 },
    Call { process: u8, context: u8, call: Call, placement: Placement },
    CopyBytes { process: u8, context: u8, dst: u64, pages: u8, mode: u64 },
    Read { context: u8, bytes: u8 },
    ReadIntoNowhere { context: u8 },
    Touch { process: u8, at: u64, touch: Touch, guest: bool },
    Resume { sleeper: u8 },
    Settle,
    Interrupt { sleeper: u8 },
    Cancel { sleeper: u8 },
    Kill { sleeper: u8 },
    Scan { process: u8, at: u64, len: u64, flags: u8, mask: u64 },
    FileStore { file: u8, page: u64 },
    FilePunch { file: u8, page: u64, count: u64 },
    FileTruncate { file: u8, pages: u64 },
    Pin { process: u8, at: u64 },
    BeginMigration { process: u8, at: u64 },
    EndMigration { which: u8 },
}

impl Operation {
    /// The next operation; `None` at the end of the bytes.
    pub fn next(bytes: &mut Bytes<'_>) -> Option<Operation> {
        let code = bytes.byte()?;
        match code {
            0..=79 => call(bytes),
            80..=119 => touch(bytes),
            120..=189 => memory(bytes, code - 120),
            _ => other(bytes, code - 190),
        }
    }
}

/// A place: most often the start of a page of an area.
fn place(bytes: &mut Bytes<'_>) -> Option<u64> {
    let area = bytes.below(AREAS)?;
    let page = bytes.byte()?;
    let start = address(area, page % (units(area) + 1));
    Some(match page / 16 {
        15 => bytes.word()?,
        14 => start + 0x10,
        13 => start + PAGE * u64::from(bytes.byte()?),
        _ => start,
    })
}

/// A length: most often a few pages.
fn length(bytes: &mut Bytes<'_>) -> Option<u64> {
    let byte = bytes.byte()?;
    Some(match byte {
        0..=179 => PAGE * (1 + u64::from(byte % 8)),
        180..=199 => HUGE / 2,
        200..=229 => HUGE,
        230..=239 => 2 * HUGE,
        240..=249 => 0x10 * u64::from(byte - 240),
        _ => bytes.word()?,
    })
}

/// The length of a mapping, which is bounded: what is mapped can be populated.
fn short_length(bytes: &mut Bytes<'_>) -> Option<u64> {
    const LONGEST: u64 = 4 * HUGE;
    let len = length(bytes)?;
    Some(if len > LONGEST { len % LONGEST } else { len })
}

fn access(bytes: &mut Bytes<'_>) -> Option<Access> {
    let read_write = Access::ReadWrite;
    bytes.pick(&[read_write, read_write, read_write, Access::Read, Access::None])
}

/// Small modes most often, sometimes any.
fn mode(bytes: &mut Bytes<'_>) -> Option<u64> {
    let byte = bytes.byte()?;
    Some(if byte < 250 { u64::from(byte % 8) } else { bytes.word()? })
}

fn call(bytes: &mut Bytes<'_>) -> Option<Operation> {
    let (process, context) = (bytes.below(16)?, bytes.below(16)?);
    let number = bytes.byte()?;
    let placement = match number / 32 {
        7 => bytes.pick(&[Placement::ReadOnly, Placement::Unmapped, Placement::Ordinary])?,
        _ => Placement::Ordinary,
    };
    let number = number % 32;
    if number >= 30 {
        let (api, features) = (bytes.word()?, bytes.word()?);
        let call =
            if number == 30 { Call::Api { api, features } } else { Call::Other { number: api } };
        return Some(Operation::Call { process, context, call, placement });
    }
    let (start, len, mode) = (place(bytes)?, length(bytes)?, mode(bytes)?);
    let call = match number {
        0..=4 => Call::Copy { dst: start, src: place(bytes)?, len, mode },
        5..=8 => Call::Move { dst: start, src: place(bytes)?, len, mode },
        9..=12 => Call::WriteProtect { start, len, mode },
        13..=15 => Call::Zeropage { start, len, mode },
        16..=18 => Call::Continue { start, len, mode },
        19..=20 => Call::Poison { start, len, mode },
        21..=22 => Call::Wake { start, len },
        23..=27 => Call::Register { start, len, mode },
        _ => Call::Unregister { start, len },
    };
    Some(Operation::Call { process, context, call, placement })
}

fn touch(bytes: &mut Bytes<'_>) -> Option<Operation> {
    let process = bytes.below(16)?;
    let at = place(bytes)?;
    let how = bytes.byte()?;
    let touch = match how % 4 {
        0 => Touch::Load,
        1 => Touch::Store(how),
        2 => Touch::KernelLoad,
        _ => Touch::KernelStore(how),
    };
    Some(Operation::Touch { process, at, touch, guest: how >= 200 && touch.is_user() })
}

fn memory(bytes: &mut Bytes<'_>, code: u8) -> Option<Operation> {
    const ADVICE: [Advice; 12] = [
        Advice::DontNeed,
        Advice::Free,
        Advice::Remove,
        Advice::PageOut,
        Advice::GuardInstall,
        Advice::GuardRemove,
        Advice::NoHugePage,
        Advice::HugePage,
        Advice::Collapse,
        Advice::Mergeable,
        Advice::PopulateRead,
        Advice::PopulateWrite,
    ];
    let process = bytes.below(16)?;
    let at = place(bytes)?;
    Some(match code {
        0..=17 => {
            let (len, access) = (short_length(bytes)?, access(bytes)?);
            Operation::Map { process, at, len, memory: kind(bytes)?, access }
        }
        18..=22 => Operation::Unmap { process, at, len: length(bytes)? },
        23..=27 => Operation::Protect { process, at, len: length(bytes)?, access: access(bytes)? },
        28..=47 => {
            let (len, advice) = (length(bytes)?, bytes.pick(&ADVICE)?);
            Operation::Advise { process, at, len, advice }
        }
        48..=59 => {
            let len = length(bytes)?;
            let how = bytes.byte()?;
            let new_len = if how % 2 == 0 { len } else { short_length(bytes)? };
            let to = if how % 8 < 7 { Some(place(bytes)?) } else { None };
            let dont_unmap = how / 16 % 4 == 0;
            Operation::Remap { process, from: at, len, new_len, to, dont_unmap }
        }
        60..=64 => {
            let (len, locked) = (length(bytes)?, bytes.below(2)? == 0);
            Operation::Lock { process, at, len, locked }
        }
        _ => {
            let (len, flags) = (length(bytes)?, bytes.byte()?);
            let mask = u64::from(bytes.byte()?);
            Operation::Scan { process, at, len, flags, mask }
        }
    })
}

fn kind(bytes: &mut Bytes<'_>) -> Option<Memory> {
    let byte = bytes.byte()?;
    Some(match byte {
        0..=89 => Memory::Anonymous { huge: byte % 4 == 0 },
        90..=109 => Memory::SharedAnonymous,
        110..=129 => Memory::Hugetlb,
        130..=134 => Memory::Droppable,
        135..=139 => Memory::Special,
        _ => {
            let how = bytes.byte()?;
            let page = if how % 8 == 0 { u64::from(bytes.below(9)?) } else { 0 };
            let (shared, read_only) = (how / 8 % 2 == 0, how / 16 % 8 == 0);
            Memory::File { file: byte, page, shared, read_only }
        }
    })
}

fn other(bytes: &mut Bytes<'_>, code: u8) -> Option<Operation> {
    let which = bytes.byte()?;
    Some(match code {
        0..=5 => {
            let features = match bytes.byte()? {
                0..=99 => 0,
                100..=239 => bytes.word()? & 0x1_ffff,
                _ => bytes.word()?,
            };
            let flags = if bytes.below(8)? == 0 { u32::from(bytes.byte()?) } else { 0 };
            Operation::Open { process: which, features, flags }
        }
        6..=7 => Operation::Close { context: which },
        8..=17 => {
            let (context, dst) = (bytes.below(16)?, place(bytes)?);
            let (pages, mode) = (bytes.below(9)?, mode(bytes)?);
            Operation::CopyBytes { process: which, context, dst, pages, mode }
        }
        18..=27 => Operation::Read { context: which, bytes: bytes.byte()? },
        28 => Operation::ReadIntoNowhere { context: which },
        29..=32 => Operation::Resume { sleeper: which },
        33..=38 => Operation::Settle,
        39..=41 => Operation::Interrupt { sleeper: which },
        42 => Operation::Cancel { sleeper: which },
        43 => Operation::Kill { sleeper: which },
        44..=47 => Operation::Fork { process: which },
        48 => Operation::Exit { process: which },
        49..=54 => Operation::FileStore { file: which, page: u64::from(bytes.below(9)?) },
        55..=56 => {
            let (page, count) = (u64::from(bytes.below(9)?), u64::from(bytes.below(9)?));
            Operation::FilePunch { file: which, page, count }
        }
        57..=58 => Operation::FileTruncate { file: which, pages: u64::from(bytes.below(10)?) },
        59..=60 => Operation::Pin { process: which, at: place(bytes)? },
        61..=63 => Operation::BeginMigration { process: which, at: place(bytes)? },
        _ => Operation::EndMigration { which },
    })
}
