//! What was found out about the operations by trying them.

use crate::abi::Errno;
use crate::features::Ioctls;

/// An operation on registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Waking waiters.
    Wake,
    /// Installing given bytes.
    Copy,
    /// Installing zeros.
    Zeropage,
    /// Moving pages from elsewhere.
    Move,
    /// Write-protecting a page.
    WriteProtect,
    /// Mapping a page that the page cache has.
    Continue,
    /// Marking a page as lost.
    Poison,
}

impl Operation {
    /// All of them, in the order of the kernel's numbers.
    pub const ALL: [Operation; 7] = [
        Operation::Wake,
        Operation::Copy,
        Operation::Zeropage,
        Operation::Move,
        Operation::WriteProtect,
        Operation::Continue,
        Operation::Poison,
    ];

    /// The bit by which a registration reports it.
    pub const fn ioctl(self) -> Ioctls {
        match self {
            Operation::Wake => Ioctls::WAKE,
            Operation::Copy => Ioctls::COPY,
            Operation::Zeropage => Ioctls::ZEROPAGE,
            Operation::Move => Ioctls::MOVE,
            Operation::WriteProtect => Ioctls::WRITEPROTECT,
            Operation::Continue => Ioctls::CONTINUE,
            Operation::Poison => Ioctls::POISON,
        }
    }

    /// The name of its ioctl, without the prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Wake => "WAKE",
            Operation::Copy => "COPY",
            Operation::Zeropage => "ZEROPAGE",
            Operation::Move => "MOVE",
            Operation::WriteProtect => "WRITEPROTECT",
            Operation::Continue => "CONTINUE",
            Operation::Poison => "POISON",
        }
    }
}

/// What came of trying an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trial {
    /// Nobody tried: the memory was not to be had.
    #[default]
    Untried,
    /// It did what it says.
    Works,
    /// It was refused.
    Fails(Errno),
}

/// What came of trying each operation on one kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trials([Trial; Operation::ALL.len()]);

impl Trials {
    /// Nothing was tried.
    pub const NONE: Trials = Trials([Trial::Untried; Operation::ALL.len()]);

    /// What came of `operation`.
    pub const fn get(&self, operation: Operation) -> Trial {
        self.0[operation as usize]
    }

    /// The same with what came of `operation`.
    #[must_use]
    pub const fn with(mut self, operation: Operation, trial: Trial) -> Trials {
        self.0[operation as usize] = trial;
        self
    }
}
