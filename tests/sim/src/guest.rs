//! The guest: what it does, and what its memory must hold, wherever it runs.
//!
//! Each vCPU writes new values and reads old ones at a few bytes of each page, in an order of its
//! own. What was last written is kept here, outside of all hosts; a read that returns anything else
//! is a violation.

use std::time::Duration;

use crate::rng::Rng;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// The bytes of a page that the guest uses; all others are zero.
pub const USED: [usize; 4] = [0, 1000, 2049, 4095];
/// The bytes of a page that is used.
pub type Values = [u8; USED.len()];

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub page: u32,
    pub slot: usize,
    /// What is written, if it is a write.
    pub write: Option<u8>,
}

/// In which order a vCPU goes through memory.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Anywhere,
    Upwards,
    Downwards,
    /// Most of the time in the first pages from here.
    Around(u32),
}

#[derive(Debug)]
struct Cpu {
    pattern: Pattern,
    at: u32,
    writes_percent: usize,
    accesses: u32,
    busy: u32,
}

/// The guest.
#[derive(Debug)]
pub struct Guest {
    /// What memory holds.
    pub truth: Vec<Values>,
    cpus: Vec<Cpu>,
    /// It has powered off.
    pub ended: bool,
    /// Its operator has paused it.
    pub paused: bool,
    /// It may be lost: a process that had what nobody else has was killed.
    pub may_be_lost: Option<&'static str>,
    value: u8,
}

impl Guest {
    pub fn new(pages: u32, cpus: usize, busy: u32, rng: &mut Rng) -> Guest {
        let used = rng.below(101);
        let mut guest = Guest {
            truth: Vec::new(),
            cpus: Vec::new(),
            ended: false,
            paused: false,
            may_be_lost: None,
            value: 0,
        };
        for _ in 0..pages {
            let zero = !rng.chance(used);
            guest.truth.push(if zero { [0; 4] } else { std::array::from_fn(|_| rng.byte()) });
        }
        for _ in 0..cpus {
            let pattern = match rng.below(4) {
                0 => Pattern::Anywhere,
                1 => Pattern::Upwards,
                2 => Pattern::Downwards,
                _ => Pattern::Around(rng.page(pages)),
            };
            let at = rng.page(pages);
            let writes_percent = rng.pick(&[5, 30, 60, 90]);
            guest.cpus.push(Cpu { pattern, at, writes_percent, accesses: 0, busy });
        }
        guest
    }

    pub fn pages(&self) -> u32 {
        u32::try_from(self.truth.len()).expect("made from a u32")
    }

    /// What a vCPU would have in its registers.
    pub fn state(&self) -> u8 {
        self.value
    }

    /// It boots again, with nothing in memory.
    pub fn boot(&mut self) {
        self.truth.fill(Values::default());
    }

    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// What a vCPU does next.
    pub fn next_access(&mut self, cpu: usize, rng: &mut Rng) -> Access {
        let pages = self.pages();
        let this = &mut self.cpus[cpu];
        this.accesses += 1;
        let page = match this.pattern {
            Pattern::Anywhere => rng.page(pages),
            Pattern::Upwards => (this.at + 1) % pages,
            Pattern::Downwards => (this.at + pages - 1) % pages,
            Pattern::Around(_) if rng.chance(20) => rng.page(pages),
            Pattern::Around(first) => (first + rng.page(3)) % pages,
        };
        this.at = page;
        let write = rng.chance(this.writes_percent).then(|| {
            self.value = self.value.wrapping_add(1).max(1);
            self.value
        });
        Access { page, slot: rng.below(USED.len()), write }
    }

    /// How long a vCPU computes between two accesses. It does less and less, so that a run ends.
    pub fn think(&self, cpu: usize, rng: &mut Rng) -> Duration {
        let this = &self.cpus[cpu];
        match this.accesses / this.busy {
            0 => rng.micros(20, 3000),
            1 => rng.millis(1, 60),
            2 => rng.millis(100, 2000),
            _ => rng.millis(2000, 20_000),
        }
    }

    /// An access is done; a read has returned `read`.
    ///
    /// # Errors
    /// The violation, if the read should have returned something else.
    pub fn done(&mut self, access: Access, read: u8) -> Result<(), String> {
        let Access { page, slot, write } = access;
        let truth = &mut self.truth[page as usize][slot];
        match write {
            Some(value) => *truth = value,
            None if *truth == read => {}
            None => {
                return Err(format!(
                    "a read of page {page} byte {} returned {read}, last written was {truth}",
                    USED[slot]
                ));
            }
        }
        Ok(())
    }
}

/// A page with these values.
pub fn page_of(values: Values) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    for (at, value) in USED.into_iter().zip(values) {
        page[at] = value;
    }
    page
}
