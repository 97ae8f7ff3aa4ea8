//! Runs one row in a world of its own and says what came of it, whatever the row does.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use crate::rows::Row;
use crate::world::{NotHere, World};

/// How long a row may take. Each lasts well below a second; the largest maps huge pages.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long a row may wait for its turn: settings of the whole machine go from test to test.
pub const TURN: Duration = Duration::from_secs(600);

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

/// What the thread of a row tells.
enum Report {
    /// The world is there and can do what the row needs; the row begins.
    Begun,
    Over(Verdict),
}

/// Runs a row in a new world, in a thread that is left behind if the row hangs.
pub fn judge<W, F>(row: &'static Row, new_world: F) -> Verdict
where
    W: World,
    F: FnOnce() -> Result<W, NotHere> + Send + 'static,
{
    judge_within(row, new_world, DEADLINE)
}

fn judge_within<W, F>(row: &'static Row, new_world: F, deadline: Duration) -> Verdict
where
    W: World,
    F: FnOnce() -> Result<W, NotHere> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().name(row.name.to_owned()).spawn(move || {
        let run = AssertUnwindSafe(|| run(row, new_world, &sender));
        let verdict = panic::catch_unwind(run).unwrap_or_else(|payload| {
            Verdict::Failed(format!("{}{}", PLACE.take(), message(&*payload)))
        });
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(Report::Over(verdict));
    });
    if let Err(error) = thread {
        return Verdict::Failed(format!("no thread for the row: {error}"));
    }
    let mut limit = TURN;
    loop {
        match receiver.recv_timeout(limit) {
            Ok(Report::Begun) => limit = deadline,
            Ok(Report::Over(verdict)) => return verdict,
            Err(_) => return Verdict::Failed(format!("no end within {} s", limit.as_secs())),
        }
    }
}

fn run<W: World>(
    row: &Row,
    new_world: impl FnOnce() -> Result<W, NotHere>,
    sender: &Sender<Report>,
) -> Verdict {
    let mut world = match new_world() {
        Ok(world) => world,
        Err(NotHere(reason)) => return Verdict::NotRunnable(reason),
    };
    for need in row.needs {
        if let Err(NotHere(reason)) = world.can(*need) {
            return Verdict::NotRunnable(reason);
        }
    }
    let _ = sender.send(Report::Begun);
    (row.run)(&mut world);
    Verdict::Passed
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

#[cfg(test)]
mod tests {
    use godwit_uffd::model::Profile;

    use super::*;
    use crate::model::ModelWorld;
    use crate::world::Ability;

    fn model() -> Result<ModelWorld, NotHere> {
        Ok(ModelWorld::new(Profile::V6_18))
    }

    #[test]
    fn a_row_that_holds_passes() {
        static ROW: Row = Row { name: "row_900_holds", needs: &[], run: |_| {} };
        assert_eq!(judge(&ROW, model), Verdict::Passed);
    }

    #[test]
    fn a_row_that_panics_fails_with_its_words() {
        static ROW: Row = Row { name: "row_901_no", needs: &[], run: |_| panic!("it is not so") };
        let verdict = judge(&ROW, model);
        assert!(matches!(&verdict, Verdict::Failed(why) if why.ends_with("it is not so")));
    }

    #[test]
    fn a_row_that_hangs_fails_at_the_deadline() {
        fn hang(_: &mut dyn World) {
            loop {
                thread::park();
            }
        }
        static ROW: Row = Row { name: "row_902_hangs", needs: &[], run: hang };
        let verdict = judge_within(&ROW, model, Duration::from_millis(10));
        assert!(matches!(&verdict, Verdict::Failed(why) if why.starts_with("no end")));
    }

    #[test]
    fn a_row_without_its_ability_is_not_run() {
        static ROW: Row = Row {
            name: "row_903_needs",
            needs: &[Ability::Newest],
            run: |_| panic!("it runs without what it needs"),
        };
        let verdict = judge(&ROW, model);
        assert_eq!(verdict, Verdict::NotRunnable("the profile is 6.18".to_owned()));
    }
}
