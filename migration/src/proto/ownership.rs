//! Who owns a guest, decided from what was recorded. Recording itself is the driver's.
//!
//! The records of one host are about one guest each, and the newest counts. A host that expects a
//! guest says so durably before it accepts it: then a record tells for certain, after any restart,
//! that the guest never ran here, and that is what lets the source run it again.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a host has recorded about a transfer of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// Destination: it may come. It has not run here.
    Expected,
    /// Source: given away. This host does not run it again.
    Granted,
    /// Destination: it runs here.
    Owned,
    /// Destination: it never runs here by this transfer.
    Refused,
    /// Source: the destination refused it, it is ours again.
    Reclaimed,
    /// Source: the destination has all of it.
    Released,
}

/// The newest record of a guest on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which guest.
    pub guest: Uuid,
    /// Which transfer.
    pub transfer: u64,
    /// What was recorded of it.
    pub ownership: Ownership,
    /// The other host, as this one calls it.
    pub peer: String,
    /// When, in seconds since 1970.
    pub at_unix_s: u64,
    /// Before it was expected here the guest was known to be elsewhere.
    #[serde(default)]
    pub away: bool,
    /// The transfer was expected here: a grant of it that was recorded since is from a source on
    /// this host to this host.
    #[serde(default)]
    pub comes_here: bool,
}

impl Record {
    /// Whether this record says that the guest is, or may be, on another host.
    pub fn is_away(&self) -> bool {
        match self.ownership {
            Ownership::Granted | Ownership::Released => true,
            Ownership::Expected | Ownership::Refused => self.away,
            Ownership::Owned | Ownership::Reclaimed => false,
        }
    }

    /// Whether its transfer was granted, by this host or to it.
    fn follows_a_grant(&self) -> bool {
        use Ownership::{Granted, Owned, Reclaimed, Released};
        matches!(self.ownership, Granted | Owned | Reclaimed | Released)
    }
}

/// The number of the last transfer, if this host may launch the guest.
///
/// # Errors
/// The record that says that the guest may be running elsewhere.
pub fn may_run(record: Option<Record>) -> Result<u64, Record> {
    match record {
        None => Ok(0),
        Some(record) if record.is_away() => Err(record),
        Some(record) => Ok(record.transfer),
    }
}

/// Whether a transfer with this number may come to this host.
///
/// # Errors
/// The number of a transfer that this host has seen, which is not lower.
pub fn may_come(record: Option<&Record>, transfer: u64) -> Result<(), u64> {
    match record {
        Some(record) if transfer <= record.transfer => Err(record.transfer),
        _ => Ok(()),
    }
}

/// What [`Record::away`] is in the record that follows `newest`.
pub fn away_after(newest: Option<&Record>, ownership: Ownership) -> bool {
    match ownership {
        Ownership::Expected | Ownership::Refused => newest.is_some_and(Record::is_away),
        _ => false,
    }
}

/// What [`Record::comes_here`] is in the record of `transfer` that follows `newest`.
pub fn comes_here(newest: Option<&Record>, transfer: u64, ownership: Ownership) -> bool {
    let before = newest.is_some_and(|record| record.transfer == transfer && record.comes_here);
    ownership == Ownership::Expected || before
}

/// Whether a process that has recorded this does not run the guest, and lets others.
pub fn lets_go(ownership: Ownership) -> bool {
    matches!(ownership, Ownership::Granted | Ownership::Refused)
}

/// Whether the guest of `transfer` may be recorded as owned: it was not refused.
pub fn may_own(record: Option<&Record>, transfer: u64) -> bool {
    !record.is_some_and(|r| r.transfer == transfer && r.ownership == Ownership::Refused)
}

/// What a host answers a source that resumes a session which no process of the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The guest was refused durably: it is the source's again.
    Refused,
    /// It has not run here and cannot any more: refuse it durably, then say so.
    Refuse,
    /// It ran here, and its process is gone.
    Gone,
    /// It had all of its pages after that transfer, and has been granted on since.
    MovedOn,
    /// The records do not tell. The source keeps everything and asks again.
    Unknown(String),
}

/// Answers a source that granted `transfer`. `held` says that another process of this host holds
/// the guest.
pub fn answer(record: Option<&Record>, transfer: u64, held: bool) -> Answer {
    let Some(record) = record else {
        let hint = "is it the right host, and the right --state-dir?";
        return Answer::Unknown(format!("there is no record of the guest here; {hint}"));
    };
    // Only a guest that has all of its pages is granted on, by a number that is higher.
    if record.transfer > transfer && record.follows_a_grant() {
        return Answer::MovedOn;
    }
    if record.transfer != transfer {
        let seen = record.transfer;
        return Answer::Unknown(format!("the record here is of transfer {seen}, not {transfer}"));
    }
    match record.ownership {
        Ownership::Refused => Answer::Refused,
        _ if held => {
            Answer::Unknown("another process here holds the guest: give its address".into())
        }
        Ownership::Expected => Answer::Refuse,
        // The source's own, on the host of both.
        Ownership::Granted if record.comes_here => Answer::Refuse,
        // This is the source's host and not its destination's, which may run the guest.
        Ownership::Granted => {
            Answer::Unknown("the guest was granted away from here: ask its destination".into())
        }
        Ownership::Owned => Answer::Gone,
        Ownership::Reclaimed | Ownership::Released => {
            Answer::Unknown("the transfer is over, as its source has recorded here".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(transfer: u64, ownership: Ownership, away: bool) -> Record {
        let (guest, peer) = (Uuid::from_u128(1), "tcp:b:1".to_owned());
        let comes_here = ownership == Ownership::Expected;
        Record { guest, transfer, ownership, peer, at_unix_s: 0, away, comes_here }
    }

    #[test]
    fn a_guest_that_may_be_elsewhere_is_not_launched() {
        use Ownership::{Expected, Granted, Owned, Reclaimed, Refused, Released};
        for ownership in [Granted, Released] {
            assert!(may_run(Some(record(1, ownership, false))).is_err());
        }
        for ownership in [Expected, Refused] {
            assert!(may_run(Some(record(2, ownership, true))).is_err());
            assert_eq!(may_run(Some(record(2, ownership, false))), Ok(2));
        }
        for ownership in [Owned, Reclaimed] {
            assert_eq!(may_run(Some(record(3, ownership, false))), Ok(3));
        }
        assert_eq!(may_run(None), Ok(0));
    }

    #[test]
    fn only_a_record_that_proves_it_lets_a_source_run_the_guest_again() {
        use Ownership::{Expected, Owned, Refused};
        let of = |ownership, held| answer(Some(&record(4, ownership, false)), 4, held);
        assert_eq!(of(Refused, true), Answer::Refused);
        assert_eq!(of(Expected, false), Answer::Refuse);
        assert_eq!(of(Owned, false), Answer::Gone);
        assert!(matches!(of(Owned, true), Answer::Unknown(_)));
        assert!(matches!(of(Expected, true), Answer::Unknown(_)));
        assert!(matches!(answer(None, 4, false), Answer::Unknown(_)));
        let older = record(3, Expected, false);
        assert!(matches!(answer(Some(&older), 4, false), Answer::Unknown(_)));
    }

    #[test]
    fn a_grant_is_refused_only_where_it_was_expected() {
        let granted = |comes_here| Record { comes_here, ..record(4, Ownership::Granted, false) };
        assert!(matches!(answer(Some(&granted(false)), 4, false), Answer::Unknown(_)));
        assert_eq!(answer(Some(&granted(true)), 4, false), Answer::Refuse);
        let expected = record(4, Ownership::Expected, false);
        assert!(comes_here(Some(&expected), 4, Ownership::Granted));
        assert!(!comes_here(Some(&expected), 5, Ownership::Granted));
        assert!(!comes_here(None, 4, Ownership::Granted));
    }

    #[test]
    fn a_guest_that_was_granted_on_had_all_of_its_pages() {
        use Ownership::{Expected, Granted, Owned, Reclaimed, Refused, Released};
        for ownership in [Granted, Owned, Reclaimed, Released] {
            let record = record(5, ownership, false);
            assert_eq!(answer(Some(&record), 4, true), Answer::MovedOn);
            assert_ne!(answer(Some(&record), 6, false), Answer::MovedOn);
        }
        for ownership in [Expected, Refused] {
            let record = record(5, ownership, false);
            assert!(matches!(answer(Some(&record), 4, false), Answer::Unknown(_)));
        }
    }

    #[test]
    fn what_was_refused_is_never_owned() {
        let refused = record(4, Ownership::Refused, false);
        assert!(!may_own(Some(&refused), 4));
        assert!(may_own(Some(&refused), 5));
        assert!(may_own(Some(&record(4, Ownership::Expected, false)), 4));
    }
}
