//! What can be done to a stream on its way.

/// A direction through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected, the source of a migration.
    ToDestination,
    /// Back.
    ToSource,
}

/// What becomes of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They are sent on.
    Pass,
    /// So many of them are sent on, then the connection breaks, both ways.
    CutAfter(usize),
}

/// Sees the bytes of one direction of one connection, in order, and may change them.
pub trait Tap: Send {
    /// The next bytes of the stream.
    fn see(&mut self, bytes: &mut [u8]) -> Fate;
}

/// Makes the tap of a direction of a connection, if it is to have one. Connections count from 0 in
/// the order in which they were accepted.
pub type MakeTap = dyn Fn(usize, Direction) -> Option<Box<dyn Tap>> + Send + Sync;

/// Breaks the connection after an exact number of bytes.
#[derive(Debug)]
pub struct CutAt {
    left: u64,
}

impl CutAt {
    /// Lets `bytes` pass.
    pub fn new(bytes: u64) -> CutAt {
        CutAt { left: bytes }
    }
}

impl Tap for CutAt {
    fn see(&mut self, bytes: &mut [u8]) -> Fate {
        match usize::try_from(self.left) {
            Ok(left) if left <= bytes.len() => Fate::CutAfter(left),
            _ => {
                self.left -= bytes.len() as u64;
                Fate::Pass
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_is_at_the_byte() {
        let mut cut = CutAt::new(10);
        assert_eq!(cut.see(&mut [0; 6]), Fate::Pass);
        assert_eq!(cut.see(&mut [0; 6]), Fate::CutAfter(4));
        assert_eq!(CutAt::new(0).see(&mut [0; 6]), Fate::CutAfter(0));
    }
}
