//! The order of the background push.

use std::collections::VecDeque;
use std::sync::Arc;

use godwit_uffd::page::{PageIndex, PageRun};

use crate::limits::{PUSH_AHEAD_GROUPS_MAX, PUSH_WALKS_MAX};
use crate::page::{PageSet, Sent};

/// Says what is pushed next, in groups of pages that one run may have, of what is not sent:
///
/// 1. what lies around the latest faults: the group of each and, for a guest that walks through its
///    memory, as many groups ahead of it as it has lately come to;
/// 2. what the guest wrote last before the switchover, which it is likely to need first;
/// 3. the rest, upward from behind the latest fault, around the end to the start.
#[derive(Debug)]
pub struct PushOrder {
    /// Pages of a group.
    group_pages: u32,
    /// The latest first.
    walks: VecDeque<Walk>,
    written: Arc<PageSet>,
    written_groups: Lap,
    groups: Lap,
}

/// A fault, and what is pushed because of it.
#[derive(Debug)]
struct Walk {
    begin: u32,
    /// Groups from `begin` on.
    reach: u32,
    /// Those of them that are pushed.
    pushed: u32,
}

/// Each of so many groups once, from any of them on.
#[derive(Debug)]
struct Lap {
    groups: u32,
    next: u32,
    left: u32,
}

impl Lap {
    fn new(groups: u32) -> Lap {
        Lap { groups, next: 0, left: groups }
    }

    fn restart_at(&mut self, group: u32) {
        (self.next, self.left) = (group, self.groups);
    }
}

impl Iterator for Lap {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let group = self.next;
        self.next = (group + 1) % self.groups;
        Some(group)
    }
}

impl PushOrder {
    /// An order for the pages of `sent`, of which the guest wrote `written` last. A group has
    /// `group_pages` pages, which divide 64.
    pub fn new(sent: &Sent, group_pages: u32, written: Arc<PageSet>) -> PushOrder {
        assert!(group_pages > 0 && u64::BITS.is_multiple_of(group_pages), "{group_pages}");
        assert!(written.page_count() <= sent.page_count(), "pages of another guest");
        let groups = |pages: u32| Lap::new(pages.div_ceil(group_pages));
        PushOrder {
            group_pages,
            walks: VecDeque::new(),
            written_groups: groups(written.page_count()),
            written,
            groups: groups(sent.page_count()),
        }
    }

    /// The guest wants `page`, one of its pages.
    pub fn fault_at(&mut self, page: PageIndex) {
        let group = page.0 / self.group_pages;
        let reached =
            |walk: &Walk| group.checked_sub(walk.begin).is_some_and(|ahead| ahead <= walk.reach);
        let walk = self.walks.iter().position(reached).and_then(|at| self.walks.remove(at));
        let reach = match walk {
            Some(walk) if walk.begin == group => walk.reach,
            Some(walk) => (walk.reach * 2).min(PUSH_AHEAD_GROUPS_MAX),
            None => 1,
        };
        self.walks.truncate(PUSH_WALKS_MAX - 1);
        self.walks.push_front(Walk { begin: group, reach, pushed: 0 });
        self.groups.restart_at(group);
    }

    /// The pages to send now, taken from `sent`: runs within one group, or `None` at the end.
    pub fn next(&mut self, sent: &Sent) -> Option<Vec<PageRun>> {
        while let Some((group, wanted)) = self.next_group() {
            let first = PageIndex(group * self.group_pages);
            let taken = sent.take_of_group(PageRun { first, count: self.group_pages }, wanted);
            if taken != 0 {
                return Some(runs(first, taken).collect());
            }
        }
        None
    }

    /// A group, and which of its pages are wanted.
    fn next_group(&mut self) -> Option<(u32, u64)> {
        if let Some(group) = self.next_near() {
            return Some((group, u64::MAX));
        }
        if let Some(group) = self.written_groups.next() {
            let first = group * self.group_pages;
            let word = self.written.words()[(first / u64::BITS) as usize];
            return Some((group, word >> (first % u64::BITS)));
        }
        self.groups.next().map(|group| (group, u64::MAX))
    }

    fn next_near(&mut self) -> Option<u32> {
        let groups = self.groups.groups;
        let goes_on = |walk: &&mut Walk| walk.pushed < walk.reach.min(groups - walk.begin);
        let walk = self.walks.iter_mut().find(goes_on)?;
        walk.pushed += 1;
        Some(walk.begin + walk.pushed - 1)
    }
}

/// The runs of set bits in `taken`, whose lowest bit stands for `first`.
fn runs(first: PageIndex, mut taken: u64) -> impl Iterator<Item = PageRun> {
    std::iter::from_fn(move || {
        if taken == 0 {
            return None;
        }
        let start = taken.trailing_zeros();
        let count = (taken >> start).trailing_ones();
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << start };
        taken &= !mask;
        Some(PageRun { first: PageIndex(first.0 + start), count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(sent: &Sent, written: &[u32]) -> PushOrder {
        let mut set = PageSet::empty(sent.page_count());
        written.iter().for_each(|&page| set.insert(PageIndex(page)));
        PushOrder::new(sent, 64, Arc::new(set))
    }

    /// The next `calls` answers: first page and count of each run.
    fn pushed(order: &mut PushOrder, sent: &Sent, calls: usize) -> Vec<(u32, u32)> {
        let runs = std::iter::from_fn(|| order.next(sent)).take(calls).flatten();
        runs.map(|run| (run.first.0, run.count)).collect()
    }

    #[test]
    fn every_page_that_is_left_is_pushed_once() {
        let sent = Sent::new(200);
        for page in [0, 63, 64, 130, 131] {
            sent.take(PageIndex(page));
        }
        let mut order = order(&sent, &[64, 65, 66, 199]);
        order.fault_at(PageIndex(140));
        let runs = pushed(&mut order, &sent, usize::MAX).into_iter();
        let mut pages: Vec<u32> = runs.flat_map(|(first, count)| first..first + count).collect();
        pages.sort_unstable();
        let expected: Vec<u32> = (0..200).filter(|p| ![0, 63, 64, 130, 131].contains(p)).collect();
        assert_eq!(pages, expected);
        assert_eq!(sent.remaining(), 0);
    }

    #[test]
    fn without_anything_else_the_push_goes_on_behind_a_fault_and_comes_round() {
        let sent = Sent::new(256);
        let mut order = PushOrder::new(&sent, 64, Arc::new(PageSet::empty(0)));
        order.fault_at(PageIndex(140));
        assert_eq!(
            pushed(&mut order, &sent, usize::MAX),
            [(128, 64), (192, 64), (0, 64), (64, 64)]
        );
    }

    #[test]
    fn what_was_written_last_comes_behind_a_fault_and_before_the_rest() {
        let sent = Sent::new(64 * 5);
        let mut order = order(&sent, &[3, 4, 9, 70, 257]);
        order.fault_at(PageIndex(130));
        assert_eq!(
            pushed(&mut order, &sent, 6),
            [(128, 64), (3, 2), (9, 1), (70, 1), (257, 1), (192, 64), (256, 1), (258, 62)]
        );
        let left = sent.left();
        assert_eq!(left.len(), 128 - 4);
        assert!(left.runs().all(|run| run.end() <= 128));
    }

    #[test]
    fn a_guest_that_walks_is_pushed_ahead_of_twice_as_far_each_time() {
        let sent = Sent::new(64 * 1000);
        let mut order = order(&sent, &[64 * 900]);
        let mut ahead = Vec::new();
        let mut group = 100;
        for _ in 0..8 {
            order.fault_at(PageIndex(group * 64 + 5));
            let reach = order.walks[0].reach;
            let near = pushed(&mut order, &sent, reach as usize);
            let expected = (group..group + reach).map(|group| (group * 64, 64));
            assert_eq!(near, expected.collect::<Vec<_>>());
            ahead.push(reach);
            group += reach;
        }
        assert_eq!(ahead, [1, 2, 4, 8, 16, 32, 64, PUSH_AHEAD_GROUPS_MAX]);
        // Then comes what was written, although the walk has not ended.
        assert_eq!(pushed(&mut order, &sent, 1), [(64 * 900, 1)]);
    }

    #[test]
    fn unrelated_faults_reach_no_further_than_their_group() {
        let sent = Sent::new(64 * 100);
        let mut order = order(&sent, &[64 * 7 + 1]);
        for group in [50, 20, 80, 10] {
            order.fault_at(PageIndex(group * 64));
        }
        // The latest first.
        let groups = [10, 80, 20, 50].map(|group| (group * 64, 64));
        assert_eq!(pushed(&mut order, &sent, 4), groups);
        assert_eq!(pushed(&mut order, &sent, 2), [(64 * 7 + 1, 1), (64 * 11, 64)]);
    }

    #[test]
    fn walks_of_several_vcpus_do_not_disturb_each_other() {
        let sent = Sent::new(64 * 200);
        let mut order = order(&sent, &[]);
        for step in 0..3 {
            order.fault_at(PageIndex((10 + step) * 64));
            order.fault_at(PageIndex((150 + step) * 64));
        }
        assert_eq!(order.walks.iter().map(|walk| walk.reach).collect::<Vec<_>>(), [4, 4]);
        // The oldest is forgotten.
        for walk in 0..u32::try_from(PUSH_WALKS_MAX).unwrap() {
            order.fault_at(PageIndex((30 + walk * 3) * 64));
        }
        assert_eq!(order.walks.len(), PUSH_WALKS_MAX);
    }

    #[test]
    fn a_walk_ends_where_memory_does() {
        let sent = Sent::new(64 * 3);
        let mut order = order(&sent, &[]);
        for group in [0, 1, 2] {
            order.fault_at(PageIndex(group * 64));
        }
        assert_eq!(pushed(&mut order, &sent, usize::MAX), [(128, 64), (0, 64), (64, 64)]);
    }

    #[test]
    fn huge_pages_are_taken_one_by_one_in_the_same_order() {
        let (sent, mut written) = (Sent::new(70), PageSet::empty(70));
        [3, 66, 68].into_iter().for_each(|page| written.insert(PageIndex(page)));
        let mut order = PushOrder::new(&sent, 1, Arc::new(written));
        assert!(sent.take(PageIndex(66)));
        order.fault_at(PageIndex(66));
        order.fault_at(PageIndex(67));
        // The walk is two ahead, then come those that were written, then those behind the fault.
        assert_eq!(pushed(&mut order, &sent, 4), [(67, 1), (68, 1), (3, 1), (69, 1)]);
        let rest = pushed(&mut order, &sent, usize::MAX);
        assert_eq!(
            rest,
            (0..66).filter(|&page| page != 3).map(|page| (page, 1)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_full_word_is_one_run() {
        assert_eq!(
            runs(PageIndex(64), u64::MAX).collect::<Vec<_>>(),
            [PageRun { first: PageIndex(64), count: 64 }]
        );
    }
}
