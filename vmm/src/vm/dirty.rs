//! The pages that a guest writes while it runs.

use std::sync::{MutexGuard, PoisonError};

use godwit_migration::driver::DirtyTracking;
use godwit_migration::page::PageSet;

use super::Vm;
use crate::Error;
use crate::kvm::{KvmLog, Reading};
use crate::memory::WriteWatch;

/// What notes the writes. Dropping it ends that.
pub(super) enum Tracker {
    KvmLog(KvmLog),
    WriteProtect(Box<WriteWatch>),
}

impl Vm {
    /// Begins to note the pages that are written, by vCPUs, by KVM and by this process. The guest
    /// may run or be paused.
    ///
    /// # Errors
    /// [`Error::TrackingAlready`]; [`Error::Kvm`] and [`Error::Memory`] say what the host lacks.
    /// Nothing is noted then.
    pub fn start_tracking(&self, tracking: DirtyTracking) -> Result<(), Error> {
        let mut tracker = self.tracker();
        if tracker.is_some() {
            return Err(Error::TrackingAlready);
        }
        *tracker = Some(match tracking {
            DirtyTracking::KvmLog => {
                Tracker::KvmLog(self.start_kvm_log(Reading::offered(&self.fd))?)
            }
            DirtyTracking::WriteProtect => {
                Tracker::WriteProtect(Box::new(self.memory.watch_writes()?))
            }
        });
        Ok(())
    }

    /// Adds the pages that were written since the call before, or since the start, to `dirty`, a
    /// set of this guest's pages. There may be others among them. What was taken from the kernel
    /// is in `dirty` even if it fails afterwards.
    ///
    /// # Errors
    /// [`Error::NotTracking`], [`Error::Kvm`], [`Error::Memory`].
    pub fn collect_written(&self, dirty: &mut PageSet) -> Result<(), Error> {
        assert_eq!(dirty.page_count(), self.memory.page_count());
        match &*self.tracker() {
            None => Err(Error::NotTracking),
            Some(Tracker::KvmLog(log)) => {
                self.memory.take_written(dirty);
                Ok(log.collect(dirty)?)
            }
            Some(Tracker::WriteProtect(watch)) => Ok(watch.collect(dirty)?),
        }
    }

    /// Ends it: writes cost nothing any more. Without a start it does nothing.
    pub fn stop_tracking(&self) {
        *self.tracker() = None;
    }

    fn start_kvm_log(&self, reading: Reading) -> Result<KvmLog, Error> {
        // What was written before does not count. It is marked whether somebody asks or not.
        self.memory.take_written(&mut PageSet::empty(self.memory.page_count()));
        Ok(KvmLog::start(&self.fd, &self.memory, reading)?)
    }

    fn tracker(&self) -> MutexGuard<'_, Option<Tracker>> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
