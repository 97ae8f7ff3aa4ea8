//! How many pages a fault asks for.

use std::collections::VecDeque;

use godwit_uffd::page::{PageIndex, PageRun};

use crate::limits::{FAULT_WALKS_MAX, WALK_GAP_PAGES_MAX};
use crate::page::Claims;

/// Asks for more than the faulting page where the guest walks through its memory.
///
/// A page that comes with the one asked for saves a round trip if the guest wants it next, and
/// otherwise keeps others waiting. Whether it will is told by what it did: a fault on the first
/// page that is missing behind an earlier fault and its window says that the guest has used them,
/// and the next window is twice as large. A fault anywhere else asks for its page alone. So
/// unrelated accesses cost nothing, and a walk soon asks for as many pages as it takes to be worth
/// the trip.
#[derive(Debug)]
pub struct FaultWindows {
    /// The largest window, in pages.
    most: u32,
    /// The latest first.
    walks: VecDeque<Walk>,
}

/// A guest on its way.
#[derive(Debug)]
struct Walk {
    /// The page behind those that were asked for.
    next: u64,
    /// The pages that were to be asked for.
    window: u32,
}

impl FaultWindows {
    /// Nothing is known of the guest. A fault asks for at most `most` pages.
    pub fn new(most: u32) -> FaultWindows {
        FaultWindows { most, walks: VecDeque::new() }
    }

    /// What to ask for because of a fault on `page`, which the caller has marked as requested in
    /// `claims`. Its window is marked, too: pages that are there, on their way, or asked for by
    /// somebody else end it.
    pub fn ask(&mut self, page: PageIndex, claims: &Claims) -> PageRun {
        let walk = self.walks.iter().position(|walk| walk.comes_to(page, claims));
        let walk = walk.and_then(|at| self.walks.remove(at));
        let window = walk.map_or(1, |walk| (walk.window * 2).min(self.most));
        let behind = (page.0 + 1..claims.page_count()).take(window as usize - 1);
        let more = behind.take_while(|&page| claims.request_ahead(PageIndex(page))).count();
        let run = PageRun { first: page, count: 1 + u32::try_from(more).expect("in the window") };
        self.walks.truncate(FAULT_WALKS_MAX - 1);
        self.walks.push_front(Walk { next: run.end(), window });
        run
    }
}

impl Walk {
    /// Whether everything from where the walk was up to `page` is there.
    fn comes_to(&self, page: PageIndex, claims: &Claims) -> bool {
        let gap = u64::from(page.0).checked_sub(self.next);
        let Some(gap) = gap.and_then(|gap| u32::try_from(gap).ok()) else { return false };
        gap <= WALK_GAP_PAGES_MAX
            && (page.0 - gap..page.0).all(|page| !claims.is_awaited(PageIndex(page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Class, Requested};

    struct Guest {
        claims: Claims,
        windows: FaultWindows,
    }

    impl Guest {
        fn new(pages: u32) -> Guest {
            Guest { claims: Claims::new(pages), windows: FaultWindows::new(16) }
        }

        /// A fault on a missing page: what is asked for.
        fn fault(&mut self, page: u32) -> PageRun {
            assert_eq!(self.claims.request(PageIndex(page)), Requested::Now);
            self.windows.ask(PageIndex(page), &self.claims)
        }

        fn installed(&self, run: PageRun) {
            self.claims.begin(run).unwrap();
            self.claims.finish(run, Class::Data, |_| {});
        }

        /// The numbers of pages that are asked for if the guest touches `pages` one by one.
        fn touch(&mut self, pages: impl IntoIterator<Item = u32>) -> Vec<u32> {
            let mut asked = Vec::new();
            for page in pages {
                if self.claims.is_awaited(PageIndex(page)) {
                    let run = self.fault(page);
                    self.installed(run);
                    asked.push(run.count);
                }
            }
            asked
        }
    }

    #[test]
    fn a_walk_asks_for_twice_as_many_each_time() {
        let mut guest = Guest::new(1000);
        assert_eq!(guest.touch(10..80), [1, 2, 4, 8, 16, 16, 16, 16]);
        // Each page was asked for once, and nothing before the first.
        assert_eq!(guest.claims.installed(Class::Data), 79);
        assert_eq!(guest.claims.received().runs().collect::<Vec<_>>().len(), 1);
    }

    #[test]
    fn unrelated_accesses_ask_for_one_page_each() {
        let mut guest = Guest::new(100_000);
        let mut seed = 1u32;
        let random = (0..500).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed % 100_000
        });
        let asked = guest.touch(random.collect::<Vec<_>>());
        assert!(asked.len() > 400 && asked.iter().all(|&pages| pages == 1), "{asked:?}");
        // Nor do strides, nor walks downward.
        assert!(Guest::new(1000).touch((0..1000).step_by(3)).iter().all(|&pages| pages == 1));
        assert!(Guest::new(1000).touch((0..1000).rev()).iter().all(|&pages| pages == 1));
    }

    #[test]
    fn a_walk_over_pages_that_came_unasked_is_one_still() {
        let mut guest = Guest::new(1000);
        guest.installed(PageRun { first: PageIndex(3), count: 61 });
        assert_eq!(guest.touch(0..70), [1, 2, 4, 8]);
        // Not so if one is missing that the guest has passed by.
        let mut guest = Guest::new(1000);
        assert_eq!(guest.touch([0, 1, 2, 5, 6]), [1, 2, 1, 2]);
    }

    #[test]
    fn a_window_ends_before_pages_that_are_there_or_asked_for_or_behind_the_last() {
        let mut guest = Guest::new(40);
        guest.installed(PageRun::one(PageIndex(9)));
        assert_eq!(guest.touch(0..9), [1, 2, 4, 2]);
        guest.fault(12);
        assert_eq!((guest.fault(10), guest.claims.missing()), (run(10, 2), 40 - 13));
        guest.installed(run(10, 3));
        assert_eq!(guest.touch(13..40), [16, 11]);
    }

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first: PageIndex(first), count }
    }

    #[test]
    fn walks_of_several_vcpus_are_told_apart_until_there_are_too_many() {
        let vcpus = u32::try_from(FAULT_WALKS_MAX).unwrap();
        for (vcpus, window) in [(vcpus, 16), (vcpus + 1, 1)] {
            let mut guest = Guest::new(vcpus * 1000);
            let mut last = Vec::new();
            for _ in 0..6 {
                last = (0..vcpus)
                    .map(|vcpu| {
                        let page = (vcpu * 1000..).find(|&p| guest.claims.is_awaited(PageIndex(p)));
                        guest.touch(page)[0]
                    })
                    .collect();
            }
            assert!(last.iter().all(|&pages| pages == window), "{last:?}");
        }
    }
}
