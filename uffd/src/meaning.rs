//! What the answer of a call means for the caller. Error numbers end here, for every backend.

use crate::abi::{Answer, Errno, Out};
use crate::uffd::{Changed, Installed};

/// EAGAIN: the address space is changing, or pages were done before an error that is hidden.
const AGAIN: Errno = Errno(11);
/// EEXIST: the page is there.
const EXISTS: Errno = Errno(17);

/// The meaning of COPY, ZEROPAGE, CONTINUE, POISON and MOVE.
///
/// # Errors
///
/// Error numbers that are no part of normal work.
pub fn installed(answer: Answer) -> Result<Installed, Errno> {
    match (answer.result, answer.out) {
        (Ok(()), _) => Ok(Installed::All),
        (Err(EXISTS), _) => Ok(Installed::AlreadyPresent),
        (Err(AGAIN), Out::Done(bytes)) if bytes > 0 => {
            Ok(Installed::Partly { bytes: bytes.unsigned_abs() })
        }
        (Err(AGAIN), _) => Ok(Installed::EventsFirst),
        (Err(errno), _) => Err(errno),
    }
}

/// The meaning of WRITEPROTECT, which has no partial result.
///
/// # Errors
///
/// Error numbers that are no part of normal work.
pub fn changed(answer: Answer) -> Result<Changed, Errno> {
    match answer.result {
        Ok(()) => Ok(Changed::All),
        Err(AGAIN) => Ok(Changed::EventsFirst),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: i32, out: Out) -> Answer {
        Answer { result: Err(Errno(errno)), out }
    }

    #[test]
    fn error_numbers_become_what_is_to_be_done() {
        let done = Answer { result: Ok(()), out: Out::Done(4096) };
        assert_eq!(installed(done), Ok(Installed::All));
        assert_eq!(installed(failed(17, Out::Done(-17))), Ok(Installed::AlreadyPresent));
        let partly = installed(failed(11, Out::Done(8192)));
        assert_eq!(partly, Ok(Installed::Partly { bytes: 8192 }));
        for out in [Out::Done(-11), Out::Done(0), Out::Untouched] {
            assert_eq!(installed(failed(11, out)), Ok(Installed::EventsFirst));
        }
    }

    #[test]
    fn a_change_of_protection_is_whole_or_not_yet() {
        let done = Answer { result: Ok(()), out: Out::Untouched };
        assert_eq!(changed(done), Ok(Changed::All));
        assert_eq!(changed(failed(11, Out::Untouched)), Ok(Changed::EventsFirst));
    }

    #[test]
    fn other_error_numbers_stay_errors() {
        for errno in [1, 2, 3, 12, 14, 16, 22] {
            let answer = failed(errno, Out::Done(i64::from(-errno)));
            assert_eq!(installed(answer), Err(Errno(errno)));
            assert_eq!(changed(answer), Err(Errno(errno)));
        }
        // Protection never stands in the way of a page, so this means nothing to it.
        assert_eq!(changed(failed(17, Out::Untouched)), Err(Errno(17)));
    }

    #[test]
    fn the_numbers_are_the_systems() {
        assert_eq!((AGAIN.0, EXISTS.0), (libc::EAGAIN, libc::EEXIST));
    }
}
