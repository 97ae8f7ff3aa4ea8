//! Finding out about the host that this runs on. Trials take some pages for a
//! moment, and nothing is left changed.

use std::fs;
use std::path::Path;

use godwit_uffd::abi::Errno;
use godwit_uffd::kernel as uffd;
use godwit_uffd::trial::{Operation as Tries, Trial};
use godwit_uffd::{Features, Ioctls, MemoryKind};
use rustix::process::{Resource, getrlimit};

use super::facts::{
    Access, Capability, Facts, Feature, HugePages, Kvm, Limits, Memory, Operation, Tried,
    Userfaultfd, Virtualisation,
};
use crate::kvm::{self, KvmError};
use crate::memory::available_bytes;

/// Looks at everything.
pub fn look() -> Facts {
    Facts {
        kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
        kvm: look_at_kvm(),
        userfaultfd: look_at_userfaultfd(),
        huge_pages: look_at_huge_pages(),
        limits: look_at_limits(),
    }
}

fn look_at_kvm() -> Kvm {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut words = processor.split_ascii_whitespace();
    let processor_has_it = words.any(|word| word == "vmx" || word == "svm");
    let virtualisation = virtualisation();
    match kvm::survey() {
        Ok(survey) => Kvm {
            device: Access::Usable,
            version: Some(survey.version),
            machine: match survey.machine {
                Ok(()) => Access::Usable,
                Err(reason) => Access::Failing { reason },
            },
            virtualisation,
            processor_has_it,
            capabilities: survey
                .capabilities
                .into_iter()
                .map(|(name, value)| Capability { name: name.to_owned(), value })
                .collect(),
        },
        Err(error) => Kvm {
            device: match error {
                KvmError::NoDevice => Access::Missing,
                KvmError::Forbidden => Access::Forbidden,
                other => Access::Failing { reason: in_full(&other) },
            },
            version: None,
            machine: Access::Missing,
            virtualisation,
            processor_has_it,
            capabilities: Vec::new(),
        },
    }
}

fn virtualisation() -> Virtualisation {
    let known = [
        ("kvm_intel", Virtualisation::Vmx),
        ("kvm_amd", Virtualisation::Svm),
        ("kvm_pvm", Virtualisation::Software),
    ];
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    let found = known.into_iter().find(|(name, _)| loaded(name));
    found.map_or(Virtualisation::Unknown, |(_, virtualisation)| virtualisation)
}

fn look_at_userfaultfd() -> Userfaultfd {
    let doors = uffd::doors();
    let offered = doors.device.or(doors.system_call).or(doors.user_mode_only);
    let offered = offered.unwrap_or(Features::empty());
    let features = Features::all().iter_names().map(|(name, feature)| Feature {
        name: name.to_owned(),
        offered: offered.contains(feature),
    });
    Userfaultfd {
        device: access(doors.device),
        system_call: access(doors.system_call),
        user_mode_only: access(doors.user_mode_only),
        unprivileged: line("/proc/sys/vm/unprivileged_userfaultfd").map(|line| line == "1"),
        features: features.collect(),
        memory: MemoryKind::ALL.map(|kind| look_at_memory(kind, offered)).into(),
    }
}

fn access(door: Result<Features, Errno>) -> Access {
    match door {
        Ok(_) => Access::Usable,
        Err(Errno(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOSYS)) => Access::Missing,
        Err(Errno(libc::EPERM | libc::EACCES)) => Access::Forbidden,
        Err(errno) => Access::Failing { reason: reason(errno) },
    }
}

fn look_at_memory(kind: MemoryKind, offered: Features) -> Memory {
    let name = kind.name().to_owned();
    let survey = match uffd::survey(kind) {
        Ok(survey) => survey,
        Err(error) => {
            let unknown = Some(in_full(&error));
            return Memory { kind: name, unknown, modes: Vec::new(), operations: Vec::new() };
        }
    };
    let accepted = survey.modes.iter().filter(|(_, mask)| mask.is_ok());
    let modes = accepted.flat_map(|(mode, _)| mode.iter_names()).map(|(name, _)| name.to_owned());
    let masks = survey.modes.iter().filter_map(|(_, mask)| mask.ok());
    let reported = masks.fold(Ioctls::empty(), |all, mask| all | mask);
    let operations = Tries::ALL.map(|operation| Operation {
        name: operation.name().to_owned(),
        reported: reported.contains(operation.ioctl()),
        tried: tried(survey.trials.get(operation)),
    });
    // Not a call of userfaultfd, and of use only together with it.
    let scan = Operation {
        name: "PAGEMAP_SCAN".to_owned(),
        reported: offered.contains(Features::WP_ASYNC),
        tried: tried(uffd::follows_writes(kind)),
    };
    let operations = operations.into_iter().chain([scan]).collect();
    Memory { kind: name, unknown: None, modes: modes.collect(), operations }
}

fn tried(trial: Trial) -> Tried {
    match trial {
        Trial::Works => Tried::Works,
        Trial::Fails(errno) => Tried::Fails { reason: reason(errno) },
        Trial::Untried => Tried::Untried,
    }
}

fn look_at_huge_pages() -> HugePages {
    let pool = |name: &str| number(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
    let transparent = |name: &str| {
        let setting = line(&format!("/sys/kernel/mm/transparent_hugepage/{name}"))?;
        chosen(&setting).map(str::to_owned)
    };
    let free = pool("free_hugepages");
    HugePages {
        pool_total: pool("nr_hugepages"),
        pool_free: free.map(|free| free.saturating_sub(pool("resv_hugepages").unwrap_or(0))),
        transparent: transparent("enabled"),
        transparent_shared: transparent("shmem_enabled"),
    }
}

/// The word in brackets: the kernel writes all that can be chosen, and brackets around the choice.
fn chosen(setting: &str) -> Option<&str> {
    let (_, from) = setting.split_once('[')?;
    from.split_once(']').map(|(word, _)| word)
}

fn look_at_limits() -> Limits {
    let descriptors = getrlimit(Resource::Nofile);
    Limits {
        memory_available: available_bytes(),
        locked_memory: getrlimit(Resource::Memlock).current,
        descriptors: descriptors.current,
        descriptors_hard: descriptors.maximum,
        mappings: number("/proc/sys/vm/max_map_count"),
    }
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    line(path)?.parse().ok()
}

fn reason(errno: Errno) -> String {
    std::io::Error::from_raw_os_error(errno.0).to_string()
}

fn in_full(error: &dyn std::error::Error) -> String {
    let cause = error.source();
    cause.map_or(error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("never"), None);
    }

    #[test]
    fn doors_are_closed_for_known_reasons() {
        assert_eq!(access(Ok(Features::empty())), Access::Usable);
        assert_eq!(access(Err(Errno(libc::ENOSYS))), Access::Missing);
        assert_eq!(access(Err(Errno(libc::EACCES))), Access::Forbidden);
        assert!(matches!(access(Err(Errno(libc::EMFILE))), Access::Failing { .. }));
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let facts = look();
        assert_eq!(facts.userfaultfd.memory.len(), MemoryKind::ALL.len());
        assert_eq!(facts.userfaultfd.features.len(), 17);
        for memory in &facts.userfaultfd.memory {
            assert!(memory.unknown.is_some() || memory.operations.len() == Tries::ALL.len() + 1);
        }
    }
}
