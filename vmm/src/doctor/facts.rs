//! What was found out about a host. Nothing here is judged: see [`findings`](super::findings).

use serde::Serialize;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The release of the kernel, as it calls itself. Nothing is concluded from it.
    pub kernel: String,
    /// KVM.
    pub kvm: Kvm,
    /// userfaultfd.
    pub userfaultfd: Userfaultfd,
    /// Huge pages of 2 MiB.
    pub huge_pages: HugePages,
    /// What this process may use.
    pub limits: Limits,
}

/// How something can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Access {
    /// It works.
    Usable,
    /// It is not there.
    Missing,
    /// It is there, and not for this user.
    Forbidden,
    /// It is there and does not work.
    Failing {
        /// What it said.
        reason: String,
    },
}

/// What KVM can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kvm {
    /// The device node.
    pub device: Access,
    /// The version of the interface, if the device could be opened.
    pub version: Option<i32>,
    /// Whether a virtual machine could be made.
    pub machine: Access,
    /// What is behind it.
    pub virtualisation: Virtualisation,
    /// The processor says that it has VMX or SVM.
    pub processor_has_it: bool,
    /// Capabilities with what KVM answers; 0 is "no".
    pub capabilities: Vec<Capability>,
}

/// A capability of KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name in the kernel's header.
    pub name: String,
    /// What KVM answers.
    pub value: i32,
}

/// What runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Virtualisation {
    /// The processor, by VMX: the module `kvm_intel`.
    Vmx,
    /// The processor, by SVM: the module `kvm_amd`.
    Svm,
    /// The host's software: the module `kvm_pvm`.
    Software,
    /// No module that we know.
    Unknown,
}

/// What userfaultfd can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Userfaultfd {
    /// By the device node.
    pub device: Access,
    /// By the system call, with faults of the kernel, which are KVM's.
    pub system_call: Access,
    /// By the system call, for faults of user space: of no use for guests.
    pub user_mode_only: Access,
    /// `vm.unprivileged_userfaultfd`, if there is such a setting.
    pub unprivileged: Option<bool>,
    /// All features that we know.
    pub features: Vec<Feature>,
    /// What can be done with each kind of memory.
    pub memory: Vec<Memory>,
}

/// A feature of userfaultfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Its name in the kernel's header, without the prefix.
    pub name: String,
    /// The kernel offers it.
    pub offered: bool,
}

/// What userfaultfd can do with one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Its name.
    pub kind: String,
    /// Why nothing is known, if nothing is.
    pub unknown: Option<String>,
    /// The modes it can be registered for.
    pub modes: Vec<String>,
    /// Its operations.
    pub operations: Vec<Operation>,
}

/// An operation on one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its name in the kernel's header, without the prefix.
    pub name: String,
    /// Some registration reports it.
    pub reported: bool,
    /// What came of trying.
    pub tried: Tried,
}

/// What came of trying an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Tried {
    /// It did what it says.
    Works,
    /// It was refused.
    Fails {
        /// What the kernel said.
        reason: String,
    },
    /// It was not tried: there was no memory for it.
    Untried,
}

/// Huge pages of 2 MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Pages of the pool; absent if the kernel has no pool.
    pub pool_total: Option<u64>,
    /// Those of them that nobody has and nobody has reserved.
    pub pool_free: Option<u64>,
    /// The setting of transparent huge pages for anonymous memory; absent if there is none.
    pub transparent: Option<String>,
    /// The same for shared memory.
    pub transparent_shared: Option<String>,
}

/// What this process may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Memory that can be had without swapping, in bytes.
    pub memory_available: Option<u64>,
    /// Bytes that may be locked; absent if there is no limit.
    pub locked_memory: Option<u64>,
    /// Descriptors, as it is and as it could be raised to; absent if there is no limit.
    pub descriptors: Option<u64>,
    /// The limit that the other one may be raised to.
    pub descriptors_hard: Option<u64>,
    /// Mappings of a process.
    pub mappings: Option<u64>,
}
