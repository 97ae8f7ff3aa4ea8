//! /dev/kvm, what it can do, and the virtual machine made with it.

use std::ffi::CStr;
use std::io;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_EXCEPTION_PAYLOAD,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IRQCHIP, KVM_CAP_MP_STATE,
    KVM_CAP_PIT_STATE2, KVM_CAP_SET_TSS_ADDR, KVM_CAP_SREGS2, KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::failed;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node does not exist.
    #[error(
        "there is no /dev/kvm; load the module ('modprobe kvm_intel' or 'modprobe kvm_amd') and \
         check that virtualisation is enabled in the firmware, or in the settings of the cloud \
         machine"
    )]
    NoDevice,
    /// The device node may not be opened by this user.
    #[error(
        "no permission to open /dev/kvm; run 'sudo setfacl -m u:$USER:rw /dev/kvm', or join the \
         group that owns it"
    )]
    Forbidden,
    /// The device node could not be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The kernel speaks another version of the interface.
    #[error("/dev/kvm speaks version {found} of its interface, and {KVM_API_VERSION} is needed")]
    Version {
        /// The version found.
        found: i32,
    },
    /// The kernel lacks something that is always needed.
    #[error("this kernel's KVM lacks {capability}; Linux 6.1 or later is needed")]
    Lacks {
        /// The name of the capability.
        capability: &'static str,
    },
    /// A call failed.
    #[error("{call} failed")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What this machine's KVM can do that changes what we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The largest number of vCPUs of one guest.
    pub cpus_max: usize,
    /// Bytes of a vCPU's extended state, 4096 or more.
    pub xsave_bytes: usize,
    /// The LAPIC has a TSC-deadline timer.
    pub tsc_deadline: bool,
    /// The guest's TSC frequency can be set freely.
    pub tsc_control: bool,
    /// An instruction that KVM cannot interpret is reported, not answered with an exception.
    pub reports_emulation_failure: bool,
    /// Exceptions that wait for delivery are reported as they are.
    pub exception_payload: bool,
}

/// A virtual machine without memory and vCPUs.
pub struct Machine {
    /// The system descriptor.
    pub kvm: Kvm,
    /// The virtual machine.
    pub vm: VmFd,
    /// What it can do.
    pub capabilities: Capabilities,
}

impl Machine {
    /// Opens /dev/kvm and makes a virtual machine with interrupt controllers and a PIT.
    ///
    /// # Errors
    /// [`KvmError`], which says what to do about it.
    pub fn create() -> Result<Machine, KvmError> {
        let kvm = open()?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        // Three pages for the task state that VMX needs in real mode and one for its identity
        // map: below the firmware area, in the hole, where no RAM is. Other processors ignore it.
        vm.set_identity_map_address(IDENTITY_MAP_GPA)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS_GPA).map_err(failed("KVM_SET_TSS_ADDR"))?;
        let capabilities = Capabilities {
            reports_emulation_failure: enable(&vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE)?,
            exception_payload: enable(&vm, KVM_CAP_EXCEPTION_PAYLOAD)?,
            ..ask(&kvm, &vm)
        };
        // Port 0x61 belongs to the timer: kernels read from it whether a channel has run out.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
        Ok(Machine { kvm, vm, capabilities })
    }
}

/// Opens /dev/kvm and checks what is always needed.
///
/// # Errors
/// [`KvmError`], which says what to do about it.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    let kvm = open_node(c"/dev/kvm")?;
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version { found });
    }
    for (number, capability) in NEEDED {
        if kvm.check_extension_raw(number.into()) <= 0 {
            return Err(KvmError::Lacks { capability });
        }
    }
    Ok(kvm)
}

/// What no guest can do without.
pub(super) const NEEDED: [(u32, &str); 10] = [
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    (KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"),
    (KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS"),
    (KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"),
    (KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"),
    (KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"),
    (KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"),
    (KVM_CAP_SREGS2, "KVM_CAP_SREGS2"),
];

pub(super) fn open_node(path: &CStr) -> Result<Kvm, KvmError> {
    Kvm::new_with_path(path).map_err(|errno| why_not_open(errno.errno()))
}

/// What an error number of open(2) means here.
fn why_not_open(errno: i32) -> KvmError {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NoDevice,
        libc::EACCES | libc::EPERM => KvmError::Forbidden,
        _ => KvmError::Open(io::Error::from_raw_os_error(errno)),
    }
}

fn ask(kvm: &Kvm, vm: &VmFd) -> Capabilities {
    let xsave2 = vm.check_extension_int(Cap::Xsave2);
    Capabilities {
        cpus_max: kvm.get_max_vcpus(),
        xsave_bytes: usize::try_from(xsave2).unwrap_or(0).max(XSAVE_BYTES_MIN),
        tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
        tsc_control: vm.check_extension(Cap::TscControl),
        reports_emulation_failure: false,
        exception_payload: false,
    }
}

/// Switches a capability on if the kernel has it, and says whether it is on.
fn enable(vm: &VmFd, capability: u32) -> Result<bool, KvmError> {
    if vm.check_extension_raw(capability.into()) <= 0 {
        return Ok(false);
    }
    let mut request = kvm_enable_cap { cap: capability, ..Default::default() };
    request.args[0] = 1;
    vm.enable_cap(&request).map_err(failed("KVM_ENABLE_CAP"))?;
    Ok(true)
}

const XSAVE_BYTES_MIN: usize = 4096;
const IDENTITY_MAP_GPA: u64 = 0xfffb_c000;
const TSS_GPA: usize = 0xfffb_d000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_forbidden_nodes_say_what_to_do() {
        let missing = open_node(c"/nonexistent/kvm").err().unwrap().to_string();
        assert!(missing.contains("modprobe"), "{missing}");
        let forbidden = why_not_open(libc::EACCES).to_string();
        assert!(forbidden.contains("setfacl"), "{forbidden}");
    }
}
