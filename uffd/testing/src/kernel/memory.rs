//! Mappings, and the numbers of the calls on them.

use std::os::fd::{AsRawFd, RawFd};

use godwit_uffd::abi::Errno;

use super::files::HUGE;
use super::syscall::checked;
use super::{KernelWorld, PAGE, host};
use crate::world::{Access, Advice, Backing, Mapping, Process, Remap};

/// Where the test's own mappings begin: far from the program, its heap and its libraries.
pub(super) const WINDOW: u64 = 0x2000_0000_0000;

/// `log2` of a huge page in the upper bits of the flags of mmap.
pub(super) const HUGE_2MB: i32 = 21 << 26;

impl KernelWorld {
    pub(super) fn map_memory(&mut self, process: Process, map: Mapping) -> Result<u64, Errno> {
        let at = self.agent(process);
        let length = map.pages * PAGE;
        let place = map.at.unwrap_or_else(|| self.place_for(length));
        // The descriptor of a file that was opened for this mapping only lives to the end of it.
        let opened;
        let (kind, descriptor, offset): (i32, RawFd, u64) = match map.backing {
            Backing::Anonymous | Backing::TransparentHuge => {
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
            }
            Backing::SharedAnonymous => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
            Backing::Hugetlb => {
                let huge = libc::MAP_HUGETLB | HUGE_2MB;
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge, -1, 0)
            }
            Backing::File { file, page, shared, read_only_descriptor } => {
                let file = self.file(file);
                let mut descriptor = file.descriptor();
                if read_only_descriptor {
                    opened = file.read_only().expect("the file once more");
                    descriptor = opened.as_raw_fd();
                }
                let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
                (kind, descriptor, page * PAGE)
            }
        };
        let fixed = if map.at.is_some() { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
        let flags = u64::from((kind | fixed).cast_unsigned());
        let descriptor = i64::from(descriptor).cast_unsigned();
        let words = [place, length, protection(map.access), flags, descriptor, offset];
        let address = checked(self.agents.call(at, libc::SYS_mmap, words))?;
        self.advise_at_birth(at, map.backing, address, length);
        Ok(address)
    }

    /// Where the next mapping goes that may go anywhere.
    pub(super) fn place_for(&mut self, length: u64) -> u64 {
        let place = self.next;
        // The next one is aligned too, with at least one unmapped huge page in between.
        self.next += length.next_multiple_of(HUGE) + HUGE;
        place
    }

    /// Huge pages where they are asked for, and nowhere else, whatever the host's default is.
    fn advise_at_birth(&mut self, at: usize, backing: Backing, address: u64, length: u64) {
        let advice = match backing {
            Backing::TransparentHuge => Advice::HugePage,
            Backing::Anonymous if host::transparent() == Ok(true) => Advice::NoHugePage,
            _ => return,
        };
        let words = [address, length, advice_number(advice), 0, 0, 0];
        let done = self.agents.call(at, libc::SYS_madvise, words);
        assert_eq!(done, 0, "{advice:?} of fresh memory");
    }
}

/// The bits of mmap and mprotect.
pub(super) fn protection(access: Access) -> u64 {
    let bits = match access {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    u64::from(bits.cast_unsigned())
}

/// The number of an advice.
pub(super) fn advice_number(advice: Advice) -> u64 {
    match advice {
        Advice::DontNeed => 4,
        Advice::Free => 8,
        Advice::Remove => 9,
        Advice::Mergeable => 12,
        Advice::HugePage => 14,
        Advice::NoHugePage => 15,
        Advice::PageOut => 21,
        Advice::PopulateRead => 22,
        Advice::PopulateWrite => 23,
        Advice::Collapse => 25,
        Advice::GuardInstall => 102,
        Advice::GuardRemove => 103,
    }
}

/// The flags of mremap.
pub(super) fn remap_flags(remap: Remap) -> u64 {
    let mut flags = libc::MREMAP_MAYMOVE;
    if remap.to.is_some() {
        flags |= libc::MREMAP_FIXED;
    }
    if remap.dont_unmap {
        flags |= libc::MREMAP_DONTUNMAP;
    }
    u64::from(flags.cast_unsigned())
}
