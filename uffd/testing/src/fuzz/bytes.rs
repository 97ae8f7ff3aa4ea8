//! Bytes that decisions are taken from, until there are no more.

/// What is left of an input.
#[derive(Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// A whole input.
    pub fn new(bytes: &'a [u8]) -> Bytes<'a> {
        Bytes(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next eight bytes as a number.
    pub fn word(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u8) -> Option<u8> {
        Some(self.byte()? % end)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        let byte = usize::from(self.byte()?);
        Some(among[byte % among.len()])
    }

    /// The next `count` bytes, or those that are left.
    pub fn some(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }
}
