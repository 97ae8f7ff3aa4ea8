//! Runs one row in a world of its own and says what came of it, whatever the row does.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::rows::Row;
use crate::world::World;

/// How long a row may take. Each lasts well below a second; the largest maps huge pages.
pub const DEADLINE: Duration = Duration::from_secs(60);

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claim holds.
    Passed,
    /// It does not, or the row has hung.
    Failed(String),
    /// The world lacks something that the row needs.
    NotRunnable(String),
}

/// Makes the place of a failure part of a verdict, and keeps panics quiet otherwise.
pub fn keep_places() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}: ", place.file(), place.line()));
        PLACE.set(place.unwrap_or_default());
    }));
}

/// Runs a row in a new world, in a thread that is left behind if the row hangs.
pub fn judge<W, F>(row: &'static Row, new_world: F) -> Verdict
where
    W: World,
    F: FnOnce() -> W + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().name(row.name.to_owned()).spawn(move || {
        let run = AssertUnwindSafe(|| run(row, &mut new_world()));
        let verdict = panic::catch_unwind(run).unwrap_or_else(|payload| {
            Verdict::Failed(format!("{}{}", PLACE.take(), message(&*payload)))
        });
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(verdict);
    });
    if let Err(error) = thread {
        return Verdict::Failed(format!("no thread for the row: {error}"));
    }
    let hung = |_| Verdict::Failed(format!("no end within {} s", DEADLINE.as_secs()));
    receiver.recv_timeout(DEADLINE).unwrap_or_else(hung)
}

fn run(row: &Row, world: &mut dyn World) -> Verdict {
    for need in row.needs {
        if let Err(reason) = world.can(*need) {
            return Verdict::NotRunnable(reason.0);
        }
    }
    (row.run)(world);
    Verdict::Passed
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
