//! Guest page faults, for `faults=`: addresses that ring 0 gives memory when they are touched.

use godwit_guest::page::{self, Content, Mismatch};
use godwit_guest::ram;

use crate::guest::FAULT_INDEX;
use crate::machine::ring0;
use crate::vcpu::{Pass, Vcpu};

/// Touches this vCPU's share of the fault window, of which no page is mapped, and unmaps it again.
/// A page must hold what the pass before wrote to it, and what this pass writes to it must be
/// found at its physical address.
pub fn touch_all(vcpu: &mut Vcpu, pass: &mut Pass) {
    let guest = vcpu.guest;
    let share = ram::share(guest.config.fault_pages, vcpu.index, guest.config.vcpus);
    if share.is_empty() {
        return;
    }
    for index in share.clone() {
        assert!(guest.faults.backing(index).is_none(), "mapped before it is touched");
        let found = touch(vcpu, index, pass.number);
        if let Err((content, mismatch)) = found {
            vcpu.complain(pass, &content, &mismatch);
        }
        vcpu.step();
    }
    guest.faults.unmap(share.clone());
    if pass.printed {
        let (vcpu_index, touched, served) = (vcpu.index, share.count(), ring0::faults());
        vcpu.line(format_args!("faults vcpu={vcpu_index} touched={touched} served={served}"));
    }
}

fn touch(vcpu: &Vcpu, index: u64, number: u64) -> Result<(), (Content, Mismatch)> {
    let faults = &vcpu.guest.faults;
    let page = faults.page(index);
    let before = vcpu.content(FAULT_INDEX + index, number - 1);
    let found = if number == 1 { page::verify_zero(page) } else { page::verify(page, &before) };
    found.map_err(|mismatch| (before, mismatch))?;
    let after = vcpu.content(FAULT_INDEX + index, number);
    page::write(page, &after);
    let backing = faults.backing(index).expect("the touch has mapped it");
    page::verify(backing, &after).map_err(|mismatch| (after, mismatch))
}
