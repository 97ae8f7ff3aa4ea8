//! The pages that a guest writes while it runs.

use std::sync::{MutexGuard, PoisonError};

use godwit_migration::driver::DirtyTracking;
use godwit_migration::page::PageSet;

use super::Vm;
use crate::Error;
use crate::kvm::{KvmLog, Reading};
use crate::memory::{HeldWrites, WriteWatch};

/// What notes the writes. Dropping it ends that.
pub(super) enum Tracker {
    KvmLog(KvmLog),
    WriteProtect(Box<WriteWatch>),
}

impl Vm {
    /// Begins to note the pages that are written, by vCPUs, by KVM and by this process. The guest
    /// may run or be paused. [`DirtyTracking::WriteFaults`] holds writes up, and whoever gets the
    /// guard notes them.
    ///
    /// # Errors
    /// [`Error::TrackingAlready`]; [`Error::Kvm`] and [`Error::Memory`] say what the host lacks.
    /// Nothing is noted then.
    pub fn start_tracking(&self, tracking: DirtyTracking) -> Result<Option<HeldWrites>, Error> {
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
            DirtyTracking::WriteFaults => return Ok(Some(self.memory.hold_writes()?)),
        });
        Ok(None)
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

#[cfg(test)]
mod tests {
    use godwit_uffd::page::PageIndex;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::KernelImage;
    use crate::guest_image::BARE;
    use crate::memory::Backing;
    use crate::vm::{GuestExit, VmConfig};

    const BYTES: usize = 32 << 20;
    const PAGE: usize = 4096;

    fn snapshot(vm: &Vm) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        vm.memory().inner().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// Waits a moment for the guest's end.
    fn has_ended(vm: &Vm) -> bool {
        let mut fds = [PollFd::new(vm.exits(), PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        poll(&mut fds, Some(&moment)).unwrap() == 1
    }

    /// Follows a guest to its end by a log that is read so.
    fn follow(reading: impl Fn(&Vm) -> Reading) {
        let config = VmConfig {
            cpus: 1,
            memory_bytes: BYTES as u64,
            backing: Backing::Anon,
            devices: Vec::new(),
        };
        let vm = Vm::create(&config, Box::new(std::io::sink())).unwrap();
        let line = "workload=dirty passes=3 exit=0";
        vm.boot(&KernelImage::Embedded(BARE), None, line).unwrap();
        let log = vm.start_kvm_log(reading(&vm)).unwrap();
        *vm.tracker() = Some(Tracker::KvmLog(log));
        let (mut before, mut told) = (snapshot(&vm), 0);
        vm.start();
        loop {
            let over = has_ended(&vm) || vm.pause().is_err();
            let mut dirty = PageSet::empty(vm.memory().page_count());
            vm.collect_written(&mut dirty).unwrap();
            told += dirty.len();
            let now = snapshot(&vm);
            for (page, (old, new)) in (0..).zip(before.chunks(PAGE).zip(now.chunks(PAGE))) {
                assert!(old == new || dirty.contains(PageIndex(page)), "page {page} is missed");
            }
            if over {
                break;
            }
            before = now;
            let _ = vm.resume();
        }
        assert_eq!(vm.exits().peek(), Some(GuestExit::PowerOff { code: 0 }));
        assert!(told > 1000, "{told} pages");
    }

    #[test]
    fn the_log_of_kvm_misses_nothing_however_it_is_read() {
        if !std::path::Path::new("/dev/kvm").exists() {
            return println!("skipped: there is no /dev/kvm");
        }
        follow(|_| Reading::Takes);
        follow(|vm| Reading::offered(&vm.fd));
    }
}
