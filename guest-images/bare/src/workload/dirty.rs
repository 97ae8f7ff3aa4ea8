//! `dirty`: verifies pages and writes their next generation.

use godwit_guest::clock::Pace;
use godwit_guest::page;

use crate::vcpu::{Pass, Vcpu};
use crate::workload::sequential::sweep_zero;

/// Sweeps over the share. Each page is verified; if it is of a group that is written, it is written
/// as well when the rate allows one more, so a low rate spreads its writes over the memory and a
/// pass is still short.
pub fn run(vcpu: &mut Vcpu) {
    let config = &vcpu.guest.config;
    let cycles = config.cycles(1000).checked_div(config.rate).unwrap_or(0);
    let mut pace = Pace::new(cycles, vcpu.step());
    while let Some(mut pass) = vcpu.begin_pass() {
        for index in vcpu.owned_share() {
            let now = vcpu.step();
            let is_hot = (index / GROUP_PAGES).is_multiple_of(config.every);
            let writes = is_hot && pace.allows(now);
            check_and_write(vcpu, &mut pass, index, writes);
        }
        sweep_zero(vcpu, &mut pass, 1);
        vcpu.end_pass(&pass);
    }
}

/// Verifies one owned page, and writes its next generation if `writes`.
pub fn check_and_write(vcpu: &mut Vcpu, pass: &mut Pass, index: u64, writes: bool) {
    let generation = vcpu.guest.generation(index);
    let content = vcpu.content(index, generation);
    vcpu.check(pass, &content);
    if writes {
        page::write(vcpu.guest.page(index), &vcpu.content(index, generation + 1));
        vcpu.guest.set_generation(index, generation + 1);
    }
}

/// Pages that are written or left alone together, so that what is left alone is not scattered. No
/// more than the writes that a stall is made up for by, so that the rate is kept.
const GROUP_PAGES: u64 = 64;
