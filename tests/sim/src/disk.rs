//! The durable record of the guest on one host, and the lock that processes of the host share. What
//! may be written, and what a record means, is decided by the engine; see `records.rs` there for
//! the order of these steps on a real disk.

use std::time::Duration;

use godwit_migration::proto::{
    Answer, Ownership, Record, answer, away_after, comes_here, lets_go, may_own,
};
use uuid::Uuid;

use crate::rng::Rng;

/// The only guest of a run.
pub const GUEST: Uuid = Uuid::from_u128(0x600d);

/// A process, over all hosts and restarts.
pub type ProcessId = u64;

/// The disk of a host.
#[derive(Debug, Default)]
pub struct Disk {
    pub record: Option<Record>,
    pub held: Option<ProcessId>,
    /// So many writes fail.
    pub failing: u32,
    /// How long a write takes on top of what it would.
    pub slow: Duration,
}

/// A write that is under way.
#[derive(Clone, Debug)]
pub struct Write {
    record: Record,
    pub done_at: Duration,
    fails: bool,
}

impl Disk {
    /// Begins to write a record.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn begin(
        &mut self,
        process: ProcessId,
        (transfer, ownership): (u64, Ownership),
        now: Duration,
        rng: &mut Rng,
    ) -> Result<Write, String> {
        if matches!(ownership, Ownership::Owned | Ownership::Reclaimed) {
            if self.held.is_some_and(|holder| holder != process) {
                return Err("the guest runs here already".into());
            }
            self.held = Some(process);
        }
        if ownership == Ownership::Owned && !may_own(self.record.as_ref(), transfer) {
            self.held = None;
            return Err("the transfer was refused by this host".into());
        }
        let away = away_after(self.record.as_ref(), ownership);
        let peer = String::new();
        let comes_here = comes_here(self.record.as_ref(), transfer, ownership);
        let guest = GUEST;
        let record = Record { guest, transfer, ownership, peer, at_unix_s: 0, away, comes_here };
        let fails = self.failing > 0;
        self.failing = self.failing.saturating_sub(1);
        Ok(Write { record, done_at: now + self.slow + rng.micros(100, 5000), fails })
    }

    /// The write is over.
    ///
    /// # Errors
    /// It failed. What is on the disk then is anybody's guess.
    pub fn finish(&mut self, write: Write, rng: &mut Rng) -> Result<(), String> {
        let Write { record, fails, .. } = write;
        let ownership = record.ownership;
        if !fails || rng.chance(30) {
            self.record = Some(record);
        }
        if fails {
            return Err("the disk says no".into());
        }
        if lets_go(ownership) {
            self.held = None;
        }
        Ok(())
    }

    /// The process of the write is gone.
    pub fn interrupt(&mut self, write: Write, rng: &mut Rng) {
        if !write.fails && rng.chance(50) {
            self.record = Some(write.record);
        }
    }

    /// What a source that granted `transfer` is to be told; a refusal has to be written before.
    pub fn answer(&self, transfer: u64) -> Answer {
        answer(self.record.as_ref(), transfer, self.held.is_some())
    }

    pub fn ownership(&self, transfer: u64) -> Option<Ownership> {
        self.record.as_ref().filter(|r| r.transfer == transfer).map(|r| r.ownership)
    }
}
