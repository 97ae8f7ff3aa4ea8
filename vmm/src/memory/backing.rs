//! What guest memory is made of.

use godwit_uffd::MemoryKind;
use godwit_uffd::page::PageSize;
use serde::{Deserialize, Serialize};

/// What guest memory is made of. A guest takes it along: the variants keep their order, because
/// their numbers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory; huge pages where the kernel has them.
    Anon,
    /// A memfd, mapped shared.
    Memfd,
    /// Private anonymous memory of huge pages from the pool.
    HugetlbAnon,
    /// A memfd of huge pages from the pool, mapped shared.
    HugetlbMemfd,
}

impl Backing {
    /// All of them.
    pub const ALL: [Backing; 4] =
        [Backing::Anon, Backing::Memfd, Backing::HugetlbAnon, Backing::HugetlbMemfd];

    /// The one that is a file or not, of pages of this size.
    pub fn of(file: bool, page_size: PageSize) -> Backing {
        let same = |kind: MemoryKind| kind.is_file() == file && kind.page_size() == page_size;
        let found = Backing::ALL.into_iter().find(|backing| same(backing.kind()));
        found.expect("there are both for each size")
    }

    /// The same, as userfaultfd tells it apart.
    pub const fn kind(self) -> MemoryKind {
        match self {
            Backing::Anon => MemoryKind::Anonymous,
            Backing::Memfd => MemoryKind::Memfd,
            Backing::HugetlbAnon => MemoryKind::HugetlbAnonymous,
            Backing::HugetlbMemfd => MemoryKind::HugetlbMemfd,
        }
    }

    /// The size of the pages in which such memory is moved, and noted as written.
    pub const fn page_size(self) -> PageSize {
        self.kind().page_size()
    }
}

/// A size of pages as `--page-size` takes it.
pub const fn page_size_word(size: PageSize) -> &'static str {
    if size.bytes() == PageSize::HUGE.bytes() { "2M" } else { "4K" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backing_is_told_by_what_it_is() {
        for backing in Backing::ALL {
            assert_eq!(Backing::of(backing.kind().is_file(), backing.page_size()), backing);
        }
    }

    #[test]
    fn the_numbers_that_travel_stay() {
        for (number, backing) in (0..).zip(Backing::ALL) {
            assert_eq!(postcard::to_stdvec(&backing).unwrap(), [number]);
        }
    }
}
