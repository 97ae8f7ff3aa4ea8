//! The order of the background push.

use godwit_uffd::page::{PageIndex, PageRun};

use crate::page::Sent;

/// Walks over what is not sent: upward from just behind the latest fault, around the end to the
/// start. A guest that walks through its memory then finds the pages ahead of it on their way.
#[derive(Debug)]
pub struct PushOrder {
    /// Pages that are taken at once.
    group: u32,
    groups: u32,
    next: u32,
    left: u32,
}

impl PushOrder {
    /// Every page of `sent` from the first, at most `group` of them at once, which divides 64.
    pub fn new(sent: &Sent, group: u32) -> PushOrder {
        assert!(group > 0 && 64 % group == 0, "{group}");
        let groups = sent.page_count().div_ceil(group);
        PushOrder { group, groups, next: 0, left: groups }
    }

    /// The pages to send now, taken from `sent`: runs within one group, or `None` at the end.
    /// `fault` is the latest page that was asked for, if one was since the call before.
    pub fn next(&mut self, sent: &Sent, fault: Option<PageIndex>) -> Option<Vec<PageRun>> {
        if let Some(page) = fault {
            self.next = page.0 / self.group;
            self.left = self.groups;
        }
        while self.left > 0 {
            let first = PageIndex(self.next * self.group);
            self.next = (self.next + 1) % self.groups;
            self.left -= 1;
            let taken = sent.take_group(PageRun { first, count: self.group });
            if taken != 0 {
                return Some(runs(first, taken).collect());
            }
        }
        None
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

    fn drain(order: &mut PushOrder, sent: &Sent) -> Vec<PageRun> {
        std::iter::from_fn(|| order.next(sent, None)).flatten().collect()
    }

    #[test]
    fn every_page_that_is_left_is_pushed_once() {
        let sent = Sent::new(200);
        for page in [0, 63, 64, 130, 131] {
            sent.take(PageIndex(page));
        }
        let mut order = PushOrder::new(&sent, 64);
        let pushed: Vec<u32> =
            drain(&mut order, &sent).into_iter().flat_map(|run| run.pages().map(|p| p.0)).collect();
        let expected: Vec<u32> = (0..200).filter(|p| ![0, 63, 64, 130, 131].contains(p)).collect();
        assert_eq!(pushed, expected);
        assert_eq!(sent.remaining(), 0);
    }

    #[test]
    fn the_push_goes_on_behind_a_fault_and_comes_round() {
        let sent = Sent::new(256);
        let mut order = PushOrder::new(&sent, 64);
        let first = order.next(&sent, Some(PageIndex(140))).unwrap();
        assert_eq!(first, [PageRun { first: PageIndex(128), count: 64 }]);
        let rest: Vec<u32> = drain(&mut order, &sent).iter().map(|run| run.first.0).collect();
        assert_eq!(rest, [192, 0, 64]);
    }

    #[test]
    fn huge_pages_are_taken_one_by_one_from_behind_a_fault() {
        let sent = Sent::new(70);
        let mut order = PushOrder::new(&sent, 1);
        assert!(sent.take(PageIndex(67)));
        let first = order.next(&sent, Some(PageIndex(67))).unwrap();
        assert_eq!((first, sent.remaining()), (vec![PageRun::one(PageIndex(68))], 68));
        let rest: Vec<u32> = drain(&mut order, &sent).iter().map(|run| run.first.0).collect();
        assert_eq!(rest, [69].into_iter().chain(0..67).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_word_is_one_run() {
        assert_eq!(
            runs(PageIndex(64), u64::MAX).collect::<Vec<_>>(),
            [PageRun { first: PageIndex(64), count: 64 }]
        );
    }
}
