//! What a guest needs from a host, and whether a host has it.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, kvm_cpuid_entry2,
};
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::arch::x86_64::features::FEATURE_WORDS;

/// The newest version of [`Requirements`] that this build writes and reads.
pub const VERSION: u16 = 1;

/// One leaf of CPUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the instruction's")]
pub struct Leaf {
    pub function: u32,
    pub index: u32,
    /// Whether `index` counts.
    pub has_index: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What a guest needs from a host; also what a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// The version of what follows.
    pub version: u16,
    /// The CPUID leaves that the guest sees.
    pub cpuid: Vec<Leaf>,
    /// The MSRs that are saved.
    pub msrs: Vec<u32>,
    /// Bytes of the extended processor state.
    pub xsave_bytes: u32,
    /// The frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
}

impl Requirements {
    /// Refuses lists that are longer than any that KVM has.
    ///
    /// # Errors
    /// [`StateError::Version`], [`StateError::TooLong`].
    pub(crate) fn check_limits(&self) -> Result<(), StateError> {
        let what = "the list of requirements";
        if self.version == 0 || self.version > VERSION {
            return Err(StateError::Version { what, version: self.version, known: VERSION });
        }
        check_count("the list of cpuid leaves", self.cpuid.len(), KVM_MAX_CPUID_ENTRIES)?;
        check_count("the list of msrs", self.msrs.len(), KVM_MAX_MSR_ENTRIES)
    }

    /// Refuses a guest that needs what `host` lacks. `can_scale`: the host can run a guest's time
    /// stamp counter at any frequency.
    ///
    /// # Errors
    /// The first of: missing features, missing MSRs, too large a state, another TSC frequency.
    pub(crate) fn check_against(
        &self,
        host: &Requirements,
        can_scale: bool,
    ) -> Result<(), StateError> {
        let missing = missing_features(&self.cpuid, &host.cpuid);
        if !missing.is_empty() {
            return Err(StateError::MissingFeatures { missing: missing.join(", ") });
        }
        let missing = self.msrs.iter().filter(|index| !host.msrs.contains(index));
        let missing: Vec<String> = missing.map(|index| format!("{index:#x}")).collect();
        if !missing.is_empty() {
            return Err(StateError::MissingMsrs { missing: missing.join(", ") });
        }
        if self.xsave_bytes > host.xsave_bytes {
            return Err(StateError::XsaveTooLarge {
                guest: self.xsave_bytes as usize,
                here: host.xsave_bytes as usize,
            });
        }
        check_tsc(self.tsc_khz, host.tsc_khz, can_scale)
    }
}

impl Requirements {
    /// The processor features that the guest sees, as [`StateError::MissingFeatures`] names them.
    pub(crate) fn features(&self) -> Vec<String> {
        missing_features(&self.cpuid, &[])
    }
}

/// Refuses a list that is longer than KVM's.
///
/// # Errors
/// [`StateError::TooLong`].
pub(crate) fn check_count(
    what: &'static str,
    count: usize,
    limit: usize,
) -> Result<(), StateError> {
    if count > limit { Err(StateError::TooLong { what, bytes: count, limit }) } else { Ok(()) }
}

/// Refuses a guest whose time stamp counter cannot run here at its own speed.
///
/// # Errors
/// [`StateError::TscFrequency`].
fn check_tsc(guest_khz: u32, here_khz: u32, can_scale: bool) -> Result<(), StateError> {
    let off = u64::from(guest_khz.abs_diff(here_khz));
    let tolerated = u64::from(here_khz) * TSC_TOLERANCE_PPM / 1_000_000;
    if can_scale || off <= tolerated {
        return Ok(());
    }
    Err(StateError::TscFrequency { guest_khz, here_khz })
}

/// The feature bits that the guest sees and the host has not.
fn missing_features(guest: &[Leaf], host: &[Leaf]) -> Vec<String> {
    let mut missing = Vec::new();
    for word in FEATURE_WORDS {
        let value = |leaves: &[Leaf]| {
            let leaf = leaves.iter().find(|leaf| leaf.is(word.function, word.index));
            leaf.map_or(0, |leaf| word.register.of(&leaf.into()))
        };
        let lacking = value(guest) & !value(host);
        let bits = (0..u32::BITS).filter(|bit| lacking & 1 << bit != 0);
        missing.extend(bits.map(|bit| word.describe(bit)));
    }
    missing
}

impl Leaf {
    fn is(&self, function: u32, index: u32) -> bool {
        self.function == function && (!self.has_index && index == 0 || self.index == index)
    }
}

impl From<&kvm_cpuid_entry2> for Leaf {
    fn from(entry: &kvm_cpuid_entry2) -> Leaf {
        Leaf {
            function: entry.function,
            index: entry.index,
            has_index: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&Leaf> for kvm_cpuid_entry2 {
    fn from(leaf: &Leaf) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index,
            flags: if leaf.has_index { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        }
    }
}

/// What KVM itself tolerates before it scales.
const TSC_TOLERANCE_PPM: u64 = 250;

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32) -> Leaf {
        let entry = kvm_cpuid_entry2 { function, ecx, ebx: function << 24, ..Default::default() };
        Leaf::from(&entry)
    }

    fn host() -> Requirements {
        Requirements {
            version: VERSION,
            cpuid: vec![leaf(1, 1 << 28 | 1), leaf(0x8000_0001, 1)],
            msrs: vec![0x10, 0x174],
            xsave_bytes: 4096,
            tsc_khz: 2_000_000,
        }
    }

    const FIXED: bool = false;

    #[test]
    fn guest_fits_where_it_comes_from() {
        host().check_against(&host(), FIXED).unwrap();
    }

    #[test]
    fn missing_feature_is_named() {
        let guest = host();
        let mut here = host();
        here.cpuid[0].ecx = 1;
        let error = guest.check_against(&here, FIXED).unwrap_err().to_string();
        assert!(error.contains("leaf 0x1.0 ecx bit 28 (avx)"), "{error}");
        here.cpuid.clear();
        let error = guest.check_against(&here, FIXED).unwrap_err().to_string();
        assert!(error.contains("sse3") && error.contains("lahf-lm"), "{error}");
    }

    #[test]
    fn apic_ids_and_counts_do_not_matter() {
        let mut guest = host();
        guest.cpuid[0].ebx = 0xff00_0000;
        guest.check_against(&host(), FIXED).unwrap();
    }

    #[test]
    fn missing_msr_is_named() {
        let mut guest = host();
        guest.msrs.push(0x1234);
        let error = guest.check_against(&host(), FIXED).unwrap_err().to_string();
        assert!(error.contains("MSR 0x1234"), "{error}");
    }

    #[test]
    fn larger_state_and_another_clock_are_refused() {
        let mut guest = host();
        guest.xsave_bytes = 8192;
        assert!(matches!(
            guest.check_against(&host(), FIXED),
            Err(StateError::XsaveTooLarge { .. })
        ));
        let mut guest = host();
        guest.tsc_khz = 2_000_400;
        guest.check_against(&host(), FIXED).unwrap();
        guest.tsc_khz = 2_100_000;
        assert!(matches!(
            guest.check_against(&host(), FIXED),
            Err(StateError::TscFrequency { .. })
        ));
        guest.check_against(&host(), true).unwrap();
    }
}
