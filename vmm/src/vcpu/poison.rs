//! What becomes of a guest that touches a poisoned page.

use godwit_uffd::page::{Gpa, Hva};

use super::thread::CpuShared;
use crate::kvm::{NotRaised, Vcpu};

/// The machine checks of one vCPU.
#[derive(Default)]
pub(super) struct Poison {
    /// The page of the last one.
    last: Option<Gpa>,
}

impl Poison {
    /// The guest has touched the poisoned page at `address` of this process: raises a machine
    /// check.
    ///
    /// # Errors
    /// Why the guest has to be stopped, with the page's guest address.
    pub(super) fn touched(
        &mut self,
        shared: &CpuShared,
        vcpu: &Vcpu,
        address: Hva,
    ) -> Result<(), String> {
        let Some(page) = shared.memory.page_at(address) else {
            return Err(format!("KVM cannot read memory of this process, at {address}"));
        };
        // A guest that comes back for more would do so for ever.
        if self.last.replace(page) == Some(page) {
            return Err(stopped(page, "the guest touches it again after a machine check"));
        }
        raise(shared, vcpu, page).map_err(|why| stopped(page, &super::running::describe(&why)))
    }
}

fn raise(shared: &CpuShared, vcpu: &Vcpu, page: Gpa) -> Result<(), NotRaised> {
    if shared.count > 1 && !vcpu.is_amd() {
        return Err(NotRaised::Cannot("it expects them on all vcpus at once"));
    }
    vcpu.raise_machine_check(page)?;
    tracing::warn!(
        vcpu = shared.index,
        page = format_args!("{:#x}", page.0),
        "the guest touched a poisoned page and gets a machine check"
    );
    Ok(())
}

/// The page that the guest would execute at, if it is poisoned.
pub(super) fn poisoned_code(shared: &CpuShared, vcpu: &Vcpu) -> Option<Gpa> {
    let (regs, sregs) = (vcpu.fd().get_regs().ok()?, vcpu.get_sregs2().ok()?);
    // In 64-bit code the base counts as zero.
    let base = if sregs.cs.l == 1 { 0 } else { sregs.cs.base };
    let found = vcpu.fd().translate_gva(base.wrapping_add(regs.rip)).ok()?;
    let valid = (found.valid == 1).then_some(Gpa(found.physical_address))?;
    shared.memory.poisoned_page(valid)
}

/// The last words about a guest that needs the page at `gpa`.
pub(super) fn stopped(page: Gpa, why: &str) -> String {
    format!(
        "the page at guest address {:#x} is poisoned: it could not be read at the source, or this \
         host has lost it; {why}",
        page.0
    )
}

/// Why a guest is stopped whose access was half done.
pub(super) const IN_THE_MIDDLE: &str = "KVM was in the middle of an instruction of the guest";
