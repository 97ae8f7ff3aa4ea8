//! How the memory of a guest is counted in pages.

use godwit_uffd::page::PageSize;

/// The pages of a guest: how many, and of which size. A page is what is asked for, sent, installed
/// and noted as written; nothing smaller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The size of each page.
    pub size: PageSize,
    /// The number of pages.
    pub count: u32,
}

impl Paging {
    /// `count` base pages.
    pub const fn base(count: u32) -> Paging {
        Paging { size: PageSize::BASE, count }
    }

    /// The bytes of all pages.
    pub const fn bytes(self) -> u64 {
        self.size.bytes_of(self.count)
    }
}
