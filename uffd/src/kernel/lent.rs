//! The memory that was lent to a userfaultfd: what it may register, move from and give up.

use std::ops;

use crate::uffd::Range;

/// A set of addresses, as ranges in order that neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Lent(Vec<ops::Range<u64>>);

impl Lent {
    pub fn add(&mut self, range: Range) {
        let Some(mut added) = extent(range) else { return };
        self.0.retain(|old| {
            let apart = old.end < added.start || added.end < old.start;
            if !apart {
                added = added.start.min(old.start)..added.end.max(old.end);
            }
            apart
        });
        let at = self.0.partition_point(|old| old.start < added.start);
        self.0.insert(at, added);
    }

    pub fn remove(&mut self, range: Range) {
        let Some(removed) = extent(range) else { return };
        let rest = self.0.drain(..).flat_map(|old| {
            let before = old.start..old.end.min(removed.start);
            let behind = old.start.max(removed.end)..old.end;
            [before, behind]
        });
        self.0 = rest.filter(|part| part.start < part.end).collect();
    }

    /// All of the range is lent.
    pub fn has(&self, range: Range) -> bool {
        extent(range).is_some_and(|asked| {
            self.0.iter().any(|lent| lent.start <= asked.start && asked.end <= lent.end)
        })
    }
}

/// None for an empty range and one that leaves the address space.
fn extent(range: Range) -> Option<ops::Range<u64>> {
    let end = range.start.0.checked_add(range.bytes)?;
    (range.bytes > 0).then_some(range.start.0..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Hva;

    fn range(start: u64, bytes: u64) -> Range {
        Range { start: Hva(start), bytes }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let mut lent = Lent::default();
        lent.add(range(30, 10));
        lent.add(range(10, 10));
        assert!(!lent.has(range(10, 30)));
        lent.add(range(15, 15));
        assert!(lent.has(range(10, 30)));
        assert_eq!(lent.0.len(), 1);
    }

    #[test]
    fn what_is_taken_back_is_not_lent() {
        let mut lent = Lent::default();
        lent.add(range(0, 100));
        lent.remove(range(40, 20));
        assert!(lent.has(range(0, 40)) && lent.has(range(60, 40)));
        assert!(!lent.has(range(39, 2)) && !lent.has(range(40, 20)) && !lent.has(range(0, 100)));
        lent.remove(range(0, 1000));
        assert!(lent.0.is_empty());
    }

    #[test]
    fn impossible_ranges_are_never_lent() {
        let mut lent = Lent::default();
        lent.add(range(u64::MAX, 2));
        lent.add(range(5, 0));
        assert!(lent.0.is_empty());
        lent.add(range(0, 100));
        assert!(!lent.has(range(5, 0)) && !lent.has(range(u64::MAX, 2)));
    }
}
