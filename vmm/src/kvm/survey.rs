//! What this host's KVM can do, for `godwit doctor`. Nothing here is needed to run a guest.

use kvm_bindings::{
    KVM_CAP_ASYNC_PF_INT, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_EXCEPTION_PAYLOAD,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_GUEST_MEMFD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_MAX_VCPUS, KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_NR_MEMSLOTS, KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_SYNC_MMU, KVM_CAP_TSC_CONTROL, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_XSAVE2,
};

use super::open::{NEEDED, open_node};
use super::{KvmError, Machine};

/// What KVM says of itself.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The version of the interface.
    pub version: i32,
    /// Capabilities with what KVM answers for them: 0 is "no", and some are numbers.
    pub capabilities: Vec<(&'static str, i32)>,
    /// Whether a virtual machine as ours can be made.
    pub machine: Result<(), String>,
}

/// Those that change what a guest can do or what it costs.
const USEFUL: [(u32, &str); 14] = [
    (KVM_CAP_SYNC_MMU, "KVM_CAP_SYNC_MMU"),
    (KVM_CAP_MAX_VCPUS, "KVM_CAP_MAX_VCPUS"),
    (KVM_CAP_NR_MEMSLOTS, "KVM_CAP_NR_MEMSLOTS"),
    (KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2"),
    (KVM_CAP_TSC_CONTROL, "KVM_CAP_TSC_CONTROL"),
    (KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE, "KVM_CAP_EXIT_ON_EMULATION_FAILURE"),
    (KVM_CAP_EXCEPTION_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD"),
    (KVM_CAP_ASYNC_PF_INT, "KVM_CAP_ASYNC_PF_INT"),
    (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"),
    (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "KVM_CAP_DIRTY_LOG_RING_ACQ_REL"),
    (KVM_CAP_MEMORY_FAULT_INFO, "KVM_CAP_MEMORY_FAULT_INFO"),
    (KVM_CAP_PRE_FAULT_MEMORY, "KVM_CAP_PRE_FAULT_MEMORY"),
    (KVM_CAP_GUEST_MEMFD, "KVM_CAP_GUEST_MEMFD"),
];

/// Asks KVM.
///
/// # Errors
/// [`KvmError`] if the device cannot be opened.
pub fn survey() -> Result<Survey, KvmError> {
    let kvm = open_node(c"/dev/kvm")?;
    let ask = |(number, name): (u32, &'static str)| (name, kvm.check_extension_raw(number.into()));
    let capabilities = NEEDED.into_iter().chain(USEFUL).map(ask).collect();
    let machine = Machine::create().map(drop).map_err(|error| {
        let cause = std::error::Error::source(&error);
        cause.map_or(error.to_string(), |cause| format!("{error}: {cause}"))
    });
    Ok(Survey { version: kvm.get_api_version(), capabilities, machine })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_capability_is_asked_for_twice() {
        let names: BTreeSet<_> = NEEDED.iter().chain(&USEFUL).map(|(_, name)| name).collect();
        assert_eq!(names.len(), NEEDED.len() + USEFUL.len());
    }
}
