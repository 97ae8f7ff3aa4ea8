//! From facts to findings: what is missing, what that costs and how to get it. Pure, so that any
//! host can be judged in a test.

use serde::Serialize;

use super::facts::{Access, Facts, HugePages, Kvm, Limits, Memory, Tried, Userfaultfd};
use super::facts::{Operation, Virtualisation};

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much that matters.
    pub weight: Weight,
    /// What is missing.
    pub what: String,
    /// What cannot be done, or is slower.
    pub cost: String,
    /// How to get it.
    pub remedy: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// No guest can run.
    Run,
    /// Guests can run, and none can come here by migration.
    Move,
    /// Something is slower, or one thing cannot be done.
    Cost,
}

/// What this host is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Guests can run and move.
    Ready,
    /// Guests can run, and leave, but not come.
    CannotReceive,
    /// Guests cannot run.
    CannotRun,
}

/// All that is missing, what matters most first.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = kvm(&facts.kvm);
    found.extend(userfaultfd(&facts.userfaultfd));
    found.extend(huge_pages(&facts.huge_pages));
    found.extend(limits(&facts.limits));
    found.sort_by_key(|finding| finding.weight);
    found
}

/// What the host is good for with these findings.
pub fn verdict(findings: &[Finding]) -> Verdict {
    match findings.iter().map(|finding| finding.weight).min() {
        Some(Weight::Run) => Verdict::CannotRun,
        Some(Weight::Move) => Verdict::CannotReceive,
        Some(Weight::Cost) | None => Verdict::Ready,
    }
}

fn finding(weight: Weight, what: impl Into<String>, cost: &str, remedy: &str) -> Finding {
    Finding { weight, what: what.into(), cost: cost.to_owned(), remedy: remedy.to_owned() }
}

fn kvm(kvm: &Kvm) -> Vec<Finding> {
    let no_guest = |what: String, remedy: &str| finding(Weight::Run, what, NO_GUEST, remedy);
    let mut found = Vec::new();
    match &kvm.device {
        Access::Usable => {}
        Access::Missing => {
            let remedy = if kvm.processor_has_it { LOAD_KVM } else { ENABLE_KVM };
            return vec![no_guest("there is no /dev/kvm".to_owned(), remedy)];
        }
        Access::Forbidden => {
            let what = "this user may not open /dev/kvm".to_owned();
            return vec![no_guest(what, "sudo setfacl -m u:$USER:rw /dev/kvm")];
        }
        Access::Failing { reason } => {
            let what = format!("/dev/kvm cannot be used: {reason}");
            return vec![no_guest(what, SEE_LOG)];
        }
    }
    if let Access::Failing { reason } = &kvm.machine {
        found.push(no_guest(format!("no virtual machine can be made: {reason}"), SEE_LOG));
    }
    if kvm.virtualisation == Virtualisation::Software {
        found.push(finding(
            Weight::Cost,
            "KVM has no help of the processor here (kvm_pvm)",
            "a guest's kernel mode is interpreted, so an ordinary Linux takes minutes to start; \
             the bare test guest runs at full speed",
            "a host with VMX or SVM: bare metal, or nested virtualisation switched on",
        ));
    }
    for (name, weight, cost, remedy) in CAPABILITIES {
        if kvm.capabilities.iter().any(|had| had.name == name && had.value <= 0) {
            found.push(finding(weight, format!("KVM lacks {name}"), cost, remedy));
        }
    }
    found
}

fn userfaultfd(uffd: &Userfaultfd) -> Vec<Finding> {
    let doors = [&uffd.device, &uffd.system_call];
    if !doors.contains(&&Access::Usable) {
        return vec![no_userfaultfd(uffd)];
    }
    let mut found = Vec::new();
    if uffd.device == Access::Missing {
        found.push(finding(
            Weight::Cost,
            "there is no /dev/userfaultfd",
            "the permission can be given to root or to everybody, and not to one user",
            "Linux 6.1",
        ));
    }
    for (name, cost, remedy) in FEATURES {
        if uffd.features.iter().any(|feature| feature.name == name && !feature.offered) {
            let what = format!("userfaultfd lacks {name}");
            found.push(finding(Weight::Cost, what, cost, remedy));
        }
    }
    found.extend(uffd.memory.iter().find(|memory| memory.kind == "anonymous").and_then(unusable));
    for (kind, name, weight, cost, remedy) in OPERATIONS {
        let memory = uffd.memory.iter().find(|memory| memory.kind == kind);
        if memory.is_some_and(|memory| lacks(memory, name)) {
            let what = format!("userfaultfd lacks {name} on {kind} memory");
            found.push(finding(weight, what, cost, remedy));
        }
    }
    found
}

/// Memory that guests are made of, of which nothing could be tried or no missing page is told.
fn unusable(memory: &Memory) -> Option<Finding> {
    let cost = "no guest can come here";
    let what = match &memory.unknown {
        Some(reason) => format!("userfaultfd cannot be tried on {} memory: {reason}", memory.kind),
        None if !memory.modes.iter().any(|mode| mode == "MISSING") => {
            format!("userfaultfd tells no missing pages of {} memory", memory.kind)
        }
        None => return None,
    };
    Some(finding(Weight::Move, what, cost, SEE_LOG))
}

fn no_userfaultfd(uffd: &Userfaultfd) -> Finding {
    let (what, remedy) = match (&uffd.device, &uffd.system_call) {
        (Access::Forbidden, _) | (_, Access::Forbidden) => (
            "this user may not handle the page faults that the kernel takes".to_owned(),
            "for one user: sudo setfacl -m u:$USER:rw /dev/userfaultfd; \
             for everybody: sudo sysctl -w vm.unprivileged_userfaultfd=1",
        ),
        (Access::Failing { reason }, _) | (_, Access::Failing { reason }) => {
            (format!("userfaultfd cannot be used: {reason}"), SEE_LOG)
        }
        _ => (
            "this kernel has no userfaultfd".to_owned(),
            "a kernel with CONFIG_USERFAULTFD=y, and no filter (seccomp) that hides the call",
        ),
    };
    let cost = "no guest can come here: KVM takes its faults on missing pages in the kernel";
    finding(Weight::Move, what, cost, remedy)
}

/// Nothing that was tried and works, and no kind of memory that is not to be had, is lacking.
fn lacks(memory: &Memory, name: &str) -> bool {
    let lacking = |operation: &Operation| match operation.tried {
        Tried::Works => false,
        Tried::Fails { .. } => true,
        Tried::Untried => !operation.reported,
    };
    memory.operations.iter().any(|operation| operation.name == name && lacking(operation))
}

fn huge_pages(pages: &HugePages) -> Vec<Finding> {
    let mut found = Vec::new();
    if pages.pool_free.unwrap_or(0) == 0 {
        let remedy = match pages.pool_total {
            Some(_) => "sudo sysctl -w vm.nr_hugepages=N, with 512 for each GiB",
            None => "a kernel with CONFIG_HUGETLBFS=y, on a processor with pages of 2 MiB",
        };
        let what = "no huge page is free in the pool";
        let cost = "guests with --page-size 2M cannot run here or come, and what userfaultfd can \
                    do with such memory cannot be tried";
        found.push(finding(Weight::Cost, what, cost, remedy));
    }
    let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
    if matches!(pages.transparent.as_deref(), Some("never") | None) {
        found.push(finding(
            Weight::Cost,
            "anonymous memory gets no huge pages",
            "guests take more page faults, and more time for each access that misses the TLB",
            &format!("echo madvise | sudo tee {enabled}"),
        ));
    }
    found
}

fn limits(limits: &Limits) -> Vec<Finding> {
    let mut found = Vec::new();
    let below = |limit: Option<u64>, wanted| limit.filter(|&limit| limit < wanted);
    if let Some(available) = below(limits.memory_available, DEMO_BYTES) {
        let what = format!("only {} MiB of memory are available", available >> 20);
        let cost = "`godwit demo` holds its guest of 1 GiB twice, and pages to receive in";
        found.push(finding(Weight::Cost, what, cost, "give it a smaller guest: --memory 256M"));
    }
    if let Some(descriptors) = below(limits.descriptors, DESCRIPTORS_ENOUGH) {
        let what = format!("a process may have only {descriptors} descriptors open");
        let cost = "a guest takes one for each vCPU and about twenty more";
        found.push(finding(Weight::Cost, what, cost, "ulimit -n 1024"));
    }
    if let Some(mappings) = below(limits.mappings, MAPPINGS_ENOUGH) {
        let what = format!("a process may have only {mappings} mappings");
        let cost = "memory whose parts were advised or protected apart takes one for each part";
        found.push(finding(Weight::Cost, what, cost, "sudo sysctl -w vm.max_map_count=65530"));
    }
    found
}

const NO_GUEST: &str = "no guest can run";
const LOAD_KVM: &str = "sudo modprobe kvm_intel, or kvm_amd";
const ENABLE_KVM: &str = "the processor shows neither VMX nor SVM: switch virtualisation on in the \
                          firmware, or nested virtualisation in the settings of a cloud machine";
const SEE_LOG: &str = "the kernel's log (dmesg) may say more";

/// Twice the memory of the demo's guest, and some.
const DEMO_BYTES: u64 = (2 << 30) + (256 << 20);
/// A guest with all the vCPUs that one byte can count.
const DESCRIPTORS_ENOUGH: u64 = 300;
/// The kernel's default.
const MAPPINGS_ENOUGH: u64 = 65530;

/// Capabilities of KVM whose lack costs something, what, and where they come from.
const CAPABILITIES: [(&str, Weight, &str, &str); 6] = [
    (
        "KVM_CAP_SYNC_MMU",
        Weight::Move,
        "a guest would go on using pages that are no longer its own",
        "a kernel with CONFIG_MMU_NOTIFIER=y",
    ),
    (
        "KVM_CAP_TSC_CONTROL",
        Weight::Cost,
        "guests cannot come from hosts whose time stamp counter has another frequency",
        "a processor with TSC scaling",
    ),
    (
        "KVM_CAP_TSC_DEADLINE_TIMER",
        Weight::Cost,
        "guests set their timers more slowly",
        "an in-kernel interrupt controller with it, in any Linux of today",
    ),
    (
        "KVM_CAP_XSAVE2",
        Weight::Cost,
        "guests with more than 4 KiB of extended state (AMX) cannot come",
        "Linux 5.17",
    ),
    (
        "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        Weight::Cost,
        "a guest is held up longer each time that its written pages are asked for",
        "Linux 5.2",
    ),
    (
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
        Weight::Cost,
        "a guest whose instruction KVM cannot interpret crashes without being reported",
        "Linux 5.14",
    ),
];

/// Features of userfaultfd whose lack costs something, what, and since when Linux has them.
const FEATURES: [(&str, &str, &str); 5] = [
    (
        "EVENT_REMOVE",
        "pages that are given up while a guest arrives go unnoticed: no balloon until all is there",
        "Linux 4.11",
    ),
    ("THREAD_ID", "it is not known which vCPU waits for a page", "Linux 4.14"),
    (
        "EXACT_ADDRESS",
        "faults on huge pages do not tell the small page that is wanted first",
        "Linux 5.18",
    ),
    ("WP_UNPOPULATED", "memory is filled with zeros before it is write-protected", "Linux 6.4"),
    ("WP_ASYNC", "every first write to a protected page is a fault to be served", "Linux 6.7"),
];

/// Operations of userfaultfd whose lack costs something, what, and since when Linux has them.
const OPERATIONS: [(&str, &str, Weight, &str, &str); 11] = [
    ("anonymous", "COPY", Weight::Move, "no page can be put in place", "Linux 4.3"),
    ("anonymous", "WAKE", Weight::Move, "no vCPU that waits can be told", "Linux 4.3"),
    (
        "anonymous",
        "ZEROPAGE",
        Weight::Cost,
        "pages of zeros are copied, which takes memory and time",
        "Linux 4.3",
    ),
    (
        "anonymous",
        "MOVE",
        Weight::Cost,
        "pages of a guest that comes are allocated while it waits, which takes longer",
        "Linux 6.8",
    ),
    (
        "anonymous",
        "POISON",
        Weight::Cost,
        "pages that are lost cannot be marked: whoever touches one waits",
        "Linux 6.6",
    ),
    (
        "anonymous",
        "WRITEPROTECT",
        Weight::Cost,
        "writes cannot be caught while a guest runs: no live snapshot",
        "Linux 5.7",
    ),
    (
        "anonymous",
        "PAGEMAP_SCAN",
        Weight::Cost,
        "only KVM's log tells which pages a guest writes while it is moved",
        "Linux 6.7",
    ),
    ("memfd", "COPY", Weight::Cost, "guests of memfd memory cannot come", "Linux 4.11"),
    (
        "memfd",
        "CONTINUE",
        Weight::Cost,
        "pages of a memfd cannot be filled through a second mapping",
        "Linux 5.14",
    ),
    (
        "memfd",
        "WRITEPROTECT",
        Weight::Cost,
        "writes to memfd memory cannot be caught while a guest runs",
        "Linux 5.19",
    ),
    (
        "memfd",
        "PAGEMAP_SCAN",
        Weight::Cost,
        "only KVM's log tells which pages of a memfd a guest writes while it is moved",
        "Linux 6.7",
    ),
];
