//! Latencies by time: windows of some milliseconds, each with a log-linear histogram.

use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Buckets: eight per octave from 2^6 to 2^34 cycles.
pub const BUCKETS: usize = ((OCTAVE_END - OCTAVE_START) << 3) as usize;
/// 64-bit words that one window takes.
pub const WINDOW_WORDS: usize = HEADER_WORDS + BUCKETS;

/// The bucket of a latency; what is shorter or longer than all buckets goes to the first or last.
#[inline]
pub fn bucket(cycles: u64) -> usize {
    let cycles = cycles.clamp(1 << OCTAVE_START, (1 << OCTAVE_END) - 1);
    let octave = cycles.ilog2();
    (((octave - OCTAVE_START) << 3) | ((cycles >> (octave - 3)) & 7) as u32) as usize
}

/// The shortest latency of a bucket, in cycles.
pub const fn least(bucket: usize) -> u64 {
    (8 + (bucket as u64 & 7)) << (bucket as u64 / 8 + OCTAVE_START as u64 - 3)
}

/// The windows of one vCPU: a ring in memory that is printed now and then.
///
/// A window in which little took long is merged into the one before it, if that was such a window
/// too: otherwise printing what is not interesting would take longer than what is.
pub struct Windows {
    words: &'static [AtomicU64],
    cycles: u64,
    /// Windows closed since the start; the next has this number, and its place is the rest of the
    /// division by the size of the ring.
    closed: u64,
    /// Where the words of the open window are.
    open: usize,
    /// Windows with a smaller number have been printed or overwritten.
    printed: u64,
    /// Latencies of at least `SLOW_CYCLES` in the open window.
    slow: u64,
    /// Whether a window that stands alone was closed since the last `take`.
    noteworthy: bool,
    /// Whether the window before the open one stands alone.
    alone_before: bool,
}

/// One window, to be printed.
#[derive(Clone, Copy)]
pub struct Window {
    words: &'static [AtomicU64],
}

impl Windows {
    /// A ring in `words` for windows of `cycles`, the first of which opens at `now`. One is always
    /// open, so two is the least number of windows; with no words nothing is recorded.
    pub fn new(words: &'static [AtomicU64], cycles: u64, now: u64) -> Windows {
        let mut windows = Windows {
            words,
            cycles,
            closed: 0,
            open: 0,
            printed: 0,
            slow: 0,
            noteworthy: false,
            alone_before: true,
        };
        windows.restart(now);
        windows
    }

    /// Counts a latency that ended at `now`, in cycles.
    #[inline]
    pub fn record(&mut self, now: u64, latency: u64) {
        let Some(words) = self.words.get(self.open..self.open + WINDOW_WORDS) else {
            return;
        };
        bump(&words[COUNT]);
        bump(&words[HEADER_WORDS + bucket(latency)]);
        self.slow += u64::from(latency >= SLOW_CYCLES);
        if now.saturating_sub(words[START].load(Relaxed)) >= self.cycles {
            self.close(now);
        }
    }

    /// Whether there is a window worth printing: one in which several latencies were long.
    pub fn is_noteworthy(&self) -> bool {
        self.noteworthy
    }

    /// Empties the open window, which then starts at `now`.
    pub fn restart(&mut self, now: u64) {
        self.slow = 0;
        if self.words.is_empty() {
            return;
        }
        self.open = offset(self.words, self.closed);
        let words = place(self.words, self.closed);
        words.iter().for_each(|word| word.store(0, Relaxed));
        words[START].store(now, Relaxed);
    }

    /// The windows that have been recorded since the last call, oldest first, and how many of
    /// these were overwritten because the ring is full. The open window is closed at `now`.
    pub fn take(&mut self, now: u64) -> (u64, impl Iterator<Item = Window> + use<>) {
        let size = self.size();
        if size > 0 {
            self.slow = SLOW_COUNT;
            self.close(now);
        }
        self.noteworthy = false;
        let kept = self.closed.saturating_sub(self.printed).min(size.saturating_sub(1));
        let first = self.closed - kept;
        let lost = first - self.printed;
        self.printed = self.closed;
        let words = self.words;
        let places = (first..self.closed).map(move |number| Window { words: place(words, number) });
        (lost, places.filter(|window| window.count() > 0))
    }

    fn close(&mut self, now: u64) {
        let words = place(self.words, self.closed);
        let start = words[START].load(Relaxed);
        words[CYCLES].store(now.saturating_sub(start), Relaxed);
        let many = self.slow >= SLOW_COUNT || self.slow * SLOW_SHARE >= words[COUNT].load(Relaxed);
        let alone = many && self.slow > 0;
        if alone || self.alone_before || self.closed == self.printed {
            self.closed += 1;
        } else {
            merge(words, place(self.words, self.closed - 1));
        }
        self.alone_before = alone;
        self.noteworthy |= alone;
        self.restart(now);
    }

    fn size(&self) -> u64 {
        (self.words.len() / WINDOW_WORDS) as u64
    }
}

impl Window {
    fn count(&self) -> u64 {
        self.words[COUNT].load(Relaxed)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [start, cycles, count] = [START, CYCLES, COUNT].map(|at| self.words[at].load(Relaxed));
        write!(f, "start={start} cycles={cycles} n={count} h=")?;
        let mut comma = "";
        for (bucket, word) in self.words[HEADER_WORDS..].iter().enumerate() {
            let count = word.load(Relaxed);
            if count > 0 {
                write!(f, "{comma}{bucket}:{count}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

fn place(words: &'static [AtomicU64], number: u64) -> &'static [AtomicU64] {
    let at = offset(words, number);
    &words[at..at + WINDOW_WORDS]
}

fn offset(words: &[AtomicU64], number: u64) -> usize {
    let size = (words.len() / WINDOW_WORDS) as u64;
    (number % size) as usize * WINDOW_WORDS
}

/// Adds a window to the one before it, which then ends where this one ends.
fn merge(from: &[AtomicU64], into: &[AtomicU64]) {
    let end = from[START].load(Relaxed) + from[CYCLES].load(Relaxed);
    into[CYCLES].store(end - into[START].load(Relaxed), Relaxed);
    for (from, into) in from.iter().zip(into).skip(COUNT) {
        into.store(into.load(Relaxed) + from.load(Relaxed), Relaxed);
    }
}

/// Only one vCPU writes a ring, so this need not be one operation.
fn bump(word: &AtomicU64) {
    word.store(word.load(Relaxed) + 1, Relaxed);
}

const OCTAVE_START: u32 = 6;
const OCTAVE_END: u32 = 34;
const START: usize = 0;
const CYCLES: usize = 1;
const COUNT: usize = 2;
const HEADER_WORDS: usize = 3;
/// A window is not merged if `SLOW_COUNT` of its latencies, or one in `SLOW_SHARE`, were at least
/// `SLOW_CYCLES`. A few are in every window: the host's timer, or a vCPU that lost its CPU.
const SLOW_CYCLES: u64 = 1 << 16;
const SLOW_COUNT: u64 = 16;
const SLOW_SHARE: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(windows: usize) -> Windows {
        let words = (0..windows * WINDOW_WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Windows::new(words.leak(), 100, 0)
    }

    fn lines(windows: &mut Windows, now: u64) -> (u64, Vec<String>) {
        let (lost, taken) = windows.take(now);
        (lost, taken.map(|window| window.to_string()).collect())
    }

    #[test]
    fn buckets_are_an_eighth_of_an_octave_wide() {
        assert_eq!((bucket(0), bucket(64), bucket(71), bucket(72)), (0, 0, 0, 1));
        assert_eq!((bucket(127), bucket(128)), (7, 8));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for number in 0..BUCKETS {
            assert_eq!(bucket(least(number)), number);
            assert_eq!(bucket(least(number) - 1), number.saturating_sub(1));
        }
    }

    #[test]
    fn slow_windows_stand_alone_and_quick_ones_are_merged() {
        let mut windows = ring(8);
        for now in [10, 100, 150, 200, 250, 300] {
            windows.record(now, 64);
        }
        for now in [310, 320, 330, 400] {
            windows.record(now, SLOW_CYCLES);
        }
        windows.record(450, 64);
        assert!(windows.is_noteworthy());
        let (lost, lines) = lines(&mut windows, 470);
        assert!(!windows.is_noteworthy());
        assert_eq!(lost, 0);
        assert_eq!(
            lines,
            [
                "start=0 cycles=300 n=6 h=0:6",
                "start=300 cycles=100 n=4 h=80:4",
                "start=400 cycles=70 n=1 h=0:1",
            ]
        );
    }

    #[test]
    fn a_full_ring_keeps_the_newest_and_counts_the_others() {
        let mut windows = ring(4);
        for number in 1..=40 {
            windows.record(number * 25, SLOW_CYCLES);
        }
        let (lost, found) = lines(&mut windows, 1000);
        assert_eq!(found.len(), 2, "the third is the empty one that was open");
        assert_eq!((lost, found[1].as_str()), (8, "start=900 cycles=100 n=4 h=80:4"));
        assert_eq!(lines(&mut windows, 1000), (0, vec![]));
    }

    #[test]
    fn nothing_is_recorded_without_memory() {
        let mut windows = ring(0);
        windows.record(5, 5);
        assert_eq!(lines(&mut windows, 9), (0, vec![]));
    }
}
