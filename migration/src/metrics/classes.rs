//! Pages and bytes by how they travelled.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::wire::{Encoding, RunHead};

/// What travelled in one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Pages.
    pub pages: u64,
    /// Bytes of their frames, heads included.
    pub bytes: u64,
}

/// What travelled, sent or received, by how it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Pages of zeros, without contents.
    pub zero: ClassCount,
    /// Pages of one repeated word.
    pub word: ClassCount,
    /// Pages that were packed with lz4.
    pub lz4: ClassCount,
    /// Pages as they are.
    pub raw: ClassCount,
    /// Pages that the source could not read, without contents.
    pub poisoned: ClassCount,
    /// Pages that both sides have in their base, without contents.
    pub same: ClassCount,
}

impl Classes {
    /// Pages with contents of some kind, wherever those came from.
    pub fn data_pages(&self) -> u64 {
        self.word.pages + self.lz4.pages + self.raw.pages + self.same.pages
    }
}

/// The counters behind [`Classes`], by the number of the encoding.
#[derive(Debug, Default)]
pub(super) struct ClassCounters([[AtomicU64; 2]; Encoding::ALL.len()]);

impl ClassCounters {
    pub fn add(&self, head: &RunHead) {
        let [pages, bytes] = &self.0[head.encoding as usize];
        pages.fetch_add(head.run.count.into(), Ordering::Relaxed);
        bytes.fetch_add(head.wire_bytes() as u64, Ordering::Relaxed);
    }

    pub fn read(&self) -> Classes {
        let count = |encoding: Encoding| {
            let [pages, bytes] = &self.0[encoding as usize];
            let (pages, bytes) = (pages.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
            ClassCount { pages, bytes }
        };
        Classes {
            zero: count(Encoding::Zero),
            word: count(Encoding::Word),
            lz4: count(Encoding::Lz4),
            raw: count(Encoding::Raw),
            poisoned: count(Encoding::Poison),
            same: count(Encoding::Same),
        }
    }
}

#[cfg(test)]
mod tests {
    use godwit_uffd::page::{PageIndex, PageRun, PageSize};

    use super::*;

    #[test]
    fn each_run_is_counted_where_it_belongs() {
        let counters = ClassCounters::default();
        let run = |count| PageRun { first: PageIndex(0), count };
        counters.add(&RunHead::new(PageSize::BASE, run(5), Encoding::Zero, &[]));
        counters.add(&RunHead::new(PageSize::BASE, run(2), Encoding::Word, &[1; 8]));
        counters.add(&RunHead::new(PageSize::BASE, run(2), Encoding::Lz4, &[1; 100]));
        counters.add(&RunHead::new(PageSize::BASE, run(1), Encoding::Lz4, &[1; 50]));
        counters.add(&RunHead::new(PageSize::BASE, run(1), Encoding::Raw, &[1; 4096]));
        counters.add(&RunHead::new(PageSize::BASE, run(7), Encoding::Poison, &[]));
        counters.add(&RunHead::same(PageSize::BASE, run(3), &[9; 3 * 4096]));
        let count = |pages, bytes| ClassCount { pages, bytes };
        let (zero, word, lz4) = (count(5, 32), count(2, 40), count(3, 214));
        let (raw, poisoned) = (count(1, 4128), count(7, 32));
        let classes = counters.read();
        let same = count(3, 32);
        assert_eq!(classes, Classes { zero, word, lz4, raw, poisoned, same });
        assert_eq!(classes.data_pages(), 9);
    }
}
