//! Whether runs of data are packed before they are sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Pack while that moves more pages a second than sending them as they are.
    #[default]
    Auto,
    /// Pack whatever gets shorter.
    Lz4,
    /// Never pack.
    None,
}

/// Bytes of pages after which what they have cost is looked at: more than the sockets of both sides
/// hold, which take the first bytes after a change at once or keep the last ones before it.
const WINDOW_BYTES: usize = 4 << 20;
/// On a slow link it is looked at after so long.
const WINDOW_TIME: Duration = Duration::from_millis(500);
/// A link that takes a byte in less, in nanoseconds, is not worth a try: packing in safe code costs
/// a core about as much.
const FAST_LINK_NS_PER_BYTE: f64 = 2.0;
/// A try of packing that shows no gain after so many bytes of pages is not gone through with: a run
/// or a few, because one may have lost the core for a while.
const PROBE_BYTES: usize = 1 << 20;
/// The other way is taken if its cost is at most this part of that of the present one.
const WORTH_A_CHANGE: f64 = 0.9;
/// Windows until the other way is tried, after a change.
const PATIENCE_MIN: u32 = 2;
/// The same after many tries that were none the better; it doubles with each.
const PATIENCE_MAX: u32 = 64;

/// Decides for one thread that pushes.
///
/// Nothing is assumed of the link, the core or the data. The time that a byte of a page takes is
/// measured the way it goes, and now and then the other way; the better one is taken. If the link
/// is what limits the push, sending takes long and packing makes up for it; if the core or the
/// destination is, packing only adds to the time. What is better may change with the data, so both
/// are tried again, less and less often while nothing changes.
#[derive(Debug)]
pub struct CompressionPolicy {
    wanted: Compression,
    packs: bool,
    state: State,
    window: Window,
    /// What packing alone takes and gives in a try.
    probe: Probe,
    /// Windows until the next try, and how many that were.
    left: u32,
    patience: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// One way, which is the better one as far as is known.
    Steady,
    /// The other way, while the bytes that went before leave the sockets; `usual` is the cost of a
    /// byte before, in nanoseconds.
    Settling { usual: f64 },
    /// The other way, and it is measured.
    Trying { usual: f64 },
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    page_bytes: usize,
    took: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    window: Window,
    packed_bytes: usize,
}

impl Probe {
    /// Whether packing cannot be the better way: it takes as long as sending does, or what it
    /// leaves to be sent is as much.
    fn is_hopeless(self, usual: f64) -> bool {
        let left = self.packed_bytes as f64 / self.window.page_bytes as f64;
        self.window.page_bytes >= PROBE_BYTES
            && (left >= WORTH_A_CHANGE || self.window.ns_per_byte() >= usual * WORTH_A_CHANGE)
    }
}

impl Window {
    fn is_full(self) -> bool {
        self.page_bytes >= WINDOW_BYTES || self.took >= WINDOW_TIME
    }

    fn ns_per_byte(self) -> f64 {
        self.took.as_secs_f64() * 1e9 / self.page_bytes as f64
    }
}

impl CompressionPolicy {
    /// What the operator wants.
    pub fn new(wanted: Compression) -> CompressionPolicy {
        CompressionPolicy {
            wanted,
            packs: wanted == Compression::Lz4,
            state: State::Steady,
            window: Window::default(),
            probe: Probe::default(),
            left: 1,
            patience: 1,
        }
    }

    /// Whether to pack the next run.
    pub fn packs(&self) -> bool {
        self.packs
    }

    /// Packing made `packed_bytes` of `page_bytes` of pages and `took` so long; they are not sent
    /// yet.
    pub fn packed(&mut self, page_bytes: usize, packed_bytes: usize, took: Duration) {
        let (State::Settling { usual } | State::Trying { usual }) = self.state else { return };
        if !self.packs {
            return;
        }
        self.probe.window.page_bytes += page_bytes;
        self.probe.window.took += took;
        self.probe.packed_bytes += packed_bytes;
        if self.probe.is_hopeless(usual) {
            self.window = Window::default();
            self.try_ended(false);
        }
    }

    /// A run of `page_bytes` of pages was sent as [`CompressionPolicy::packs`] said, and packing
    /// and sending it `took` so long.
    pub fn sent(&mut self, page_bytes: usize, took: Duration) {
        if self.wanted != Compression::Auto {
            return;
        }
        self.window.page_bytes += page_bytes;
        self.window.took += took;
        if self.window.is_full() {
            let window = std::mem::take(&mut self.window);
            self.window_ended(window.ns_per_byte());
        }
    }

    /// What was sent had to be waited for, because of a cap on bandwidth.
    pub fn waited(&mut self, time: Duration) {
        self.window.took += time;
    }

    fn window_ended(&mut self, cost: f64) {
        match self.state {
            State::Steady => {
                self.left = self.left.saturating_sub(1);
                let may_pay = self.packs || cost >= FAST_LINK_NS_PER_BYTE;
                if self.left == 0 && may_pay {
                    self.packs = !self.packs;
                    self.probe = Probe::default();
                    self.state = State::Settling { usual: cost };
                }
            }
            State::Settling { usual } => self.state = State::Trying { usual },
            State::Trying { usual } => {
                self.try_ended(cost <= usual * WORTH_A_CHANGE);
            }
        }
    }

    fn try_ended(&mut self, is_better: bool) {
        self.state = State::Steady;
        if is_better {
            self.patience = PATIENCE_MIN;
        } else {
            self.packs = !self.packs;
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
        }
        self.left = self.patience;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: usize = 256 << 10;

    /// What a byte costs in nanoseconds, on the link and to be packed, and how much is left of it.
    #[derive(Clone, Copy)]
    struct World {
        link: f64,
        pack: f64,
        percent: usize,
    }

    impl World {
        fn cost(self, packs: bool) -> f64 {
            if packs { self.pack.max(self.link * self.percent as f64 / 100.0) } else { self.link }
        }
    }

    /// Pushes `mib` and gives the share of it that was packed, and by how much longer it took than
    /// the better of both ways all the time.
    fn push(policy: &mut CompressionPolicy, world: World, mib: usize) -> (f64, f64) {
        let (mut packed, mut took) = (0.0, 0.0);
        let runs = mib * 4;
        for _ in 0..runs {
            let packs = policy.packs();
            let ns = world.cost(packs) * RUN as f64;
            if packs {
                let pack = Duration::from_secs_f64(world.pack * RUN as f64 / 1e9);
                policy.packed(RUN, RUN * world.percent / 100, pack);
            }
            packed += f64::from(u8::from(packs));
            took += ns;
            policy.sent(RUN, Duration::from_secs_f64(ns / 1e9));
        }
        let best = world.cost(true).min(world.cost(false)) * (runs * RUN) as f64;
        (packed / runs as f64, took / best - 1.0)
    }

    fn auto() -> CompressionPolicy {
        CompressionPolicy::new(Compression::Auto)
    }

    /// A gigabit a second and bytes that shrink to a third.
    const SLOW_LINK: World = World { link: 8.0, pack: 2.0, percent: 33 };

    #[test]
    fn a_slow_link_makes_packing_worth_it() {
        let (packed, worse) = push(&mut auto(), SLOW_LINK, 1024);
        assert!(packed > 0.9 && worse < 0.2, "{packed} {worse}");
    }

    #[test]
    fn a_fast_link_is_not_even_tried() {
        let fast = World { link: 0.5, ..SLOW_LINK };
        assert_eq!(push(&mut auto(), fast, 1024), (0.0, 0.0));
    }

    #[test]
    fn bytes_that_do_not_shrink_are_tried_rarely() {
        let noise = World { percent: 100, ..SLOW_LINK };
        let (packed, _) = push(&mut auto(), noise, 4096);
        assert!(packed < 0.005, "{packed}");
    }

    #[test]
    fn a_core_that_packs_too_slowly_does_not() {
        let slow_core = World { pack: 12.0, ..SLOW_LINK };
        let (packed, worse) = push(&mut auto(), slow_core, 4096);
        assert!(packed < 0.005 && worse < 0.005, "{packed} {worse}");
    }

    #[test]
    fn what_changes_is_noticed_both_ways() {
        let mut policy = auto();
        let noise = World { percent: 100, ..SLOW_LINK };
        push(&mut policy, SLOW_LINK, 512);
        // Packing noise costs nothing while the link is what limits, and as much again if not.
        let fast = World { link: 1.0, ..noise };
        assert!(push(&mut policy, fast, 1024).1 < 0.1);
        assert!(!policy.packs());
        push(&mut policy, SLOW_LINK, 1024);
        assert!(push(&mut policy, SLOW_LINK, 512).0 > 0.9);
    }

    #[test]
    fn a_slow_link_is_decided_on_before_much_has_crossed_it() {
        let crawl = World { link: 1000.0, ..SLOW_LINK };
        let (packed, _) = push(&mut auto(), crawl, 32);
        assert!(packed > 0.8, "{packed}");
    }

    #[test]
    fn who_wants_one_way_gets_it() {
        for (wanted, share) in [(Compression::Lz4, 1.0), (Compression::None, 0.0)] {
            let mut policy = CompressionPolicy::new(wanted);
            assert_eq!(push(&mut policy, SLOW_LINK, 256).0.to_bits(), f64::to_bits(share));
            assert_eq!(policy.packs(), wanted == Compression::Lz4);
        }
    }
}
