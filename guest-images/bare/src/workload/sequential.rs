//! `touch`, `stride` and `checksum`: verifies all pages of the share and writes none.

use core::ops::Range;

use crate::vcpu::{Pass, Vcpu};

/// Sweeps over the share, `stride` pages from one page to the next, until every page was visited.
pub fn run(vcpu: &mut Vcpu, stride: u64) {
    while let Some(mut pass) = vcpu.begin_pass() {
        sweep(vcpu, &mut pass, stride);
        vcpu.end_pass(&pass);
    }
}

/// Verifies the whole share.
pub fn sweep(vcpu: &mut Vcpu, pass: &mut Pass, stride: u64) {
    for index in strided(vcpu.owned_share(), stride) {
        check_any(vcpu, pass, index);
        vcpu.step();
    }
    sweep_zero(vcpu, pass, stride);
}

/// Verifies the part of the share that nobody writes.
pub fn sweep_zero(vcpu: &mut Vcpu, pass: &mut Pass, stride: u64) {
    for index in strided(vcpu.zero_share(), stride) {
        vcpu.check_zero(pass, index);
        vcpu.step();
    }
}

/// Verifies one page, owned or zero.
pub fn check_any(vcpu: &mut Vcpu, pass: &mut Pass, index: u64) {
    if index < vcpu.guest.owned_pages {
        let content = vcpu.content(index, vcpu.guest.generation(index));
        vcpu.check(pass, &content);
    } else {
        vcpu.check_zero(pass, index);
    }
}

/// All pages of `share`: the first and each `stride` further, then the second and so on.
fn strided(share: Range<u64>, stride: u64) -> impl Iterator<Item = u64> {
    let (start, end) = (share.start, share.end);
    let lanes = stride.min(end - start);
    (0..lanes).flat_map(move |lane| (start + lane..end).step_by(stride as usize))
}
