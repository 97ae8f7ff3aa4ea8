//! How long a test waits, and how.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long any one wait may take. Guests are slow on a busy machine, and a deadline that is hit
/// by chance costs more than one that is long. The longest patience of the protocol is a minute.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// How often [`until`] looks.
const INTERVAL: Duration = Duration::from_millis(2);

/// Looks until `look` finds something and returns that.
///
/// # Panics
/// When it has found nothing within [`DEADLINE`]; `what` says what was expected.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain for {what}");
        sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_ends_when_something_is_found() {
        let mut looks = 0;
        let found = until("the third look", || {
            looks += 1;
            (looks == 3).then_some("it")
        });
        assert_eq!((found, looks), ("it", 3));
    }
}
