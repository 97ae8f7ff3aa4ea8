//! `clock`: looks at the clock and does nothing else.

use crate::vcpu::Vcpu;

/// A pass is a second long and verifies nothing.
pub fn run(vcpu: &mut Vcpu) {
    while let Some(pass) = vcpu.begin_pass() {
        let end = vcpu.step() + vcpu.guest.config.cycles(1000);
        while vcpu.step() < end {}
        vcpu.end_pass(&pass);
    }
}
