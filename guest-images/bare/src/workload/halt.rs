//! `halt`: a guest that does nothing.

use crate::machine::{ring0, tsc};
use crate::vcpu::Vcpu;
use crate::workload::sequential::check_any;

/// Sleeps for ever. With the timer on, vCPU 0 wakes about once a second and verifies everything;
/// the others are done at once.
pub fn run(vcpu: &mut Vcpu) {
    let (index, now) = (vcpu.index, tsc());
    vcpu.line(format_args!("halted vcpu={index} tsc={now}"));
    if vcpu.guest.config.timer_hz == 0 {
        ring0::sleep_for_ever();
    }
    if index != 0 {
        return;
    }
    loop {
        let next = ring0::ticks() + vcpu.guest.config.timer_hz;
        while ring0::ticks() < next {
            ring0::sleep();
            vcpu.step();
        }
        let Some(mut pass) = vcpu.begin_pass() else {
            return;
        };
        for index in 0..vcpu.guest.arena_pages {
            check_any(vcpu, &mut pass, index);
            vcpu.step();
        }
        vcpu.end_pass(&pass);
    }
}
