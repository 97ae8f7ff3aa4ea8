//! Random sequences of operations on two worlds, which must agree on everything that shows.
//!
//! Each case is short and starts in fresh worlds. Where the worlds disagree, the case is cut down
//! to the few acts that matter and printed as a Rust expression, to be kept as a regression.

pub mod act;
pub mod book;
pub mod generate;
pub mod host;
pub mod profile;
pub mod random;
mod shrink;
pub mod side;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use godwit_uffd::abi::RawMessage;

use crate::world::World;
use act::{Act, Memory};
use book::Book;
use generate::{Generator, Kinds};
use side::{Observation, Report, Side};

/// Acts of one case.
const CASE_ACTS: usize = 80;
/// After so many acts all memory of all processes is compared, not only the actor's.
const LOOK_AT_ALL: usize = 8;
/// Repetitions of a case that is disturbed each time.
const REPEATS_MAX: usize = 20;
/// Disagreements after which a run ends.
const ENOUGH: usize = 40;

/// Makes a fresh world.
pub type NewWorld<'a> = dyn Fn() -> Box<dyn World> + 'a;

/// The two worlds of a comparison.
pub struct Pair<'a> {
    /// The one that is right: the running kernel.
    pub first: &'a NewWorld<'a>,
    /// The one that is compared with it.
    pub second: &'a NewWorld<'a>,
    /// What both have.
    pub kinds: Kinds,
    /// How often the first world's host has made a huge page of its own accord, or has had no
    /// memory for one that was due. A case with transparent huge pages during which that happens
    /// says nothing, and is repeated until it does not happen.
    pub disturbances: &'a dyn Fn() -> u64,
}

/// Where the worlds do not agree.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// The acts so far; the last is the one that shows it.
    pub acts: Vec<Act>,
    /// What differs, the same for cases of one cause.
    pub kind: String,
    /// What each world says.
    pub detail: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\nacts: &[", self.kind, self.detail)?;
        for act in &self.acts {
            writeln!(f, "    {act:?},")?;
        }
        write!(f, "]")
    }
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Acts that both worlds have done.
    pub operations: u64,
    /// Cases that the worlds did not agree on.
    pub disagreements: usize,
    /// How many cases there were of each kind.
    pub kinds: BTreeMap<String, usize>,
    /// Cases that the worlds did not agree on while the host was disturbed, and did not differ in
    /// when they were repeated undisturbed. They count for nothing.
    pub set_aside: usize,
}

impl Pair<'_> {
    /// Runs random cases from a seed on until so many operations are done. The first case of each
    /// kind is handed to `found` as soon as it is known.
    pub fn run(&self, seed: u64, operations: u64, mut found: impl FnMut(&Disagreement)) -> Summary {
        let mut summary = Summary::default();
        let mut seed = seed;
        while summary.operations < operations && summary.disagreements < ENOUGH {
            let mut generator = Generator::new(seed, self.kinds);
            seed += 1;
            let mut acts = Vec::new();
            let before = (self.disturbances)();
            let case = self.case(LOOK_AT_ALL, &mut acts, &mut |book, done| {
                (done < CASE_ACTS).then(|| generator.next(book))
            });
            summary.operations += acts.len() as u64;
            if let Err(case) = case {
                let disturbed = has_transparent(&acts) && (self.disturbances)() != before;
                if disturbed && self.replay_undisturbed(&acts).is_none() {
                    summary.set_aside += 1;
                    continue;
                }
                summary.disagreements += 1;
                let small = shrink::smallest(case, |acts| self.replay_undisturbed(acts));
                let count = summary.kinds.entry(small.kind.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    found(&small);
                }
            }
        }
        summary
    }

    /// Repeats a case in fresh worlds and looks at everything after each act.
    ///
    /// # Errors
    /// Where the worlds do not agree.
    pub fn replay(&self, acts: &[Act]) -> Result<(), Disagreement> {
        let mut left = acts.iter();
        self.case(1, &mut Vec::new(), &mut |book, _| {
            left.by_ref().find(|act| book.allows(**act)).copied()
        })
    }

    /// Repeats a case until the host was not disturbed meanwhile; where the worlds do not agree
    /// then. `None` too if it is disturbed each time.
    fn replay_undisturbed(&self, acts: &[Act]) -> Option<Disagreement> {
        for _ in 0..REPEATS_MAX {
            let before = (self.disturbances)();
            let result = self.replay(acts);
            if !has_transparent(acts) || (self.disturbances)() == before {
                return result.err();
            }
        }
        None
    }

    /// One case; what was done is in `acts`, whatever happens.
    fn case(
        &self,
        every: usize,
        acts: &mut Vec<Act>,
        next: &mut dyn FnMut(&Book, usize) -> Option<Act>,
    ) -> Result<(), Disagreement> {
        let run = catch_unwind(AssertUnwindSafe(|| {
            let new = |world: &NewWorld<'_>| Side::new(world(), self.kinds.hugetlb);
            let mut run = Run { sides: [new(self.first), new(self.second)], book: Book::default() };
            while let Some(act) = next(&run.book, acts.len()) {
                acts.push(act);
                let all = acts.len().is_multiple_of(every);
                run.step(act, all)?;
            }
            run.compare_state(None)
        }));
        let (kind, detail) = match run {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Difference(kind, detail))) => (kind, detail),
            Err(payload) => ("a panic".to_owned(), message(&*payload)),
        };
        let name = acts.last().map_or_else(String::new, name);
        Err(Disagreement { acts: acts.clone(), kind: format!("{name}: {kind}"), detail })
    }
}

/// Huge pages can be made of a case's memory.
fn has_transparent(acts: &[Act]) -> bool {
    acts.iter().any(|act| matches!(act, Act::Map { memory: Memory::Transparent, .. }))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no words").to_owned()
}

/// The kind of an act.
fn name(act: &Act) -> String {
    match act {
        Act::Call { number, .. } => format!("{number:?}"),
        Act::Advise { advice, .. } => format!("{advice:?}"),
        Act::Touch { how, .. } => format!("{how:?}"),
        other => {
            let text = format!("{other:?}");
            text.split(' ').next().unwrap_or_default().to_owned()
        }
    }
}

/// What differs, and what both say.
struct Difference(String, String);

/// Two worlds in the middle of a case.
struct Run {
    sides: [Side; 2],
    book: Book,
}

impl Run {
    fn step(&mut self, act: Act, all: bool) -> Result<(), Difference> {
        let mut act = act;
        let mut sort = false;
        match &mut act {
            Act::Read { fd, messages } if self.book.disorder(*fd) => {
                // Only the whole queue can be compared when its order is open.
                *messages = 100;
                sort = true;
            }
            Act::Exit { process } => {
                for ticket in self.book.forget(*process) {
                    self.sides.iter_mut().for_each(|side| side.forget(ticket));
                }
            }
            _ => {}
        }
        let [first, second] = self.sides.each_mut().map(|side| {
            let mut report = side.apply(act);
            if let (Report::Read(Ok(messages)), true) = (&mut report, sort) {
                let fault = |one: &&RawMessage| matches!(one, RawMessage::Pagefault { .. });
                let faults = messages.iter().take_while(fault).count();
                messages[..faults].sort();
            }
            report
        });
        if first != second {
            return Err(Difference("the result".to_owned(), both(&first, &second)));
        }
        let [ended, other] = self.sides.each_mut().map(Side::settle);
        if ended != other {
            return Err(Difference("what was woken".to_owned(), both(&ended, &other)));
        }
        self.book.note(act, &first, &ended);
        self.compare_state(if all { None } else { actor(act) })
    }

    /// Compares what shows of one process, or of all.
    fn compare_state(&mut self, process: Option<u8>) -> Result<(), Difference> {
        let mut areas = Vec::new();
        for living in self.book.living() {
            if process.is_none_or(|one| one == living) {
                let known = self.book.areas(living).expect("it lives");
                areas.extend(
                    side::all_areas(living).filter(|(_, area)| known[usize::from(*area)].is_some()),
                );
            }
        }
        let [first, second] = self.sides.each_mut().map(|side| side.observe(&areas));
        if first == second { Ok(()) } else { Err(first_difference(&first, &second)) }
    }
}

fn both(first: &dyn fmt::Debug, second: &dyn fmt::Debug) -> String {
    format!("first:  {first:?}\nsecond: {second:?}")
}

fn actor(act: Act) -> Option<u8> {
    match act {
        Act::Map { process, .. }
        | Act::Unmap { process, .. }
        | Act::Protect { process, .. }
        | Act::Advise { process, .. }
        | Act::Remap { process, .. }
        | Act::Lock { process, .. }
        | Act::Open { process, .. }
        | Act::Call { process, .. }
        | Act::Touch { process, .. }
        | Act::Scan { process, .. } => Some(process),
        _ => None,
    }
}

fn first_difference(first: &Observation, second: &Observation) -> Difference {
    for (one, other) in first.pages.iter().zip(&second.pages) {
        if one.2 != other.2 {
            return Difference("an entry".to_owned(), both(one, other));
        }
        if one != other {
            return Difference("a byte".to_owned(), both(one, other));
        }
    }
    if first.descriptors != second.descriptors {
        let words = both(&first.descriptors, &second.descriptors);
        return Difference("a descriptor".to_owned(), words);
    }
    Difference("a file".to_owned(), both(&first.files, &second.files))
}
