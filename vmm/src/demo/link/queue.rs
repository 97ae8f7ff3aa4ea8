//! What is under way in one direction of a connection.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What arrives at the other end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Bytes of the stream.
    Bytes(Vec<u8>),
    /// Its end; the other direction goes on.
    End,
    /// The connection breaks here.
    Cut,
}

/// Items in order, each with the time at which it arrives.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<(Instant, Item)>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// An empty queue, which takes no more while it holds `bytes_max`.
    pub fn new(bytes_max: usize) -> Queue {
        Queue { bytes_max, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item when there is room. False if the queue was closed.
    pub fn push(&self, item: Item, arrives: Instant) -> bool {
        let mut state = self.state();
        while state.bytes >= self.bytes_max && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Item::Bytes(bytes) = &item {
            state.bytes += bytes.len();
        }
        state.items.push_back((arrives, item));
        self.changed.notify_all();
        !state.closed
    }

    /// Waits for the next item to arrive; `None` when the queue is closed.
    pub fn pop(&self) -> Option<Item> {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let arrives = state.items.front().map(|(arrives, _)| *arrives);
            state = match arrives {
                _ if state.closed => return None,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(arrives) if arrives > now => {
                    let waited = self.changed.wait_timeout(state, arrives - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => break,
            };
        }
        let (_, item) = state.items.pop_front()?;
        if let Item::Bytes(bytes) = &item {
            state.bytes -= bytes.len();
        }
        self.changed.notify_all();
        Some(item)
    }

    /// Waits until `time`. False if the queue was closed.
    pub fn wait_until(&self, time: Instant) -> bool {
        let mut state = self.state();
        while !state.closed {
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.closed
    }

    /// Everybody who waits returns; what is under way is lost.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn items_arrive_in_order_and_not_before_their_time() {
        let queue = Queue::new(1 << 20);
        let later = Instant::now() + Duration::from_millis(5);
        assert!(queue.push(Item::Bytes(vec![1]), later));
        assert!(queue.push(Item::End, Instant::now()));
        assert_eq!(queue.pop(), Some(Item::Bytes(vec![1])));
        assert!(Instant::now() >= later);
        assert_eq!(queue.pop(), Some(Item::End));
    }

    #[test]
    fn a_full_queue_waits_for_room() {
        let queue = Queue::new(4);
        let now = Instant::now();
        std::thread::scope(|scope| {
            let push = || (0..100).all(|i| queue.push(Item::Bytes(vec![i; 3]), now));
            let pushed = scope.spawn(push);
            for i in 0..100 {
                assert_eq!(queue.pop(), Some(Item::Bytes(vec![i; 3])));
                assert!(queue.state().bytes <= 6);
            }
            assert!(pushed.join().unwrap());
        });
    }

    #[test]
    fn closing_ends_every_wait() {
        let queue = Queue::new(1);
        let far = Instant::now() + Duration::from_secs(1000);
        std::thread::scope(|scope| {
            assert!(queue.push(Item::Bytes(vec![1]), far));
            let waiting = [
                scope.spawn(|| queue.push(Item::End, far)),
                scope.spawn(|| queue.pop().is_some()),
                scope.spawn(|| queue.wait_until(far)),
            ];
            queue.close();
            assert!(waiting.into_iter().all(|thread| !thread.join().unwrap()));
        });
    }
}
