//! The CPUID leaves that say what instructions and registers there are, and the names of their
//! bits. A guest cannot go where one of these is missing.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::KVM_FEATURES;

/// One of the four registers that CPUID fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Where a set of feature bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureWord {
    /// The leaf.
    pub function: u32,
    /// The subleaf.
    pub index: u32,
    /// The register.
    pub register: Register,
    /// The names of the bits from 0; an empty name is one that few know.
    names: &'static [&'static str],
}

impl Register {
    /// The value of this register in a leaf.
    pub fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        }
    }
}

impl FeatureWord {
    /// A bit as people call it: `leaf 0x7.0 ebx bit 5 (avx2)`.
    pub fn describe(&self, bit: u32) -> String {
        let FeatureWord { function, index, register, names } = self;
        let register = format!("{register:?}").to_lowercase();
        let place = format!("leaf {function:#x}.{index} {register} bit {bit}");
        match names.get(bit as usize) {
            Some(name) if !name.is_empty() => format!("{place} ({name})"),
            _ => place,
        }
    }
}

const fn word(
    place: (u32, u32),
    register: Register,
    names: &'static [&'static str],
) -> FeatureWord {
    FeatureWord { function: place.0, index: place.1, register, names }
}

/// All words whose bits mean "there is".
pub const FEATURE_WORDS: &[FeatureWord] = &[
    word((1, 0), Register::Ecx, LEAF_1_ECX),
    word((1, 0), Register::Edx, LEAF_1_EDX),
    word((6, 0), Register::Eax, &["", "", "arat"]),
    word((7, 0), Register::Ebx, LEAF_7_EBX),
    word((7, 0), Register::Ecx, LEAF_7_ECX),
    word((7, 0), Register::Edx, LEAF_7_EDX),
    word((7, 1), Register::Eax, LEAF_7_1_EAX),
    word((7, 1), Register::Edx, &[]),
    word((7, 2), Register::Edx, &[]),
    word((0xd, 0), Register::Eax, XCR0),
    word((0xd, 1), Register::Eax, &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"]),
    word((0x8000_0001, 0), Register::Ecx, LEAF_EXT_1_ECX),
    word((0x8000_0001, 0), Register::Edx, LEAF_EXT_1_EDX),
    word((0x8000_0007, 0), Register::Edx, &["", "", "", "", "", "", "", "", "invtsc"]),
    word((0x8000_0008, 0), Register::Ebx, &["clzero"]),
    word((KVM_FEATURES, 0), Register::Eax, &["kvmclock", "kvm-nopiodelay", "", "kvmclock2"]),
];

const LEAF_1_ECX: &[&str] = &[
    "sse3",
    "pclmulqdq",
    "dtes64",
    "monitor",
    "ds-cpl",
    "vmx",
    "smx",
    "est",
    "tm2",
    "ssse3",
    "cid",
    "sdbg",
    "fma",
    "cx16",
    "xtpr",
    "pdcm",
    "",
    "pcid",
    "dca",
    "sse4.1",
    "sse4.2",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc-deadline",
    "aes",
    "xsave",
    "osxsave",
    "avx",
    "f16c",
    "rdrand",
    "hypervisor",
];

const LEAF_1_EDX: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge",
    "mca", "cmov", "pat", "pse36", "pn", "clflush", "", "ds", "acpi", "mmx", "fxsr", "sse", "sse2",
    "ss", "ht", "tm", "ia64", "pbe",
];

const LEAF_7_EBX: &[&str] = &[
    "fsgsbase",
    "tsc-adjust",
    "sgx",
    "bmi1",
    "hle",
    "avx2",
    "",
    "smep",
    "bmi2",
    "erms",
    "invpcid",
    "rtm",
    "",
    "",
    "mpx",
    "",
    "avx512f",
    "avx512dq",
    "rdseed",
    "adx",
    "smap",
    "avx512ifma",
    "",
    "clflushopt",
    "clwb",
    "",
    "avx512pf",
    "avx512er",
    "avx512cd",
    "sha",
    "avx512bw",
    "avx512vl",
];

const LEAF_7_ECX: &[&str] = &[
    "",
    "avx512vbmi",
    "umip",
    "pku",
    "ospke",
    "waitpkg",
    "avx512vbmi2",
    "cet-ss",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "avx512vnni",
    "avx512bitalg",
    "",
    "avx512vpopcntdq",
    "",
    "la57",
    "",
    "",
    "",
    "",
    "",
    "rdpid",
    "",
    "bus-lock-detect",
    "cldemote",
    "",
    "movdiri",
    "movdir64b",
];

const LEAF_7_EDX: &[&str] = &[
    "",
    "",
    "avx5124vnniw",
    "avx5124fmaps",
    "fsrm",
    "",
    "",
    "",
    "avx512vp2intersect",
    "",
    "md-clear",
    "",
    "",
    "",
    "serialize",
    "",
    "tsxldtrk",
    "",
    "",
    "",
    "cet-ibt",
    "",
    "amx-bf16",
    "avx512fp16",
    "amx-tile",
    "amx-int8",
    "spec-ctrl",
    "stibp",
    "flush-l1d",
    "arch-capabilities",
    "",
    "ssbd",
];

const LEAF_7_1_EAX: &[&str] = &[
    "",
    "",
    "",
    "",
    "avx-vnni",
    "avx512bf16",
    "",
    "cmpccxadd",
    "",
    "",
    "fzrm",
    "fsrs",
    "fsrc",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "amx-fp16",
    "",
    "avx-ifma",
];

const XCR0: &[&str] = &[
    "x87 state",
    "sse state",
    "avx state",
    "mpx bounds",
    "mpx config",
    "avx512 masks",
    "avx512 upper halves",
    "avx512 high registers",
    "",
    "pku state",
];

const LEAF_EXT_1_ECX: &[&str] = &[
    "lahf-lm",
    "cmp-legacy",
    "svm",
    "extapic",
    "cr8-legacy",
    "abm",
    "sse4a",
    "misalignsse",
    "3dnowprefetch",
    "osvw",
    "ibs",
    "xop",
    "skinit",
    "wdt",
    "",
    "lwp",
    "fma4",
    "tce",
    "",
    "nodeid",
    "",
    "tbm",
    "topoext",
    "perfctr-core",
    "perfctr-nb",
    "",
    "dbx",
    "perftsc",
    "perfctr-llc",
];

const LEAF_EXT_1_EDX: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "syscall", "mtrr",
    "pge", "mca", "cmov", "pat", "pse36", "", "", "nx", "", "mmxext", "mmx", "fxsr", "fxsr-opt",
    "pdpe1gb", "rdtscp", "", "lm", "3dnowext", "3dnow",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn find(place: (u32, u32), register: Register) -> &'static FeatureWord {
        FEATURE_WORDS
            .iter()
            .find(|word| (word.function, word.index) == place && word.register == register)
            .unwrap()
    }

    #[test]
    fn well_known_bits_have_their_names() {
        let name = |place, register, bit| find(place, register).describe(bit);
        assert_eq!(name((1, 0), Register::Ecx, 28), "leaf 0x1.0 ecx bit 28 (avx)");
        assert_eq!(name((1, 0), Register::Edx, 26), "leaf 0x1.0 edx bit 26 (sse2)");
        assert_eq!(name((7, 0), Register::Ebx, 5), "leaf 0x7.0 ebx bit 5 (avx2)");
        assert_eq!(name((7, 0), Register::Ebx, 31), "leaf 0x7.0 ebx bit 31 (avx512vl)");
        assert_eq!(name((7, 0), Register::Ecx, 16), "leaf 0x7.0 ecx bit 16 (la57)");
        assert_eq!(name((7, 0), Register::Ecx, 22), "leaf 0x7.0 ecx bit 22 (rdpid)");
        assert_eq!(name((7, 0), Register::Edx, 26), "leaf 0x7.0 edx bit 26 (spec-ctrl)");
        assert_eq!(name((7, 0), Register::Edx, 31), "leaf 0x7.0 edx bit 31 (ssbd)");
        assert_eq!(name((0x8000_0001, 0), Register::Edx, 29), "leaf 0x80000001.0 edx bit 29 (lm)");
        assert_eq!(
            name((0x8000_0001, 0), Register::Ecx, 22),
            "leaf 0x80000001.0 ecx bit 22 (topoext)"
        );
        assert_eq!(name((7, 1), Register::Edx, 3), "leaf 0x7.1 edx bit 3");
    }
}
