//! Orders in which pages are visited: permutations and draws by Zipf's law, without tables.

use crate::page::mix;

/// A pseudo-random permutation of `0..count`.
///
/// A keyed bijection on the smallest power of two that is at least `count`; what falls outside is
/// skipped, which is less than half.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    count: u64,
    bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation that `key` stands for. `count` is at most 2^63.
    pub fn new(count: u64, key: u64) -> Permutation {
        let bits = count.next_power_of_two().trailing_zeros();
        let keys = core::array::from_fn(|round| mix(key ^ mix(round as u64 + 1)));
        Permutation { count, bits, keys }
    }

    /// All numbers below `count`, each once.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..1u64 << self.bits).map(move |x| self.scatter(x)).filter(move |x| *x < self.count)
    }

    /// Where `position` goes; other than in `iter`, positions whose first place is outside are sent
    /// on until they fall inside.
    pub fn at(&self, position: u64) -> u64 {
        let mut x = self.scatter(position);
        while x >= self.count {
            x = self.scatter(x);
        }
        x
    }

    /// A bijection of the numbers of `bits` bits: each step of each round is one.
    fn scatter(&self, x: u64) -> u64 {
        let mask = (1 << self.bits) - 1;
        let half = self.bits / 2 + 1;
        self.keys.iter().fold(x, |x, key| {
            let x = (x ^ key).wrapping_mul(MULTIPLIER) & mask;
            x ^ (x >> half)
        })
    }
}

/// A stream of pseudo-random words (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub struct Prng(u64);

impl Prng {
    /// The stream that `seed` stands for.
    pub fn new(seed: u64) -> Prng {
        Prng(mix(seed))
    }

    /// The next word.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
}

/// Draws ranks `0..count` by Zipf's law with exponent 1: rank r has a probability proportional to
/// `log((r + 2) / (r + 1))`, which is close to `1 / (r + 1.5)`.
///
/// The inverse of that distribution is a power of two, `2^(u * log2(count + 1)) - 1`, which
/// integers can compute.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    /// `log2(count + 1)` with `FRACTION_BITS` bits behind the point.
    exponent: u64,
    /// `2^(1/2)`, `2^(1/4)` and so on, with 62 bits behind the point.
    roots: [u64; FRACTION_BITS as usize],
    count: u64,
}

impl Zipf {
    /// A distribution over `count` ranks, 1 to 2^40.
    ///
    /// # Panics
    /// If `count` is not within these limits.
    pub fn new(count: u64) -> Zipf {
        assert!((1..=1 << 40).contains(&count));
        let mut root = 2u128 << POINT;
        let roots = core::array::from_fn(|_| {
            root = (root << POINT).isqrt();
            root as u64
        });
        let whole = (count + 1).ilog2();
        let mut exponent = u64::from(whole);
        let mut rest = (u128::from(count + 1) << POINT) >> whole;
        for root in roots {
            let fits = rest >= u128::from(root);
            if fits {
                rest = (rest << POINT) / u128::from(root);
            }
            exponent = exponent << 1 | u64::from(fits);
        }
        Zipf { exponent, roots, count }
    }

    /// A rank, from one random word.
    pub fn rank(&self, random: u64) -> u64 {
        let power = (u128::from(random) * u128::from(self.exponent)) >> 64;
        let (whole, fraction) = (power as u64 >> FRACTION_BITS, power as u64 & FRACTION_MASK);
        let mut value = 1u128 << POINT;
        for (at, root) in self.roots.iter().enumerate() {
            if fraction >> (FRACTION_BITS - 1 - at as u32) & 1 == 1 {
                value = (value * u128::from(*root)) >> POINT;
            }
        }
        let rank = ((value << whole) >> POINT) as u64 - 1;
        rank.min(self.count - 1)
    }
}

const ROUNDS: usize = 3;
const MULTIPLIER: u64 = 0xD134_2543_DE82_EF95;
const FRACTION_BITS: u32 = 24;
const FRACTION_MASK: u64 = (1 << FRACTION_BITS) - 1;
const POINT: u32 = 62;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_permutation_visits_each_number_once() {
        for count in [0, 1, 2, 3, 5, 64, 1000, 4097] {
            let seen: Vec<u64> = Permutation::new(count, 3).iter().collect();
            assert_eq!(seen.len() as u64, count);
            assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>().len() as u64, count);
            assert!(seen.iter().all(|x| *x < count));
            let order = Permutation::new(count, 3);
            let sent: BTreeSet<u64> = (0..count).map(|x| order.at(x)).collect();
            assert_eq!(sent.len() as u64, count);
        }
    }

    #[test]
    fn keys_give_different_orders_without_runs() {
        let order = |key| Permutation::new(1 << 16, key).iter().collect::<Vec<_>>();
        let (one, two) = (order(1), order(2));
        assert_eq!(one, order(1));
        let same = one.iter().zip(&two).filter(|(a, b)| a == b).count();
        assert!(same < 64, "{same}");
        let near = one.windows(2).filter(|w| w[0].abs_diff(w[1]) <= 16).count();
        assert!(near < 200, "{near} of 65536 steps are short; about 33 by chance");
    }

    #[test]
    fn zipf_ranks_halve_where_they_should() {
        let count = 1 << 18;
        let zipf = Zipf::new(count);
        let mut prng = Prng::new(5);
        let draws: Vec<u64> = (0..100_000).map(|_| zipf.rank(prng.draw())).collect();
        assert!(draws.iter().all(|rank| *rank < count));
        // The inverse of the distribution: half of the draws are below sqrt(count + 1) - 1.
        let below = draws.iter().filter(|rank| **rank < 511).count();
        assert!((49_000..51_000).contains(&below), "{below}");
        let first = draws.iter().filter(|rank| **rank == 0).count();
        assert!((5_200..5_900).contains(&first), "{first}; 1 / log2(count + 1) is 5556");
    }

    #[test]
    fn zipf_ends_are_inside() {
        for count in [1, 2, 3, 1000, 1 << 40] {
            let zipf = Zipf::new(count);
            assert_eq!(zipf.rank(0), 0);
            let last = zipf.rank(u64::MAX);
            assert!(last < count && last >= (count - 1) / 1000 * 999, "{last} of {count}");
        }
    }
}
