//! Bytes between a socket and TLS.

/// A queue of bytes in one piece of memory.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty queue with room for `capacity` bytes.
    pub fn new(capacity: usize) -> Buffer {
        Buffer { bytes: vec![0; capacity], start: 0, end: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Takes the first `count` bytes out.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "no more is taken out than is there");
        self.start += count;
    }

    /// The room behind the bytes, which move to the front for that.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// The first `count` bytes of the room behind are filled.
    pub fn fill(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "no more is filled than there is room");
        self.end += count;
    }

    /// Room for at least `count` bytes; grows if need be.
    pub fn reserve(&mut self, count: usize) -> &mut [u8] {
        let spare = self.spare().len();
        self.bytes.resize(self.bytes.len() + count.saturating_sub(spare), 0);
        &mut self.bytes[self.end..]
    }

    /// Puts `bytes` behind the others.
    pub fn append(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// Moves as many bytes to `out` as fit; how many.
    pub fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.filled()[..count]);
        self.consume(count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let mut buffer = Buffer::new(4);
        buffer.append(b"abc");
        buffer.consume(2);
        buffer.append(b"defgh");
        assert_eq!(buffer.filled(), b"cdefgh");
        let mut out = [0; 4];
        assert_eq!(buffer.take(&mut out), 4);
        assert_eq!(&out, b"cdef");
        assert_eq!(buffer.take(&mut out), 2);
        assert!(buffer.is_empty());
        assert_eq!(buffer.take(&mut out), 0);
    }
}
