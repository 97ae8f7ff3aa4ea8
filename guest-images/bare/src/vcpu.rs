//! One vCPU: its clock, its passes, and the check of a page.

use core::fmt::{self, Write};
use core::ops::Range;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use godwit_guest::clock::{Clock, Gap};
use godwit_guest::page::{self, Content, Data, Mismatch, Page};
use godwit_guest::ram;

use crate::console::Console;
use crate::faults;
use crate::guest::{FAULT_INDEX, Guest};
use crate::machine::{ring0, tsc};

/// What a workload works with.
pub struct Vcpu {
    /// The position among the vCPUs.
    pub index: usize,
    /// What all vCPUs share.
    pub guest: &'static Guest,
    clock: Clock,
    /// The TSC when the next line of gaps is due.
    gaps_due: u64,
    /// Passes begun.
    passes: u64,
    /// Passes are printed again from this TSC on.
    pass_due: u64,
    /// Corrupt pages that have been printed.
    complaints: u32,
}

/// One sweep over the share of a vCPU, and what it found.
#[derive(Default)]
pub struct Pass {
    /// Counts from 1.
    pub number: u64,
    /// Whether its lines are printed.
    pub printed: bool,
    /// Whether it is the last of `passes=`.
    pub last: bool,
    verified: u64,
    zero: u64,
    corrupt: u64,
    generations: u64,
}

impl Vcpu {
    /// A vCPU that has just come to ring 3.
    pub fn new(guest: &'static Guest, index: usize) -> Vcpu {
        let now = tsc();
        Vcpu {
            index,
            guest,
            clock: Clock::new(now),
            gaps_due: now + guest.config.cycles(GAPS_MS),
            passes: 0,
            pass_due: now,
            complaints: 0,
        }
    }

    /// To be called between any two pieces of work: looks at the clock, and prints the largest
    /// gaps when it is time. Returns the TSC.
    #[inline]
    pub fn step(&mut self) -> u64 {
        let now = tsc();
        self.clock.tick(now);
        if now >= self.gaps_due {
            self.print_gaps(now);
        }
        now
    }

    /// Prints a line.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        Console::line(&mut self.clock, text);
    }

    /// The owned pages that this vCPU works on.
    pub fn owned_share(&self) -> Range<u64> {
        ram::share(self.guest.owned_pages, self.index, self.guest.config.vcpus)
    }

    /// The pages that nobody writes and this vCPU verifies.
    pub fn zero_share(&self) -> Range<u64> {
        let owned = self.guest.owned_pages;
        let rest = self.guest.arena_pages - owned;
        let share = ram::share(rest, self.index, self.guest.config.vcpus);
        owned + share.start..owned + share.end
    }

    /// What a page should hold when it has been written `generation` times.
    #[inline]
    pub fn content(&self, index: u64, generation: u64) -> Content {
        let config = &self.guest.config;
        // The fault window and the blocks of a disk are there to be checked, not to be moved.
        let data = if index < FAULT_INDEX { config.data } else { Data::Random };
        Content { seed: config.seed, index, generation, link: 0, data }
    }

    /// Waits until all vCPUs have added themselves to `counter`, this one now.
    pub fn wait_for_all(&mut self, counter: &AtomicU32) {
        counter.fetch_add(1, AcqRel);
        while (counter.load(Acquire) as usize) < self.guest.config.vcpus {
            self.step();
        }
    }

    /// Begins the next pass, with the touches of `faults=`; `None` if all have been done.
    pub fn begin_pass(&mut self) -> Option<Pass> {
        let limit = self.guest.config.passes;
        if limit != 0 && self.passes == limit {
            return None;
        }
        self.passes += 1;
        let now = self.step();
        let number = self.passes;
        let last = number == limit;
        let printed = last || now >= self.pass_due;
        if printed {
            let vcpu = self.index;
            self.line(format_args!("pass vcpu={vcpu} n={number} begin tsc={now}"));
        }
        let mut pass = Pass { number, printed, last, ..Pass::default() };
        faults::touch_all(self, &mut pass);
        Some(pass)
    }

    /// Ends a pass, in which everything that the vCPU has to verify has been verified.
    pub fn end_pass(&mut self, pass: &Pass) {
        self.guest.verified.fetch_add(pass.verified, Relaxed);
        if !pass.printed {
            return;
        }
        let Pass { number, verified, zero, corrupt, generations, .. } = pass;
        let (vcpu, now) = (self.index, self.step());
        self.line(format_args!(
            "pass vcpu={vcpu} n={number} end tsc={now} verified={verified} zero={zero} \
             corrupt={corrupt} generations={generations}"
        ));
        self.pass_due = tsc() + self.guest.config.cycles(self.guest.config.pass_ms);
    }

    /// Verifies an owned page of the expected `content`; false if it is corrupt.
    #[inline]
    pub fn check(&mut self, pass: &mut Pass, content: &Content) -> bool {
        self.check_page(pass, self.guest.page(content.index), content)
    }

    /// Verifies a page that is somewhere else than the arena.
    #[inline]
    pub fn check_page(&mut self, pass: &mut Pass, page: &Page, content: &Content) -> bool {
        pass.verified += 1;
        pass.generations = pass.generations.wrapping_add(content.generation);
        match page::verify(page, content) {
            Ok(()) => true,
            Err(mismatch) => {
                self.complain(pass, content, &mismatch);
                false
            }
        }
    }

    /// Verifies a page that nobody has written.
    #[inline]
    pub fn check_zero(&mut self, pass: &mut Pass, index: u64) {
        pass.verified += 1;
        pass.zero += 1;
        if let Err(mismatch) = page::verify_zero(self.guest.page(index)) {
            self.complain(pass, &self.content(index, 0), &mismatch);
        }
    }

    /// Counts a corrupt page and prints what is wrong with it.
    #[cold]
    pub fn complain(&mut self, pass: &mut Pass, content: &Content, at: &Mismatch) {
        pass.corrupt += 1;
        self.guest.corrupt.fetch_add(1, Relaxed);
        if self.complaints >= COMPLAINTS_MAX {
            return;
        }
        self.complaints += 1;
        let Content { index, generation, .. } = content;
        let (vcpu, address) = (self.index, self.guest.address_of(*index));
        let Mismatch { offset, found, wanted, words } = at;
        self.line(format_args!(
            "corrupt vcpu={vcpu} page={index} gpa={address:#x} expected_generation={generation} \
             offset={offset} found={found:#x} wanted={wanted:#x} words={words}"
        ));
    }

    #[cold]
    fn print_gaps(&mut self, now: u64) {
        let (vcpu, gaps) = (self.index, Gaps(self.clock.take_gaps()));
        self.line(format_args!("gaps vcpu={vcpu} at={now} list={gaps}"));
        if vcpu == 0 && self.guest.config.timer_hz > 0 {
            self.line(format_args!("ticks n={}", ring0::ticks()));
        }
        self.gaps_due = tsc() + self.guest.config.cycles(GAPS_MS);
    }
}

struct Gaps([Gap; godwit_guest::clock::GAPS]);

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, gap) in self.0.iter().filter(|gap| gap.length > 0).enumerate() {
            if at > 0 {
                f.write_char(',')?;
            }
            write!(f, "{}:{}", gap.start, gap.length)?;
        }
        Ok(())
    }
}

/// Milliseconds between two lines of gaps.
const GAPS_MS: u64 = 1_000;
/// Corrupt pages that a vCPU prints; more are only counted. A line costs milliseconds.
const COMPLAINTS_MAX: u32 = 64;
