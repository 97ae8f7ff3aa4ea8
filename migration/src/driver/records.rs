//! Who owns a guest, on stable storage: one small file per guest.
//!
//! A file has two slots of 512 bytes, each a line: a record as JSON, its checksum, spaces. Writing
//! takes the slot with the older record, so that an interrupted write leaves the newer one. The
//! file is made before the guest is paused: a record written during the blackout then changes bytes
//! that are allocated already, which is one wait for the disk instead of the three of a new file
//! (its data, its name, its folder). On a busy host each such wait is milliseconds.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lock::{Busy, GuestLock};
use crate::proto::{self, Answer, Ownership, Record};

/// A record that cannot be read or written, or that forbids what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("record of guest {guest} in {path}: {step}")]
    Io {
        /// Which guest.
        guest: Uuid,
        /// The file.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not a record.
    #[error("record of guest {guest} in {path} is damaged: restore or remove it by hand")]
    Damaged {
        /// Which guest.
        guest: Uuid,
        /// The file.
        path: PathBuf,
    },
    /// The guest was granted away.
    #[error(
        "guest {guest} was granted to {peer} by transfer {transfer} and may be running there; \
         if it is certain that it does not, start it with --override-grant"
    )]
    GrantedAway {
        /// Which guest.
        guest: Uuid,
        /// To whom.
        peer: String,
        /// By which transfer.
        transfer: u64,
    },
    /// The guest is here, in another process.
    #[error("guest {guest} runs here already, in {}", process(*.pid))]
    RunsHere {
        /// Which guest.
        guest: Uuid,
        /// The process, if it could be told.
        pid: Option<u32>,
    },
    /// This host has promised never to run the guest by this transfer.
    #[error("transfer {transfer} of guest {guest} was refused by this host: migrate it anew")]
    Refused {
        /// Which guest.
        guest: Uuid,
        /// The transfer.
        transfer: u64,
    },
    /// A transfer that was used before.
    #[error(
        "transfer {offered} of guest {guest} is offered, but this host has seen transfer {seen}"
    )]
    Stale {
        /// Which guest.
        guest: Uuid,
        /// The number offered.
        offered: u64,
        /// The number in the record.
        seen: u64,
    },
}

/// Bytes of a slot: no device tears a write of its smallest sector.
const SLOT_BYTES: usize = 512;
/// Most characters of a peer's name in a record, so that it fits its slot.
const PEER_CHARS_MAX: usize = 128;

/// A record and how new it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    sequence: u64,
    #[serde(flatten)]
    record: Record,
}

/// What a slot holds.
enum Slot {
    Blank,
    Damaged,
    Entry(Entry),
}

impl Entry {
    fn to_slot(&self) -> [u8; SLOT_BYTES] {
        let json = serde_json::to_string(self).expect("plain data serializes");
        let line = format!("{json} {:08x}", crc32c::crc32c(json.as_bytes()));
        assert!(line.len() < SLOT_BYTES, "a record of {} bytes", line.len());
        let mut slot = [b' '; SLOT_BYTES];
        slot[..line.len()].copy_from_slice(line.as_bytes());
        slot[SLOT_BYTES - 1] = b'\n';
        slot
    }
}

impl Slot {
    fn read(bytes: &[u8]) -> Slot {
        let Ok(line) = std::str::from_utf8(bytes) else { return Slot::Damaged };
        if line.trim().is_empty() {
            return Slot::Blank;
        }
        let Some((json, crc)) = line.trim().rsplit_once(' ') else { return Slot::Damaged };
        if crc != format!("{:08x}", crc32c::crc32c(json.as_bytes())) {
            return Slot::Damaged;
        }
        serde_json::from_str(json).map_or(Slot::Damaged, Slot::Entry)
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

/// The records in one state directory, and the locks of the guests that this process may run.
///
/// A lock is held from the check that allows a guest to be started, or the record that this host
/// owns it, until the record that it was granted away, or until it is forgotten. So two processes
/// that share a directory, the source and the destination of a move among them, never run one guest
/// at the same time.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
    held: Arc<Mutex<HashMap<Uuid, GuestLock>>>,
}

impl Records {
    /// The records in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// What making the directory returned.
    pub fn open(dir: &Path) -> io::Result<Records> {
        fs::create_dir_all(dir).map_err(|e| {
            io::Error::new(e.kind(), format!("state directory {}: {e}", dir.display()))
        })?;
        Ok(Records { dir: dir.to_owned(), held: Arc::default() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Uuid, GuestLock>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this process the one of this host that may run `guest`. Holding it twice is holding it
    /// once.
    ///
    /// # Errors
    /// [`RecordError::RunsHere`] if another process is, or the lock file cannot be made.
    pub fn hold(&self, guest: Uuid) -> Result<(), RecordError> {
        let mut held = self.held();
        if held.contains_key(&guest) {
            return Ok(());
        }
        let path = self.dir.join(format!("{guest}.lock"));
        match GuestLock::take(&path) {
            Ok(Ok(lock)) => {
                held.insert(guest, lock);
                Ok(())
            }
            Ok(Err(Busy { pid })) => Err(RecordError::RunsHere { guest, pid }),
            Err(source) => Err(RecordError::Io { guest, path, step: "lock", source }),
        }
    }

    /// This process does not run `guest` any more, or never did.
    pub fn let_go(&self, guest: Uuid) {
        self.held().remove(&guest);
    }

    fn path(&self, guest: Uuid) -> PathBuf {
        self.dir.join(format!("{guest}.json"))
    }

    /// The record of `guest`, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read or is not a record.
    pub fn read(&self, guest: Uuid) -> Result<Option<Record>, RecordError> {
        Ok(self.newest(guest)?.map(|entry| entry.record))
    }

    fn newest(&self, guest: Uuid) -> Result<Option<Entry>, RecordError> {
        let path = self.path(guest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { guest, path, step: "read", source }),
        };
        let slots: Vec<Slot> = bytes.chunks(SLOT_BYTES).map(Slot::read).collect();
        let damaged = slots.is_empty() || slots.iter().any(|slot| matches!(slot, Slot::Damaged));
        let entries = slots.into_iter().filter_map(|slot| match slot {
            Slot::Entry(entry) => Some(entry),
            Slot::Blank | Slot::Damaged => None,
        });
        match entries.max_by_key(|entry| entry.sequence) {
            None if damaged => Err(RecordError::Damaged { guest, path }),
            newest => Ok(newest),
        }
    }

    /// Makes the file of `guest`, if there is none, so that a later write is quick.
    ///
    /// # Errors
    /// The step that failed: no record of this guest can be written.
    pub fn prepare(&self, guest: Uuid) -> Result<(), RecordError> {
        let path = self.path(guest);
        if path.exists() {
            return Ok(());
        }
        let failed = |step| {
            let path = path.clone();
            move |source| RecordError::Io { guest, path, step, source }
        };
        let aside = path.with_extension("json.new");
        let mut file = File::create(&aside).map_err(failed("create"))?;
        file.write_all(&[b' '; SLOT_BYTES * 2]).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&aside, &path).map_err(failed("rename"))?;
        let dir = File::open(&self.dir).map_err(failed("open the directory"))?;
        dir.sync_all().map_err(failed("sync the directory"))
    }

    /// Waits until the disk has what others have written to it. A sync waits for all of that, and
    /// the guest stands still while its record is synced; so this is done while it still runs.
    ///
    /// # Errors
    /// The step that failed: no record of this guest can be written.
    pub fn settle(&self, guest: Uuid) -> Result<(), RecordError> {
        let path = self.path(guest);
        let synced = File::open(&path).and_then(|file| file.sync_data());
        synced.map_err(|source| RecordError::Io { guest, path, step: "sync", source })
    }

    /// Puts a record on stable storage. With it the guest's lock is taken (owned, reclaimed) or
    /// given up (granted, refused).
    ///
    /// # Errors
    /// The step that failed; what was there before then stands. [`RecordError::RunsHere`] if
    /// another process of this host may run the guest that is to be owned.
    pub fn write(
        &self,
        guest: Uuid,
        transfer: u64,
        ownership: Ownership,
        peer: &str,
    ) -> Result<(), RecordError> {
        if matches!(ownership, Ownership::Owned | Ownership::Reclaimed) {
            self.hold(guest)?;
        }
        let stored = match ownership {
            Ownership::Owned => self.store_owned(guest, transfer, peer),
            _ => self.store(guest, transfer, ownership, peer),
        };
        // A write of OWNED that failed may be on the disk: until it is refused, only this process
        // knows that the guest does not run.
        let gone = match stored {
            Ok(()) => proto::lets_go(ownership),
            Err(ref error) => matches!(error, RecordError::Refused { .. }),
        };
        if gone {
            self.let_go(guest);
        }
        stored
    }

    /// Another process of this host may have refused it while this one waited for the grant.
    fn store_owned(&self, guest: Uuid, transfer: u64, peer: &str) -> Result<(), RecordError> {
        if !proto::may_own(self.read(guest)?.as_ref(), transfer) {
            return Err(RecordError::Refused { guest, transfer });
        }
        self.store(guest, transfer, Ownership::Owned, peer)
    }

    fn store(
        &self,
        guest: Uuid,
        transfer: u64,
        ownership: Ownership,
        peer: &str,
    ) -> Result<(), RecordError> {
        self.prepare(guest)?;
        let newest = self.newest(guest)?;
        let sequence = newest.as_ref().map_or(1, |entry| entry.sequence + 1);
        let before = newest.as_ref().map(|entry| &entry.record);
        let away = proto::away_after(before, ownership);
        let comes_here = proto::comes_here(before, transfer, ownership);
        let at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let peer = peer.chars().filter(char::is_ascii_graphic).take(PEER_CHARS_MAX).collect();
        let record = Record { guest, transfer, ownership, peer, at_unix_s, away, comes_here };
        let slot = Entry { sequence, record }.to_slot();
        let path = self.path(guest);
        let failed = |step| {
            let path = path.clone();
            move |source| RecordError::Io { guest, path, step, source }
        };
        let file = File::options().write(true).open(&path).map_err(failed("open"))?;
        let at = (sequence % 2) * SLOT_BYTES as u64;
        file.write_all_at(&slot, at).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))
    }

    /// Marks a grant as complete, unless something newer stands.
    ///
    /// # Errors
    /// See [`Records::write`].
    pub fn release(&self, guest: Uuid, transfer: u64) -> Result<(), RecordError> {
        match self.read(guest)? {
            Some(r) if r.transfer == transfer && r.ownership == Ownership::Granted => {
                self.write(guest, transfer, Ownership::Released, &r.peer)
            }
            _ => Ok(()),
        }
    }

    /// Forgets `guest`, which has ended here.
    ///
    /// # Errors
    /// What removing the file returned.
    pub fn forget(&self, guest: Uuid) -> Result<(), RecordError> {
        let path = self.path(guest);
        let removed = match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { guest, path, step: "remove", source })
            }
            _ => Ok(()),
        };
        self.let_go(guest);
        removed
    }

    /// The number of the last transfer of `guest` that this host knows of, if it may be started
    /// here; it is then held.
    ///
    /// # Errors
    /// A guest that was granted away or runs here already, or a record that cannot be read.
    pub fn may_run(&self, guest: Uuid) -> Result<u64, RecordError> {
        self.hold(guest)?;
        let allowed = self.last_transfer(guest);
        if allowed.is_err() {
            self.let_go(guest);
        }
        allowed
    }

    fn last_transfer(&self, guest: Uuid) -> Result<u64, RecordError> {
        proto::may_run(self.read(guest)?).map_err(|Record { peer, transfer, .. }| {
            RecordError::GrantedAway { guest, peer, transfer }
        })
    }

    /// Whether `transfer` of `guest` may come here.
    ///
    /// # Errors
    /// A transfer that is not newer than the last one seen, or a record that cannot be read.
    pub fn may_come(&self, guest: Uuid, transfer: u64) -> Result<(), RecordError> {
        let record = self.read(guest)?;
        proto::may_come(record.as_ref(), transfer).map_err(|seen| RecordError::Stale {
            guest,
            offered: transfer,
            seen,
        })
    }

    /// What a source that granted `transfer` of `guest` is to be told, while no session of this
    /// process has it. A refusal is on stable storage when this returns.
    ///
    /// # Errors
    /// A record that cannot be read or written: nothing can be said.
    pub fn answer(&self, guest: Uuid, transfer: u64, peer: &str) -> Result<Answer, RecordError> {
        let ours = self.held().contains_key(&guest);
        let held = match self.hold(guest) {
            Ok(()) => ours,
            Err(RecordError::RunsHere { .. }) => true,
            Err(error) => return Err(error),
        };
        let answer = self.answer_from_record(guest, transfer, peer, held);
        if !ours {
            self.let_go(guest);
        }
        answer
    }

    fn answer_from_record(
        &self,
        guest: Uuid,
        transfer: u64,
        peer: &str,
        held: bool,
    ) -> Result<Answer, RecordError> {
        match proto::answer(self.read(guest)?.as_ref(), transfer, held) {
            Answer::Refuse => {
                self.store(guest, transfer, Ownership::Refused, peer)?;
                Ok(Answer::Refused)
            }
            answer => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_what_the_records_prove_and_a_refusal_bars_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [(); 2].map(|()| Records::open(dir.path()).unwrap());
        let guest = Uuid::from_u128(6);
        assert!(matches!(a.answer(guest, 1, "s").unwrap(), Answer::Unknown(_)));
        a.write(guest, 1, Ownership::Expected, "s").unwrap();
        assert_eq!(b.answer(guest, 1, "s").unwrap(), Answer::Refused);
        assert!(matches!(
            a.write(guest, 1, Ownership::Owned, "s"),
            Err(RecordError::Refused { transfer: 1, .. })
        ));
        a.write(guest, 2, Ownership::Owned, "s").unwrap();
        assert!(matches!(b.answer(guest, 2, "s").unwrap(), Answer::Unknown(_)));
        a.let_go(guest);
        assert_eq!(b.answer(guest, 2, "s").unwrap(), Answer::Gone);
    }

    #[test]
    fn a_guest_that_is_away_stays_away_while_it_is_expected_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(7);
        records.write(guest, 1, Ownership::Granted, "tcp:b:1").unwrap();
        records.write(guest, 2, Ownership::Expected, "tcp:b:2").unwrap();
        assert!(records.may_run(guest).is_err());
        records.write(guest, 2, Ownership::Refused, "tcp:b:2").unwrap();
        assert!(records.may_run(guest).is_err());
        records.write(guest, 3, Ownership::Owned, "tcp:b:3").unwrap();
        assert_eq!(records.may_run(guest).unwrap(), 3);
    }

    #[test]
    fn a_guest_that_was_granted_away_may_not_run_and_a_reclaimed_one_may() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(1);
        assert_eq!(records.may_run(guest).unwrap(), 0);
        records.write(guest, 1, Ownership::Granted, "tcp:b:1").unwrap();
        let error = records.may_run(guest).unwrap_err();
        assert!(error.to_string().contains("tcp:b:1"), "{error}");
        records.release(guest, 1).unwrap();
        assert!(records.may_run(guest).is_err());
        records.write(guest, 1, Ownership::Reclaimed, "tcp:b:1").unwrap();
        assert_eq!(records.may_run(guest).unwrap(), 1);
        records.forget(guest).unwrap();
        assert_eq!(records.read(guest).unwrap(), None);
    }

    #[test]
    fn a_write_that_was_cut_leaves_the_record_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(5);
        for transfer in 1..=3 {
            records.write(guest, transfer, Ownership::Owned, "z").unwrap();
        }
        let mut bytes = fs::read(records.path(guest)).unwrap();
        // The third record is in the second slot; the cut leaves half of it.
        bytes[SLOT_BYTES + 60..].fill(b' ');
        fs::write(records.path(guest), &bytes).unwrap();
        assert_eq!(records.read(guest).unwrap().unwrap().transfer, 2);
        records.write(guest, 4, Ownership::Owned, &"long".repeat(500)).unwrap();
        assert_eq!(records.read(guest).unwrap().unwrap().transfer, 4);
    }

    #[test]
    fn an_old_transfer_may_not_come_and_a_newer_one_may() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(2);
        records.may_come(guest, 1).unwrap();
        records.write(guest, 1, Ownership::Refused, "x").unwrap();
        assert!(matches!(records.may_come(guest, 1), Err(RecordError::Stale { .. })));
        records.may_come(guest, 2).unwrap();
    }

    #[test]
    fn a_release_does_not_overwrite_what_is_newer() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(3);
        records.write(guest, 2, Ownership::Owned, "y").unwrap();
        records.release(guest, 1).unwrap();
        assert_eq!(records.read(guest).unwrap().unwrap().ownership, Ownership::Owned);
    }

    #[test]
    fn two_processes_with_one_directory_pass_a_guest_on_and_never_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [(); 2].map(|()| Records::open(dir.path()).unwrap());
        let guest = Uuid::from_u128(5);
        a.may_run(guest).unwrap();
        assert!(matches!(b.may_run(guest), Err(RecordError::RunsHere { .. })));
        let owned =
            |records: &Records, transfer| records.write(guest, transfer, Ownership::Owned, "peer");
        assert!(matches!(owned(&b, 1), Err(RecordError::RunsHere { .. })));
        a.write(guest, 1, Ownership::Granted, "b").unwrap();
        owned(&b, 1).unwrap();
        assert!(matches!(a.may_run(guest), Err(RecordError::RunsHere { .. })));
        b.forget(guest).unwrap();
        assert_eq!(a.may_run(guest).unwrap(), 0);
        a.forget(guest).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_guest_whose_ownership_cannot_be_recorded_is_held_until_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [(); 2].map(|()| Records::open(dir.path()).unwrap());
        let guest = Uuid::from_u128(6);
        fs::create_dir(a.path(guest)).unwrap();
        assert!(a.write(guest, 1, Ownership::Owned, "peer").is_err());
        assert!(matches!(b.hold(guest), Err(RecordError::RunsHere { .. })));
        fs::remove_dir(a.path(guest)).unwrap();
        a.write(guest, 1, Ownership::Refused, "peer").unwrap();
        b.hold(guest).unwrap();
    }

    #[test]
    fn a_damaged_record_forbids_everything_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guest = Uuid::from_u128(4);
        fs::write(records.path(guest), b"{").unwrap();
        assert!(records.may_run(guest).unwrap_err().to_string().contains(&guest.to_string()));
        assert!(records.may_come(guest, 9).is_err());
    }
}
