//! The deterministic simulator of the migration engine.
//!
//! One seed is one run, on one thread, in virtual time: hosts with durable records, processes that
//! crash and start again, a network that delays, cuts, falls silent and damages, and a guest that
//! checks what it reads. Everything in between is what ships: the state machines of
//! `godwit_migration::proto`, its claims, its order of the push, its wire format, and the installs
//! of `godwit_uffd` over the modelled kernel. What the threads of `godwit_migration::driver` do
//! around them is done here in small steps, of which the seed chooses the next.
//!
//! After each step the safety invariants of the design are checked (`check`). From some time on
//! nothing goes wrong any more, and the migration has to end.

mod channel;
mod chaos;
mod check;
mod dial;
mod disk;
mod door;
mod env;
pub mod fuzz;
mod guest;
mod incoming;
mod memory;
mod mutation;
mod net;
mod outgoing;
mod plan;
mod process;
mod push;
mod rng;
mod runs;
mod strike;
mod take;
mod vm;
mod world;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

pub use mutation::Mutation;

use env::Env;
use world::World;

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The run.
    pub seed: u64,
    /// Which, and how.
    pub what: String,
}

/// Runs one seed, with a mistake made on purpose or without. `trace` takes a line for each thing
/// that happens.
///
/// # Errors
/// The first invariant that did not hold. A panic is one.
pub fn run(
    seed: u64,
    mutation: Option<Mutation>,
    trace: Option<&mut Vec<String>>,
) -> Result<(), Violation> {
    let tracing = trace.is_some();
    let shared: Rc<RefCell<Option<World>>> = Rc::default();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let world = World::new(Env::new(seed, mutation, tracing));
        *shared.borrow_mut() = Some(world);
        shared.borrow_mut().as_mut().expect("it was put there").run();
    }));
    let mut world = shared.borrow_mut().take();
    let lines = world.as_mut().and_then(|world| world.env.trace.take()).unwrap_or_default();
    if let Some(trace) = trace {
        trace.extend(lines);
    }
    let what = match result {
        Err(panic) => Some(format!("a panic: {}", text_of(&*panic))),
        Ok(()) => world.and_then(|world| world.env.violation.clone()),
    };
    what.map_or(Ok(()), |what| Err(Violation { seed, what }))
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

/// Runs seeds from `first` on, on all processors. The violations, in the order of their seeds.
pub fn run_all(first: u64, seeds: u64, mutation: Option<Mutation>) -> Vec<Violation> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut violations: Vec<Violation> = std::thread::scope(|scope| {
        let part = |thread: usize| {
            scope.spawn(move || {
                let seeds = (first + thread as u64..first + seeds).step_by(threads);
                seeds.filter_map(|seed| run(seed, mutation, None).err()).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..threads).map(part).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a run does not panic")).collect()
    });
    violations.sort_by_key(|violation| violation.seed);
    violations
}
