//! Machine checks: how a guest learns that a page of its memory is lost.
//!
//! What the processor would report is an error that it found in loaded data, with the address of
//! it, and that the instruction has had no effect: software recoverable, action required. Intel's
//! manual (volume 3, chapter "Machine-Check Architecture") and AMD's (volume 2, of the same title)
//! say what is in the registers then.

// UNSAFETY: ioctls that read structures of ours.
#![expect(unsafe_code)]

use godwit_uffd::page::{Gpa, PageSize};
use kvm_bindings::{KVM_CAP_MCE, KVMIO, kvm_msr_entry, kvm_x86_mce};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{KvmError, Vcpu, failed};

/// `_IOW(KVMIO, 0x9c, __u64)`
const KVM_X86_SETUP_MCE: u64 = ioctl_number::<u64>(0x9c);

/// `_IOW(KVMIO, 0x9e, struct kvm_x86_mce)`
const KVM_X86_SET_MCE: u64 = ioctl_number::<kvm_x86_mce>(0x9e);

const fn ioctl_number<T>(nr: u64) -> u64 {
    1 << 30 | (size_of::<T>() as u64) << 16 | (KVMIO as u64) << 8 | nr
}

const _: () = assert!(KVM_X86_SETUP_MCE == 0x4008_ae9c);
const _: () = assert!(KVM_X86_SET_MCE == 0x4040_ae9e);

/// Why the guest cannot be told. Its text ends a sentence about the page.
#[derive(Debug, thiserror::Error)]
pub enum NotRaised {
    /// Registers of the vCPU say that a machine check would be lost or shut the guest down.
    #[error("the guest cannot take a machine check: {0}")]
    Cannot(&'static str),
    /// A call failed.
    #[error("no machine check could be raised")]
    Kvm(#[from] KvmError),
}

/// What the registers of a vCPU say about machine checks.
#[derive(Clone, Copy, Debug)]
struct Banks {
    cr4: u64,
    capabilities: u64,
    status: u64,
    control: u64,
    bank_control: u64,
}

impl Banks {
    /// Whether a machine check arrives. KVM drops one that is masked and shuts the guest down at
    /// one that it cannot take; a guest that does not know of recoverable ones gives up.
    fn check(&self) -> Result<(), NotRaised> {
        let can = [
            (self.cr4 & CR4_MCE != 0, "it has not enabled them (CR4.MCE is clear)"),
            (
                self.capabilities & MCG_SER_P != 0 && self.capabilities & MCG_COUNT > BANK.into(),
                "its processor does not have recoverable ones",
            ),
            (self.status & MCG_STATUS_MCIP == 0, "it is still handling the one before"),
            (
                self.capabilities & MCG_CTL_P == 0 || self.control == u64::MAX,
                "it has masked them (IA32_MCG_CTL)",
            ),
            (self.bank_control == u64::MAX, "it has masked them (IA32_MCi_CTL)"),
        ];
        let obstacle = can.into_iter().find(|(fine, _)| !fine);
        obstacle.map_or(Ok(()), |(_, why)| Err(NotRaised::Cannot(why)))
    }
}

/// The report of a lost page, of which the guest has just tried to load. `amd` is whose words it is
/// written in.
fn report(page: Gpa, amd: bool) -> kvm_x86_mce {
    let of_maker = match amd {
        true => MCI_STATUS_POISON,
        false => MCI_STATUS_S | MCI_STATUS_AR | MCACOD_DATA_LOAD,
    };
    kvm_x86_mce {
        status: MCI_STATUS_VAL
            | MCI_STATUS_UC
            | MCI_STATUS_EN
            | MCI_STATUS_MISCV
            | MCI_STATUS_ADDRV
            | of_maker,
        addr: page.0,
        misc: MISC_PHYSICAL | PAGE_SHIFT,
        // The instruction can be tried again, and is the one that met the error.
        mcg_status: MCG_STATUS_MCIP | MCG_STATUS_RIPV | MCG_STATUS_EIPV,
        bank: BANK,
        ..Default::default()
    }
}

impl Vcpu {
    /// Gives the vCPU recoverable machine checks and leaves no bank masked. Where KVM lacks them,
    /// the guest has none.
    pub(super) fn set_up_machine_checks(&self, vm: &VmFd) {
        let banks = vm.check_extension_raw(KVM_CAP_MCE.into());
        let Ok(banks @ 1..) = u64::try_from(banks) else { return };
        // As many as without this call, so that guests from elsewhere find theirs here.
        let capabilities = MCG_SER_P | banks.min(MCG_COUNT);
        if let Err(error) = self.set_mce(KVM_X86_SETUP_MCE, "KVM_X86_SETUP_MCE", &capabilities) {
            tracing::debug!(%error, "guests get no machine checks");
        }
    }

    /// Tells the guest, at its next entry, that the page at `page` is lost, which it has just
    /// tried to access in an instruction that has had no effect.
    ///
    /// # Errors
    /// [`NotRaised`]; nothing has happened then.
    pub fn raise_machine_check(&self, page: Gpa) -> Result<(), NotRaised> {
        self.banks()?.check()?;
        let report = report(page, self.is_amd());
        Ok(self.set_mce(KVM_X86_SET_MCE, "KVM_X86_SET_MCE", &report)?)
    }

    /// Whether the guest takes its processor for one of AMD's kind: others want to be told of a
    /// machine check on all vCPUs at once.
    pub fn is_amd(&self) -> bool {
        self.cpuid().iter().filter(|leaf| leaf.function == 0).any(|leaf| {
            let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
            [*b"AuthenticAMD", *b"HygonGenuine"].iter().any(|amd| vendor == *amd)
        })
    }

    fn banks(&self) -> Result<Banks, KvmError> {
        let read = |index| {
            let entry = kvm_msr_entry { index, ..Default::default() };
            let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).expect("one entry");
            // One that cannot be read is not there, and masks nothing.
            let read = self.fd().get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
            Ok(if read == 1 { msrs.as_slice()[0].data } else { 0 })
        };
        Ok(Banks {
            cr4: self.get_sregs2()?.cr4,
            capabilities: read(MSR_MCG_CAP)?,
            status: read(MSR_MCG_STATUS)?,
            control: read(MSR_MCG_CTL)?,
            bank_control: read(MSR_MC0_CTL + MSRS_PER_BANK * u32::from(BANK))?,
        })
    }

    fn set_mce<T>(&self, number: u64, call: &'static str, value: &T) -> Result<(), KvmError> {
        // SAFETY: the kernel reads one `T`: both numbers were made with the size of theirs.
        let result = unsafe { ioctl_with_ref(self.fd(), number, value) };
        match result {
            0 => Ok(()),
            _ => Err(failed(call)(errno::Error::last())),
        }
    }
}

/// The bank of errors of this kind. Kernels treat a low one as a part of the processor.
const BANK: u8 = 9;

const CR4_MCE: u64 = 1 << 6;

const MSR_MCG_CAP: u32 = 0x179;
const MSR_MCG_STATUS: u32 = 0x17a;
const MSR_MCG_CTL: u32 = 0x17b;
const MSR_MC0_CTL: u32 = 0x400;
const MSRS_PER_BANK: u32 = 4;

/// The number of banks.
const MCG_COUNT: u64 = 0xff;
/// There is a register that masks all banks.
const MCG_CTL_P: u64 = 1 << 8;
/// Software may recover from errors.
const MCG_SER_P: u64 = 1 << 24;

/// The interrupted instruction can be gone on with.
const MCG_STATUS_RIPV: u64 = 1 << 0;
/// The interrupted instruction is the one with the error.
const MCG_STATUS_EIPV: u64 = 1 << 1;
/// A machine check is in progress.
const MCG_STATUS_MCIP: u64 = 1 << 2;

const MCI_STATUS_VAL: u64 = 1 << 63;
/// Uncorrected.
const MCI_STATUS_UC: u64 = 1 << 61;
/// Reporting is enabled.
const MCI_STATUS_EN: u64 = 1 << 60;
const MCI_STATUS_MISCV: u64 = 1 << 59;
const MCI_STATUS_ADDRV: u64 = 1 << 58;
/// Intel: signalled as a machine check.
const MCI_STATUS_S: u64 = 1 << 56;
/// Intel: action required.
const MCI_STATUS_AR: u64 = 1 << 55;
/// AMD: poisoned data were consumed.
const MCI_STATUS_POISON: u64 = 1 << 43;
/// Intel's code of an error in the cache hierarchy, found by loading data.
const MCACOD_DATA_LOAD: u64 = 0x134;

/// The address is a physical one.
const MISC_PHYSICAL: u64 = 2 << 6;
/// Bits of the address that say nothing.
const PAGE_SHIFT: u64 = PageSize::BASE.bytes().trailing_zeros() as u64;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Banks = Banks {
        cr4: CR4_MCE,
        capabilities: MCG_SER_P | 32,
        status: 0,
        control: 0,
        bank_control: u64::MAX,
    };

    #[test]
    fn a_report_is_what_the_manuals_say() {
        let report = report(Gpa(0x1234_5000), false);
        assert_eq!(report.status, 0xbd80_0000_0000_0134);
        assert_eq!((report.addr, report.misc), (0x1234_5000, 0x8c));
        assert_eq!((report.mcg_status, report.bank), (7, 9));
        assert_eq!(super::report(Gpa(0), true).status, 0xbc00_0800_0000_0000);
    }

    #[test]
    fn a_machine_check_that_would_not_arrive_is_not_raised() {
        GOOD.check().unwrap();
        Banks { capabilities: GOOD.capabilities | MCG_CTL_P, control: u64::MAX, ..GOOD }
            .check()
            .unwrap();
        for (banks, why) in [
            (Banks { cr4: !CR4_MCE, ..GOOD }, "CR4.MCE"),
            (Banks { capabilities: 32, ..GOOD }, "recoverable"),
            (Banks { capabilities: MCG_SER_P | u64::from(BANK), ..GOOD }, "recoverable"),
            (Banks { status: MCG_STATUS_MCIP, ..GOOD }, "the one before"),
            (Banks { capabilities: GOOD.capabilities | MCG_CTL_P, ..GOOD }, "MCG_CTL"),
            (Banks { bank_control: u64::MAX - 1, ..GOOD }, "MCi_CTL"),
        ] {
            let text = banks.check().unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
    }
}
