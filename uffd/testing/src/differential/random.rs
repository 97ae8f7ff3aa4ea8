//! Numbers that look random and repeat from a seed: SplitMix64.

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The source that a seed names.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u8) -> u8 {
        u8::try_from(self.word() % u64::from(end)).expect("below a byte")
    }

    /// True in so many of a thousand cases.
    pub fn one_in_thousand(&mut self, times: u64) -> bool {
        self.word() % 1000 < times
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let count = u64::try_from(among.len()).expect("a short list");
        let at = usize::try_from(self.word() % count).expect("an index");
        among[at]
    }

    /// One of several, each as often as its weight says.
    pub fn weighted<T: Copy>(&mut self, among: &[(u64, T)]) -> T {
        let total = among.iter().map(|(weight, _)| weight).sum::<u64>();
        let mut left = self.word() % total;
        for (weight, one) in among {
            if left < *weight {
                return *one;
            }
            left -= weight;
        }
        unreachable!("the weights add up to their sum")
    }
}
