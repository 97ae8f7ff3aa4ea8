//! The CPUID leaves that guests see.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::kvm::{Capabilities, KvmError, Vcpu, failed};

/// The leaves of a guest, before each vCPU gets its own number.
#[derive(Clone, Debug)]
pub struct GuestCpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

/// What this host gives to a guest with `cpus` vCPUs.
///
/// # Errors
/// [`KvmError::Call`].
pub fn for_guest(kvm: &Kvm, capabilities: &Capabilities, cpus: u8) -> Result<GuestCpuid, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let mut entries = supported.as_slice().to_vec();
    entries.retain(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2));
    for entry in &mut entries {
        adjust(entry, capabilities, cpus);
    }
    if entries.iter().any(|entry| entry.function == 0 && entry.eax >= TOPOLOGY) {
        entries.extend(topology(cpus));
    }
    Ok(GuestCpuid { entries })
}

impl GuestCpuid {
    /// The leaves, with the numbers of vCPU `index` in them.
    pub fn of_cpu(&self, index: u8) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            let id = u32::from(index);
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
                TOPOLOGY => entry.edx = id,
                AMD_TOPOLOGY => (entry.eax, entry.ebx) = (id, id),
                _ => {}
            }
        }
        entries
    }

    /// Gives a vCPU its leaves.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub(crate) fn apply(&self, vcpu: &mut Vcpu, index: u8) -> Result<(), KvmError> {
        vcpu.set_cpuid(self.of_cpu(index))
    }

    /// The leaves without the numbers of a vCPU.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }
}

fn adjust(entry: &mut kvm_cpuid_entry2, capabilities: &Capabilities, cpus: u8) {
    let count = u32::from(cpus);
    match entry.function {
        1 => adjust_leaf_1(entry, capabilities, count),
        4 if entry.eax & CACHE_TYPE_MASK != 0 => {
            let sharing = if cache_level(entry) >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (count - 1).min(63) << 26;
        }
        // Only "the APIC timer runs in every idle state"; the rest is about power, which is not the
        // guest's to manage.
        6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & ARAT, 0, 0, 0),
        // No performance counters: they would count on at another host from nothing.
        0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        KVM_FEATURES => entry.eax &= KVM_FEATURES_OFFERED,
        0x8000_0001 => entry.ecx &= !AMD_PERF_COUNTERS,
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) | id_bits(cpus) << 12,
        AMD_TOPOLOGY => entry.ecx = 0,
        _ => {}
    }
}

fn adjust_leaf_1(entry: &mut kvm_cpuid_entry2, capabilities: &Capabilities, count: u32) {
    entry.ebx = entry.ebx & 0xff00_ffff | count << 16;
    entry.ecx |= HYPERVISOR;
    entry.ecx &= !PERF_CAPABILITIES;
    if capabilities.tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    if count > 1 {
        entry.edx |= MULTI_THREADED;
    }
}

/// One thread a core, `cpus` cores a package.
fn topology(cpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, id_bits(cpus), cpus.into(), 2), level(2, 0, 0, 0)]
}

/// Bits that an APIC id needs.
fn id_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

fn cache_level(entry: &kvm_cpuid_entry2) -> u32 {
    entry.eax >> 5 & 7
}

/// What KVM offers to guests that know it, as far as we let it: kvm-clock (bits 0, 3 and 24) and no
/// delay on port access (bit 1).
///
/// Asynchronous page faults (bits 4, 10 and 14) are hidden for a reason of their own: KVM tells the
/// guest that a page is not there and to do something else meanwhile. With userfaultfd behind guest
/// memory, and in particular with its write-protection, the guest then takes the same fault over
/// and over without getting anywhere. The other features are calls to the hypervisor or memory
/// shared with it; on software KVM such a call does not return.
const KVM_FEATURES_OFFERED: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

pub(super) const KVM_FEATURES: u32 = 0x4000_0001;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const CACHE_TYPE_MASK: u32 = 0x1f;
const ARAT: u32 = 1 << 2;
const PERF_CAPABILITIES: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const MULTI_THREADED: u32 = 1 << 28;
/// Extended counters for the core, the northbridge and the last-level cache.
const AMD_PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_need_as_many_bits_as_the_largest() {
        let bits: Vec<u32> = [1, 2, 3, 4, 5, 8, 64].into_iter().map(id_bits).collect();
        assert_eq!(bits, [0, 1, 2, 2, 3, 3, 6]);
    }

    #[test]
    fn each_cpu_has_its_number() {
        let leaf = |function| kvm_cpuid_entry2 { function, ebx: 0x0102_0304, ..Default::default() };
        let cpuid = GuestCpuid { entries: vec![leaf(1), leaf(TOPOLOGY), leaf(7)] };
        let entries = cpuid.of_cpu(5);
        assert_eq!(entries[0].ebx, 0x0502_0304);
        assert_eq!(entries[1].edx, 5);
        assert_eq!(entries[2], leaf(7));
    }

    #[test]
    fn asynchronous_page_faults_are_hidden() {
        for bit in [4, 10, 14] {
            assert_eq!(KVM_FEATURES_OFFERED & 1 << bit, 0);
        }
    }
}
