//! `smp`: all vCPUs write the same pages in turns.

use crate::vcpu::Vcpu;
use crate::workload::dirty::check_and_write;
use crate::workload::sequential::sweep_zero;

/// Sweeps over all owned pages, each vCPU from another one on. A page is locked, verified, written
/// and unlocked, so that every generation was seen by whoever wrote the next.
pub fn run(vcpu: &mut Vcpu) {
    let pages = vcpu.guest.owned_pages;
    let first = vcpu.owned_share().start;
    while let Some(mut pass) = vcpu.begin_pass() {
        for index in (first..pages).chain(0..first) {
            while !vcpu.guest.try_lock(index) {
                vcpu.step();
            }
            check_and_write(vcpu, &mut pass, index, true);
            vcpu.step();
        }
        sweep_zero(vcpu, &mut pass, 1);
        vcpu.end_pass(&pass);
    }
}
