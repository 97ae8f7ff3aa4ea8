//! How each operation is done on each kind of memory: by the kernel's call, by something that
//! stands in for it, or not at all.
//!
//! Decided once, when memory is registered, from what was found out by asking and trying; never
//! from the version of the kernel, because kernels carry backports. A stand-in is used only where
//! its result is the same; everything else is refused by name, because a guest whose lost page
//! reads as zeros is worse off than one that was told.

use std::fmt;

use crate::features::{Features, Ioctls, RegisterMode};
use crate::memory::MemoryKind;
use crate::trial::{Operation, Trial, Trials};

/// How the operations on one kind of memory are done. COPY and WAKE are always the kernel's:
/// without them there is no userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods {
    /// How zeros are installed.
    pub zero: Zero,
    /// Whether pages of the page cache can be mapped.
    pub map_cached: Support,
    /// Whether pages can be marked as lost.
    pub poison: Support,
    /// How pages are moved.
    pub moving: Moving,
    /// How pages are write-protected.
    pub protecting: Protecting,
}

/// Whether something without a stand-in is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// By the kernel's call.
    Direct,
    /// Not, for this reason.
    Refused(&'static str),
}

/// How zeros are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// By ZEROPAGE.
    Zeropage,
    /// By COPY, of zeros: hugetlb has no zero page.
    CopyZeros,
}

/// How pages are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// By MOVE (Linux 6.8), which wants anonymous memory on both sides.
    Move,
    /// By COPY from a staging area, whose pages are given up. Pages of the guest itself are not
    /// moved.
    CopyAndGiveUp,
}

/// How pages are write-protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protecting {
    /// By WRITEPROTECT.
    Direct,
    /// Pages that do not exist cannot be protected (before Linux 6.4): zeros are installed first.
    PopulateFirst,
    /// Not, for this reason.
    Refused(&'static str),
}

impl Methods {
    /// Decides for memory of `kind` that was registered for `mode`: `enabled` are the features
    /// that were negotiated, `mask` is what the registration reports, `trials` is what trying has
    /// told, which counts for more.
    pub fn decide(
        kind: MemoryKind,
        mode: RegisterMode,
        enabled: Features,
        mask: Ioctls,
        trials: Trials,
    ) -> Methods {
        let has = |operation: Operation| match trials.get(operation) {
            Trial::Works => true,
            Trial::Fails(_) => false,
            Trial::Untried => mask.contains(operation.ioctl()),
        };
        let or_refused = |has, reason| if has { Support::Direct } else { Support::Refused(reason) };
        Methods {
            zero: if has(Operation::Zeropage) && !kind.is_hugetlb() {
                Zero::Zeropage
            } else {
                Zero::CopyZeros
            },
            map_cached: if kind.is_file() {
                or_refused(has(Operation::Continue), "this kernel lacks it for such memory")
            } else {
                Support::Refused("anonymous memory has no page cache")
            },
            poison: or_refused(has(Operation::Poison), "this kernel lacks it (Linux 6.6 has it)"),
            moving: if has(Operation::Move) && kind == MemoryKind::Anonymous {
                Moving::Move
            } else {
                Moving::CopyAndGiveUp
            },
            protecting: protecting(kind, mode, enabled, has(Operation::WriteProtect)),
        }
    }

    /// Each operation with how it is done, for people.
    pub fn in_words(&self) -> [(&'static str, String); 6] {
        let support = |call: &str, support| match support {
            Support::Direct => call.to_owned(),
            Support::Refused(reason) => format!("refused: {reason}"),
        };
        let zero = match self.zero {
            Zero::Zeropage => "ZEROPAGE",
            Zero::CopyZeros => "COPY of zeros",
        };
        let moving = match self.moving {
            Moving::Move => "MOVE",
            Moving::CopyAndGiveUp => "COPY, and the source is given up",
        };
        let protecting = match self.protecting {
            Protecting::Direct => "WRITEPROTECT".to_owned(),
            Protecting::PopulateFirst => "ZEROPAGE, then WRITEPROTECT".to_owned(),
            Protecting::Refused(reason) => format!("refused: {reason}"),
        };
        [
            ("copy", "COPY".to_owned()),
            ("zero", zero.to_owned()),
            ("continue", support("CONTINUE", self.map_cached)),
            ("poison", support("POISON", self.poison)),
            ("move", moving.to_owned()),
            ("protect", protecting),
        ]
    }
}

/// Missing pages of memory that is registered for them need no mark: their first access is
/// reported anyway. Shared memory and hugetlb have a mark since they can be protected at all.
fn protecting(kind: MemoryKind, mode: RegisterMode, enabled: Features, has: bool) -> Protecting {
    let unmarked = kind == MemoryKind::Anonymous
        && !mode.contains(RegisterMode::MISSING)
        && !enabled.contains(Features::WP_UNPOPULATED);
    if !mode.contains(RegisterMode::WRITE_PROTECT) {
        Protecting::Refused("the memory is not registered for it")
    } else if !has {
        Protecting::Refused("this kernel lacks it for such memory")
    } else if unmarked {
        Protecting::PopulateFirst
    } else {
        Protecting::Direct
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (operation, method)) in self.in_words().into_iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{operation} by {method}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Errno;

    const BOTH: RegisterMode = RegisterMode::MISSING.union(RegisterMode::WRITE_PROTECT);

    fn decide(kind: MemoryKind, mode: RegisterMode, mask: u64, trials: Trials) -> Methods {
        Methods::decide(kind, mode, Features::empty(), Ioctls::from_bits_retain(mask), trials)
    }

    #[test]
    fn a_kernel_that_has_everything_needs_no_stand_in() {
        let methods = decide(MemoryKind::Anonymous, BOTH, 0x17c, Trials::NONE);
        assert_eq!(methods.zero, Zero::Zeropage);
        assert_eq!(methods.moving, Moving::Move);
        assert_eq!(methods.poison, Support::Direct);
        assert_eq!(methods.protecting, Protecting::Direct);
        assert!(matches!(methods.map_cached, Support::Refused(_)));
    }

    #[test]
    fn an_old_kernel_is_stood_in_for_where_that_is_the_same() {
        let old = decide(MemoryKind::Anonymous, BOTH, 0x05c, Trials::NONE);
        assert_eq!(old.moving, Moving::CopyAndGiveUp);
        assert!(matches!(old.poison, Support::Refused(reason) if reason.contains("6.6")));
    }

    #[test]
    fn memory_has_its_nature_whatever_the_kernel_reports() {
        let all = u64::MAX;
        let hugetlb = decide(MemoryKind::HugetlbAnonymous, BOTH, all, Trials::NONE);
        assert_eq!((hugetlb.zero, hugetlb.moving), (Zero::CopyZeros, Moving::CopyAndGiveUp));
        let memfd = decide(MemoryKind::Memfd, BOTH, all, Trials::NONE);
        assert_eq!((memfd.map_cached, memfd.moving), (Support::Direct, Moving::CopyAndGiveUp));
    }

    #[test]
    fn trying_counts_for_more_than_what_is_reported() {
        let refused = Trial::Fails(Errno(22));
        let trials = Trials::NONE
            .with(Operation::Zeropage, refused)
            .with(Operation::Poison, Trial::Works)
            .with(Operation::Continue, Trial::Works);
        let methods = decide(MemoryKind::Memfd, BOTH, 0x07c, trials);
        assert_eq!(methods.zero, Zero::CopyZeros);
        assert_eq!((methods.poison, methods.map_cached), (Support::Direct, Support::Direct));
    }

    #[test]
    fn holes_are_populated_only_where_nothing_else_reports_them() {
        let alone = RegisterMode::WRITE_PROTECT;
        let methods = |kind, mode| decide(kind, mode, 0x17c, Trials::NONE).protecting;
        assert_eq!(methods(MemoryKind::Anonymous, alone), Protecting::PopulateFirst);
        assert_eq!(methods(MemoryKind::Anonymous, BOTH), Protecting::Direct);
        assert_eq!(methods(MemoryKind::Memfd, alone), Protecting::Direct);
        let missing = methods(MemoryKind::Anonymous, RegisterMode::MISSING);
        assert!(matches!(missing, Protecting::Refused(_)));
        let marks = Features::WP_UNPOPULATED;
        let (kind, mask) = (MemoryKind::Anonymous, Ioctls::all());
        let methods = Methods::decide(kind, alone, marks, mask, Trials::NONE);
        assert_eq!(methods.protecting, Protecting::Direct);
    }

    #[test]
    fn it_prints_one_line() {
        let methods = decide(MemoryKind::HugetlbAnonymous, BOTH, 0x04c, Trials::NONE);
        let text = methods.to_string();
        assert!(
            text.starts_with("copy by COPY; zero by COPY of zeros; continue by refused"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
