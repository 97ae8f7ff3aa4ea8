//! KVM's dirty log: the pages of the memslots that were written through KVM, by vCPUs or by KVM
//! itself. What this process writes through its own mapping is not in it. KVM counts base pages,
//! whatever the memory is made of.
//!
//! There are two ways to read it. In the old one reading takes the bits and protects their pages,
//! all of a memslot under one lock. In the other (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) reading takes
//! nothing, and what was read is cleared and protected afterwards, in parts, so that vCPUs wait for
//! moments only; where KVM can, switching the log on sets all bits and protects nothing either.

// UNSAFETY: an ioctl that reads a bitmap of ours.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use godwit_migration::page::PageSet;
use godwit_uffd::page::{PageIndex, PageSize};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{KvmError, failed, memslot};
use crate::memory::{GuestMemory, Region, WORD_PAGES, insert_words};

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`
const KVM_CLEAR_DIRTY_LOG: u64 =
    3 << 30 | (size_of::<kvm_clear_dirty_log>() as u64) << 16 | (KVMIO as u64) << 8 | 0xc0;

const _: () = assert!(KVM_CLEAR_DIRTY_LOG == 0xC018_AEC0);

/// Words that are cleared by one call: 16384 pages, 64 MiB. KVM holds its lock meanwhile.
const CLEAR_WORDS_MAX: usize = 256;

/// How the log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Reading takes the bits.
    Takes,
    /// What was read is taken by a call of its own. The bits are what KVM offers of
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, not zero.
    Clears(u64),
}

impl Reading {
    /// The better of the two that KVM offers.
    pub fn offered(vm: &VmFd) -> Reading {
        let answer = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        match u64::try_from(answer) {
            Ok(bits @ 1..) => Reading::Clears(bits & OFFERS_KNOWN),
            _ => Reading::Takes,
        }
    }
}

/// The dirty log of all memslots, on until it is dropped.
pub struct KvmLog {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    reading: Reading,
}

impl KvmLog {
    /// Switches the log on. Pages that are written after this has returned are in it. How it is
    /// read must be the same for all logs of a virtual machine.
    ///
    /// # Errors
    /// [`KvmError::Call`] if the kernel refuses it; the log is off then.
    pub fn start(
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemory>,
        reading: Reading,
    ) -> Result<KvmLog, KvmError> {
        if let Reading::Clears(bits) = reading {
            let cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
            let mut request = kvm_enable_cap { cap, ..Default::default() };
            request.args[0] = bits;
            vm.enable_cap(&request).map_err(failed("KVM_ENABLE_CAP"))?;
        }
        // From here on a failure switches it off again.
        let log = KvmLog { vm: Arc::clone(vm), memory: Arc::clone(memory), reading };
        memslot::log_writes(vm, memory, true)?;
        if let Reading::Clears(_) = reading {
            for (slot, region) in (0..).zip(memory.regions()) {
                let all = vec![u64::MAX; base_pages(region).div_ceil(WORD_PAGES) as usize];
                log.clear(slot, region, &all)?;
            }
        }
        Ok(log)
    }

    /// Takes the pages that were written since the call before, or since the start, and adds them
    /// to `dirty`.
    ///
    /// # Errors
    /// [`KvmError::Call`]. What was taken before it is in `dirty`, and the rest stays in the log.
    pub fn collect(&self, dirty: &mut PageSet) -> Result<(), KvmError> {
        for (slot, (pages, region)) in (0..).zip(self.memory.numbered_regions()) {
            let words = self.read(slot, pages.first, region, dirty)?;
            if let Reading::Clears(_) = self.reading {
                self.clear(slot, region, &words)?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        slot: u32,
        first: PageIndex,
        region: &Region,
        dirty: &mut PageSet,
    ) -> Result<Vec<u64>, KvmError> {
        let bytes = usize::try_from(region.bytes).expect("a mapped region fits the address space");
        let words = self.vm.get_dirty_log(slot, bytes).map_err(failed("KVM_GET_DIRTY_LOG"))?;
        insert_words(dirty, first, self.memory.page_size(), &words);
        Ok(words)
    }

    /// Takes the pages in `words` out of the log of a memslot, so that their next writes are noted.
    fn clear(&self, slot: u32, region: &Region, words: &[u64]) -> Result<(), KvmError> {
        let mut first = 0;
        for part in words.chunks(CLEAR_WORDS_MAX) {
            let pages = u32::try_from(part.len()).expect("a part is small") * WORD_PAGES;
            let pages = pages.min(base_pages(region) - first);
            if part.iter().any(|&word| word != 0) {
                self.clear_part(slot, first, pages, part)?;
            }
            first += pages;
        }
        Ok(())
    }

    fn clear_part(&self, slot: u32, first: u32, pages: u32, words: &[u64]) -> Result<(), KvmError> {
        assert!(pages.div_ceil(WORD_PAGES) as usize <= words.len());
        let request = kvm_clear_dirty_log {
            slot,
            num_pages: pages,
            first_page: first.into(),
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast::<c_void>(),
            },
        };
        // SAFETY: the kernel reads the structure and a bit for each of the pages, which `words`
        // has, and changes neither.
        let returned = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG, &request) };
        if returned < 0 {
            return Err(failed("KVM_CLEAR_DIRTY_LOG")(errno::Error::last()));
        }
        Ok(())
    }
}

/// The pages of a memslot as KVM counts them.
fn base_pages(region: &Region) -> u32 {
    region.page_count(PageSize::BASE)
}

impl Drop for KvmLog {
    fn drop(&mut self) {
        if let Err(error) = memslot::log_writes(&self.vm, &self.memory, false) {
            tracing::warn!(%error, "the dirty log stays on: writes of the guest stay slow");
        }
    }
}

/// Bits of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 that we know: it is there, and all bits are set at
/// first. A kernel refuses bits that it does not know, and a bit that we do not know may change
/// what the calls mean.
const OFFERS_KNOWN: u64 = 3;
